"""Class names when the text tower has prompts that learn: their vectors, anew after every step, with gradients.

Only class names go through the prompts, never the entities: these stay what they are in the alignments.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from aligner.encoder import TEXT_PROMPTS
from corpus_builder.embed import lengths_of, text_features
from corpus_builder.prompted import check_promptable
from pipelines.tuned_encoder import PROMPT_DEVIATION, full_precision

TEXTS = 256
"""At most so many texts (but those of one class) go through the tower at once."""


def new_text_prompts(model: Any, count: int, device: torch.device) -> nn.Parameter:
    """Prompts [blocks, count, width], drawn from torch's generator, as a part of ``model``.

    Raises:
        CorpusError: a text tower that cannot have any.
    """
    check_promptable(model)
    drawn = torch.randn(len(model.transformer.resblocks), count, model.transformer.width) * PROMPT_DEVIATION
    prompts = nn.Parameter(drawn.to(device))
    setattr(model, TEXT_PROMPTS, prompts)
    return prompts


class TunedLabels:
    """Vectors of classes through a frozen text tower with prompts, in fp32.

    Each class is embedded as the label set was: in all its templates, whose unit vectors are averaged. The passes of a
    step share one set of vectors and gather its gradient; ``backward`` then carries that to the prompts, computing some
    classes at a time again, so that memory does not grow with classes and templates.
    """

    def __init__(
        self, model: Any, tokens: Int[Tensor, "classes templates context"], prompts: nn.Parameter
    ) -> None:
        """``tokens`` are the classes' names in their templates; the model's own weights must be frozen."""
        self.model, self.tokens, self.prompts = model, tokens, prompts
        self._held: Tensor | None = None

    @property
    def vectors(self) -> Float[Tensor, "classes dim"]:
        """Unit vectors under the prompts as they are."""
        if self._held is None:
            with torch.no_grad():
                self._held = torch.cat([self._embed(part) for part in self._parts()])
            self._held.requires_grad_()
        return self._held

    def backward(self) -> None:
        """Add to the prompts' gradient what the passes of a step have left at the vectors, and forget these."""
        gradient = None if self._held is None else self._held.grad
        if gradient is not None:
            for part in self._parts():
                self._embed(part).backward(gradient[part])
        self.forget()

    def forget(self) -> None:
        """The prompts are others now."""
        self._held = None

    def _parts(self) -> Iterator[slice]:
        size = max(1, TEXTS // self.tokens.shape[1])
        for start in range(0, len(self.tokens), size):
            yield slice(start, start + size)

    def _embed(self, part: slice) -> Float[Tensor, "classes dim"]:
        tokens = self.tokens[part].flatten(0, 1)
        with full_precision(tokens.device):
            features = text_features(self.model, tokens, max(lengths_of(self.model, tokens)), self.prompts)
            unit = F.normalize(features.float(), dim=-1).unflatten(0, (-1, self.tokens.shape[1]))
            return F.normalize(unit.mean(1), dim=-1)


def label_tokens(
    names: Sequence[str], templates: Sequence[str], tokenizer: Any, device: torch.device
) -> Int[Tensor, "classes templates context"]:
    """Every name in every template, as the text tower reads it."""
    texts = [template.replace("{}", name) for name in names for template in templates]
    return tokenizer(texts).unflatten(0, (len(names), len(templates))).to(device)
