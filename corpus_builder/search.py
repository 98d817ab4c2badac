"""The entities of a corpus nearest to unit vectors, and the model of a corpus that makes such vectors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL.Image import Image

from corpus_builder import artifact
from corpus_builder.config import CorpusError
from corpus_builder.embed import OpenClip, choose_device, is_published, load_text_encoder
from corpus_builder.index import check_belongs, read_index, search
from corpus_builder.pictures import read_frame, read_image

COLUMNS = ("entity_id", "key", "name", "kind", "source", "sense", "gloss")


@dataclass(frozen=True)
class Hit:
    """An entity found: what it is, and the cosine of its embedding with what was searched for."""

    entity_id: int
    key: str
    name: str
    kind: str
    source: str
    sense: str | None
    gloss: str | None
    cosine: float

    def __str__(self) -> str:
        return f"{self.cosine:7.4f}  {self.name:<24} {self.sense or '-':<24} {self.gloss or ''}".rstrip()


@dataclass(frozen=True)
class Query:
    """What to look for: a text, the picture in a file, or the frame of a video at a time in seconds. One of them."""

    text: str | None = None
    image: Path | None = None
    video: Path | None = None
    at: float | None = None

    def __post_init__(self) -> None:
        """Raises :class:`CorpusError` unless exactly one is given, and a time with a video only."""
        given = {"TEXT": self.text, "--image": self.image, "--video": self.video}
        names = [name for name, value in given.items() if value is not None]
        if len(names) != 1:
            raise CorpusError(
                "search by exactly one of TEXT, --image FILE and --video FILE --at SECONDS; got"
                f" {' and '.join(names) or 'none of them'}"
            )
        if (self.video is None) != (self.at is None):
            missing = "--at SECONDS" if self.at is None else "--video FILE"
            raise CorpusError(f"--video FILE and --at SECONDS go together; {missing} is missing")
        if self.text is not None and not self.text.strip():
            raise CorpusError("TEXT is empty, expected something to look for")

    def content(self) -> str | Image:
        """The text, or the picture; raises :class:`CorpusError` if the file gives none."""
        if self.image is not None:
            return read_image(self.image)
        if self.video is not None and self.at is not None:
            return read_frame(self.video, self.at)
        return str(self.text)


def index_of(corpus: artifact.Artifact) -> Any:
    """The FAISS index of a corpus; raises :class:`CorpusError` if it is of another table."""
    index = read_index(corpus.folder / artifact.INDEX)
    check_belongs(index, corpus.embeddings, f"'{corpus.folder}'")
    return index


def nearest(
    corpus: artifact.Artifact, index: Any, vectors: Float[np.ndarray, "queries dim"], k: int
) -> list[list[Hit]]:
    """The k entities nearest to each unit vector, best first; fewer where the index finds fewer."""
    if k < 1:
        raise CorpusError(f"--k is {k}, expected at least 1")
    if vectors.shape[1] != corpus.manifest["dim"]:
        raise CorpusError(
            f"vectors are {vectors.shape[1]} wide, expected {corpus.manifest['dim']}, as of the corpus's model"
        )
    told = corpus.table.select(list(COLUMNS))
    hits = search(index, vectors, k)
    found = []
    for ids, scores in zip(hits.ids, hits.scores, strict=True):
        kept = ids >= 0
        rows = told.take(ids[kept]).to_pylist()
        pairs = zip(rows, scores[kept], strict=True)
        found.append([Hit(**row, cosine=float(score)) for row, score in pairs])
    return found


def encoder_of(corpus: artifact.Artifact, model: str | None, pretrained: str | None, device: str) -> OpenClip:
    """The model that made a corpus, as the caller names it, or from where it lay when the corpus was made.

    Raises :class:`CorpusError` if the model at hand is not the corpus's, or is no longer there.
    """
    choose_device(device)
    own = corpus.manifest["model"]
    if model is None and pretrained is None:
        if not is_published(own["name"], own["pretrained"]):
            return _encoder_where_it_lay(corpus.folder, own, device)
        pretrained = own["pretrained"]
    elif model is None and own["name"].startswith("local-dir:"):
        raise CorpusError(_say_where(own))
    encoder = load_text_encoder(model or own["name"], pretrained, device)
    if encoder.info["weights_sha256"] != own["weights_sha256"]:
        raise CorpusError(
            f"needs the corpus's model, {_model_name(own)}, found {_model_name(encoder.info)}; give the first"
            f" with --model and --pretrained, or run `{artifact.MAKERS['corpus']}` with the second"
        )
    return encoder


def _encoder_where_it_lay(folder: Path, own: dict[str, Any], device: str) -> OpenClip:
    """The model of a corpus from the folder or file it was loaded from; else the request to say where."""
    told = artifact.read_model_location(folder)
    if told is None:
        raise CorpusError(_say_where(own))
    try:
        encoder = load_text_encoder(told["model"], told.get("pretrained"), device)
    except CorpusError as error:
        raise CorpusError(f"{_say_where(own)}; where it lay before: {error}") from error
    if encoder.info["weights_sha256"] != own["weights_sha256"]:
        lay = told.get("pretrained", told["model"])
        raise CorpusError(f"{_say_where(own)}; '{lay}' now has other weights")
    return encoder


def _say_where(own: dict[str, Any]) -> str:
    if own["name"].startswith("local-dir:"):
        return f"the corpus was made with {own['name']}: say where it lies with --model local-dir:PATH"
    return (
        f"the corpus was made with {own['name']} and the weights file '{own['pretrained']}': say where it lies"
        f" with --model {own['name']} --pretrained FILE"
    )


def _model_name(info: dict[str, Any]) -> str:
    return f"{info['name']} ({info['pretrained'] or 'own weights'}, {info['weights_sha256'][:12]})"
