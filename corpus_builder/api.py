"""The verbs of this package for programs: ``open`` or ``create`` a corpus, then search, tag, subset, merge, export.

    import corpus_builder as cb

    corpus = cb.open("corpus")
    corpus.search("guitar", k=5)
    corpus.search_image("photo.jpg")
    corpus.entities.groupby("kind").size()

Importing the package loads nothing heavy: this file comes with the first verb, a model with the first search that
needs one.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import pandas as pd
from jaxtyping import Float
from PIL.Image import Image

from corpus_builder import artifact, reuse, search
from corpus_builder.build import Inputs, Say, build_corpus
from corpus_builder.config import CorpusConfig, CorpusError, did_you_mean
from corpus_builder.embed import OpenClip
from corpus_builder.index import GPU_HITS, on_gpu
from corpus_builder.pictures import read_image
from corpus_builder.search import Hit, Query

PHOTOS = 64
"""Photos read and embedded at a time."""

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Tagged:
    """A photo and its entities, best first; ``error`` says why a file gave none, and is None where all went well."""

    path: Path
    hits: tuple[Hit, ...] = ()
    error: str | None = None


class Corpus:
    """An opened corpus: its entities as a table, its embeddings as a matrix, and what can be asked of them.

    Attributes:
        folder: where it lies.
        manifest: what it was made from and with, see ``ARCHITECTURE.md``.
    """

    def __init__(
        self,
        folder: PathLike,
        *,
        model: str | None = None,
        pretrained: str | None = None,
        device: str = "auto",
    ) -> None:
        """See :func:`open`."""
        self._artifact = artifact.open_corpus(Path(folder))
        self._model, self._pretrained, self._device = model, pretrained, device
        self.folder = self._artifact.folder
        self.manifest = self._artifact.manifest

    def __len__(self) -> int:
        return len(self._artifact.table)

    def __repr__(self) -> str:
        model = self.manifest["model"]
        weights = "random weights" if self.random_weights else model["pretrained"] or "own weights"
        return f"<Corpus '{self.folder}': {len(self)} entities, {model['name']} ({weights})>"

    @property
    def random_weights(self) -> bool:
        """Whether the model was asked for without weights, so that every cosine is without meaning."""
        return bool(self.manifest["model"]["random_weights"])

    @cached_property
    def entities(self) -> pd.DataFrame:
        """One row per entity, row number = entity id: all columns but the embedding."""
        return self._artifact.table.drop_columns(["embedding"]).to_pandas()

    @cached_property
    def embeddings(self) -> Float[np.ndarray, "entities dim"]:
        """Unit float32 vectors, one row per entity."""
        return self._artifact.embeddings

    @cached_property
    def encoder(self) -> OpenClip:
        """The corpus's model, loaded when it is first needed; raises as :func:`search.encoder_of`."""
        return search.encoder_of(self._artifact, self._model, self._pretrained, self._device)

    @cached_property
    def _index(self) -> Any:
        return search.index_of(self._artifact)

    @cached_property
    def _gpu_index(self) -> Any:
        return on_gpu(self._index)

    def nearest(self, vectors: Float[np.ndarray, "queries dim"], k: int = 10) -> list[list[Hit]]:
        """The k entities nearest to each of your own unit vectors of the corpus's model, best first."""
        index = self._gpu_index if k < GPU_HITS else self._index
        return search.nearest(self._artifact, index, vectors, k)

    def search(self, text: str, k: int = 10) -> list[Hit]:
        """The k entities nearest to a text, best first."""
        return self.find(Query(text=text), k)

    def search_image(self, path: PathLike, k: int = 10) -> list[Hit]:
        """The k entities nearest to the picture in a file, best first."""
        return self.find(Query(image=Path(path)), k)

    def search_frame(self, path: PathLike, at: float, k: int = 10) -> list[Hit]:
        """The k entities nearest to what a video shows ``at`` seconds from its beginning, best first."""
        return self.find(Query(video=Path(path), at=at), k)

    def find(self, query: Query, k: int = 10) -> list[Hit]:
        """The k entities nearest to a query, best first.

        Raises :class:`CorpusError` on a file that gives no picture, an index that is not the corpus's, or a model
        that is not there any more.
        """
        content = query.content()
        _ = self._index  # a broken corpus is told before a model is loaded
        encoder = self.encoder
        vectors = encoder.encode([content]) if isinstance(content, str) else encoder.encode_images([content])
        return self.nearest(vectors, k)[0]

    def tag(self, paths: Iterable[PathLike], k: int = 5) -> Iterator[Tagged]:
        """The k entities nearest to each photo, in order, as they are done; a file that is no image has its error.

        Photos are embedded a batch at a time and held one at a time, so a folder of any size fits.
        """
        rest = iter(paths)
        while batch := [Path(path) for path in islice(rest, PHOTOS)]:
            yield from self._tag_batch(batch, k)

    def _tag_batch(self, paths: Sequence[Path], k: int) -> Iterator[Tagged]:
        errors: dict[Path, str] = {}

        def images() -> Iterator[Image]:
            for path in dict.fromkeys(paths):
                try:
                    yield read_image(path)
                except CorpusError as error:
                    errors[path] = str(error)

        vectors = self.encoder.encode_images(images())
        read = [path for path in dict.fromkeys(paths) if path not in errors]
        found = dict(zip(read, self.nearest(vectors, k), strict=True))
        for path in paths:
            yield Tagged(path, tuple(found.get(path, ())), errors.get(path))

    def subset(self, out: PathLike, *, force: bool = False, **conditions: Any) -> "Corpus":
        """The entities that meet every condition (:class:`reuse.Selection`) as a corpus of its own."""
        _check_names(conditions, reuse.Selection)
        selection = reuse.Selection(**_fields_of(reuse.Selection, conditions))
        reuse.subset(self.folder, Path(out), selection, force=force)
        return self._sibling(out)

    def merge(self, *others: "Corpus | PathLike", out: PathLike, force: bool = False) -> "Corpus":
        """The union with other corpora of the same model, as :func:`reuse.merge`."""
        folders = [other.folder if isinstance(other, Corpus) else Path(other) for other in others]
        reuse.merge([self.folder, *folders], Path(out), force=force)
        return self._sibling(out)

    def export(
        self, out: PathLike, *, form: str | None = None, embeddings: bool = False, force: bool = False
    ) -> None:
        """Write the entities for other programs, as :func:`export.export`."""
        from corpus_builder.export import export

        export(self.folder, Path(out), form=form, embeddings=embeddings, force=force)

    def _sibling(self, folder: PathLike) -> "Corpus":
        return Corpus(folder, model=self._model, pretrained=self._pretrained, device=self._device)


def open(
    folder: PathLike, *, model: str | None = None, pretrained: str | None = None, device: str = "auto"
) -> Corpus:
    """Open a corpus.

    Args:
        folder: as ``corpus-builder build`` or :func:`create` wrote it.
        model: the corpus's own model, only where it is a local folder or file that has moved.
        pretrained: its weights, likewise.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` for whichever there is.

    Raises:
        CorpusError: no corpus there, or a broken one; says what to do.
    """
    return Corpus(folder, model=model, pretrained=pretrained, device=device)


def create(
    out: PathLike,
    *,
    labels: PathLike | Sequence[str] | None = None,
    captions: PathLike | None = None,
    model: str,
    pretrained: str | None = None,
    device: str = "auto",
    force: bool = False,
    say: Say = lambda line: None,
    **options: Any,
) -> Corpus:
    """Mine, embed and write a corpus: ``corpus-builder build`` for programs.

    Args:
        out: folder to write.
        labels: a file of class names, or a list of them.
        captions: a file of captions; labels, captions or both.
        model: open_clip name, ``hf-hub:ORG/REPO`` or ``local-dir:PATH``.
        pretrained: tag or weights file of ``model``, or ``none`` for random weights.
        device: as :func:`open`.
        force: write into a folder that holds other things.
        say: called with lines of progress.
        options: the other fields of ``build.Inputs`` (such as ``nltk_data``) and of ``config.CorpusConfig`` (such as
            ``taggers``), by name.

    Raises:
        CorpusError: an unknown option, bad input, missing data, no such model; says what to do.
    """
    _check_names(options, Inputs, CorpusConfig)
    config = CorpusConfig(**_fields_of(CorpusConfig, options))
    with tempfile.TemporaryDirectory() as folder:
        given = options | {"labels": _labels_file(labels, Path(folder)), "captions": captions}
        inputs = Inputs(**_fields_of(Inputs, given))
        build_corpus(inputs, config, model, pretrained, Path(out), device=device, force=force, say=say)
    return Corpus(out, model=model, pretrained=pretrained, device=device)


def _labels_file(labels: PathLike | Sequence[str] | None, folder: Path) -> PathLike | None:
    """The file of labels; those given as a list are written to one."""
    if labels is None or isinstance(labels, str | os.PathLike):
        return labels
    path = folder / "labels.json"
    path.write_text(json.dumps(list(labels), ensure_ascii=False), encoding="utf-8")
    return path


def _fields_of(kind: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are fields of a dataclass; strings become paths, and lists tuples, where it asks for those."""
    types = {field.name: field.type for field in fields(kind)}
    given = {name: value for name, value in options.items() if name in types and value is not None}
    return {name: _as_type(value, types[name]) for name, value in given.items()}


def _as_type(value: Any, wanted: Any) -> Any:
    several = get_origin(wanted) is tuple
    values = [value] if isinstance(value, str | os.PathLike) or not several else value
    if Path in get_args(wanted):
        values = [Path(each) for each in values]
    return tuple(values) if several else values[0]


def _check_names(options: Mapping[str, Any], *kinds: Any) -> None:
    known = [field.name for kind in kinds for field in fields(kind)]
    for name in options:
        if name not in known:
            raise CorpusError(
                f"there is no option '{name}'{did_you_mean(name, known)}; expected among {', '.join(known)}"
            )
