"""Predictions without any training or run: a config for an open_clip model, and entities made of the labels alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config import PipelineConfig, check_config
from pipelines.errors import PipelineError
from pipelines.towers import Towers
from pipelines.workflow import Layout, Say

NAME = "zero-shot"
ENTITIES = ("labels", "none")
TOP_K = 8


@dataclass(frozen=True)
class ZeroShot:
    """An open_clip model and how it looks at videos; ``entities`` is what regions are aligned with.

    ``labels``: the nouns of the labels and body parts, mined on the fly; where no WordNet or tagger is at hand, the
    labels themselves. ``none``: the labels themselves, nothing mined. Predictions are of whole frames either way.
    """

    model: str
    pretrained: str | None = None
    entities: str = ENTITIES[0]
    frames: int = 8
    device: str = "auto"
    nltk_data: Path | None = None

    def __post_init__(self) -> None:
        """Raises ``PipelineError`` for an unknown choice."""
        if self.entities not in ENTITIES:
            raise PipelineError(f"--entities is '{self.entities}'; it must be one of {', '.join(ENTITIES)}")


def zero_shot_config(
    zero: ZeroShot, labels: dict[str, Any], videos: Path, root: Path, work: Path
) -> PipelineConfig:
    """The config of a prediction without a run; ``labels`` is the section of its only label set, ``own``."""
    raw = {
        "out": str(work),
        "model": zero.model,
        "pretrained": zero.pretrained,
        "device": zero.device,
        "nltk_data": zero.nltk_data,
        "corpus": {"labels": labels["file"], "label_column": labels.get("label_column")},
        "labels": {"own": labels},
        "alignments": {
            "videos": str(videos),
            "videos_root": str(root),
            "frames": zero.frames,
            "merge": "auto",
            "top_k": TOP_K,
        },
    }
    return check_config(raw, Path.cwd(), inputs=False)


def build_entities(
    config: PipelineConfig, layout: Layout, entities: str, say: Say, towers: Towers
) -> PipelineConfig:
    """Write the corpus of a prediction without a run; returns the config with as many entities as there can be.

    Whatever is missing to mine labels, a tagger or WordNet itself, is said, and done without.
    """
    from corpus_builder.config import CorpusError
    from pipelines import stages

    if entities == "labels":
        for taggers in ("both", "nltk", "wordnet"):
            section = config.corpus.model_copy(update={"taggers": taggers})
            try:
                mined = config.model_copy(update={"corpus": section})
                said = stages.build_corpus(mined, layout.corpus, towers)
            except CorpusError as error:
                why = str(error)
                continue
            say(f"entities: {said}")
            return _with_top_k(config, layout)
        say(f"entities: the labels themselves, for nothing could be mined from them ({why.splitlines()[0]})")
    else:
        say("entities: the labels themselves")
    _import_labels(config, layout, towers)
    return _with_top_k(config, layout)


def _import_labels(config: PipelineConfig, layout: Layout, towers: Towers) -> None:
    """A corpus whose entities are the labels as they are."""
    from adapter.labels import open_labels
    from corpus_builder.config import CorpusConfig
    from corpus_builder.unmined import import_words

    # Names as prompted, so that ApplyEyeMakeup is three words here as well; commas would begin other names.
    names = [name.replace(",", " ") for name in open_labels(layout.labels("own")).names]
    words = layout.root / "words.txt"
    words.write_text("\n".join(names) + "\n", encoding="utf-8")
    longest = max(len(name.split()) for name in names)
    import_words(
        words,
        CorpusConfig(max_words=longest),
        config.model,
        config.pretrained,
        layout.corpus,
        senses=False,
        device=config.device,
        force=True,
        encoder=towers.texts,
    )


def _with_top_k(config: PipelineConfig, layout: Layout) -> PipelineConfig:
    from corpus_builder.artifact import open_corpus

    count = len(open_corpus(layout.corpus).table)
    section = config.alignments.model_copy(update={"top_k": min(TOP_K, count)})
    return config.model_copy(update={"alignments": section})
