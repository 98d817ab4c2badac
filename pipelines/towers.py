"""A run's CLIP, loaded when it is first needed and then kept: one model for all stages, and for many calls."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corpus_builder.embed import OpenClip


@dataclass(frozen=True)
class Towers:
    """``model`` and ``pretrained`` as for open_clip; ``device`` is auto, cpu, cuda or cuda:N."""

    model: str
    pretrained: str | None = None
    device: str = "auto"

    @cached_property
    def clip(self) -> tuple[Any, dict[str, Any]]:
        """The model in fp32 and its ModelInfo, as ``aligner.run`` takes them (``AlignerError`` without weights)."""
        from aligner.encoder import load_clip

        return load_clip(self.model, self.pretrained)

    @cached_property
    def texts(self) -> "OpenClip":
        """Embeds entities and queries."""
        return self._tower(prompts=None)

    @cached_property
    def names(self) -> "OpenClip":
        """Embeds class names, with the prompts that were learned for them if there are any."""
        from aligner.encoder import TEXT_PROMPTS

        return self._tower(prompts=getattr(self.clip[0], TEXT_PROMPTS, None))

    def _tower(self, prompts: Any) -> "OpenClip":
        import open_clip

        from corpus_builder.embed import OpenClip, choose_device

        clip, info = self.clip
        return OpenClip(
            clip, open_clip.get_tokenizer(self.model), info, choose_device(self.device), prompts=prompts
        )
