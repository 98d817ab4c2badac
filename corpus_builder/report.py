"""One self-contained HTML page about a corpus: its entities, senses, neighbours, map, and what was dropped.

``write_report`` makes the file. The page asks the network for nothing: what it draws is one JSON script tag, and
``report.css`` and ``report.js`` beside this file go inline, named by their hashes in the page's security policy.
Words of a corpus are untrusted text: the template escapes them, and the script makes text nodes of them.
"""

import base64
import hashlib
import json
import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from corpus_builder import artifact, reuse
from corpus_builder.artifact import Artifact
from corpus_builder.config import DEFAULT_SPACY_MODEL, KINDS, SOURCES, CorpusConfig, CorpusError
from corpus_builder.index import build_index, nearest_others
from corpus_builder.plane import principal_plane

Row = dict[str, Any]

HERE = Path(__file__).parent
MAX_MB = 20.0
NEIGHBOURS = 8
BLOCK = 512
"""Entities whose neighbours are looked for at once."""
MOST_LABELS = 40
"""Labels shown of an entity."""
MOST_PHRASES = 200
"""Dropped phrases shown of a reason, and labels shown that are without an entity."""
GRID = 10_000
"""Steps of the map's longer side."""

MARKS: dict[str, tuple[str, str]] = {
    "object": ("#0072b2", "circle"),
    "animal": ("#d55e00", "circle"),
    "person": ("#cc79a7", "square"),
    "body part": ("#e69f00", "circle"),
    "food": ("#009e73", "circle"),
    "plant": ("#009e73", "triangle"),
    "scene": ("#e69f00", "square"),
    "substance": ("#0072b2", "square"),
    "activity": ("#56b4e9", "triangle"),
    "group": ("#d55e00", "triangle"),
    "other": ("#d55e00", "cross"),
    "phrase": ("#8a8d93", "cross"),
}
"""Colour (Okabe and Ito 2008, for every kind of colour vision) and shape of each kind of entity."""

SOURCE_WORDS = {
    "label": "a phrase of a label",
    "caption": "a phrase of the captions",
    "expansion": "an expansion of a label",
    "related": "what WordNet relates to a thing that a label names",
    "body_part": "a part of the body, added to every corpus",
    "list": "an entry of a list of words",
    "random": "a random noun of WordNet",
}


@dataclass(frozen=True)
class Written:
    """What a page holds: entities shown, of how many, and the size of the file in bytes."""

    shown: int
    entities: int
    bytes: int


def write_report(folder: Path, out: Path, *, max_mb: float = MAX_MB) -> Written:
    """Make the page of a corpus; the same corpus gives the same bytes.

    Args:
        folder: the corpus.
        out: the HTML file.
        max_mb: largest size of the file in millions of bytes; of a corpus that does not fit, the entities
            mentioned most are shown, and the page says how many of how many.

    Raises:
        CorpusError: a folder that is no corpus, an ``out`` that is a folder, or a size too small for any entity.
    """
    if out.is_dir():
        raise CorpusError(f"--out '{out}' is a folder, expected a file such as '{out / 'report.html'}'")
    corpus = artifact.open_corpus(folder)
    page = _page(corpus, reuse.stats(folder))
    data: Row = {
        "marks": [[kind, *MARKS[kind]] for kind in KINDS],
        "sources": [[source, SOURCE_WORDS[source]] for source in SOURCES],
        "total": len(corpus.table),
        "dropped": _dropped(corpus),
        "share": 0.0,
        "entities": [],
        "others": {},
    }
    # a thousand bytes for the numbers and the sentence that depend on what is shown
    room = int(max_mb * 1e6) - len(_render(page, data)) - 1000
    data |= _shown(corpus, room)
    if len(corpus.table) and not data["entities"]:
        least = (int(max_mb * 1e6) - room) / 1e6
        raise CorpusError(
            f"--max-mb is {max_mb:g}, but the page takes {least:.2f} MB before its first entity: ask for more"
        )
    content = _render(page, data)
    artifact.write_file(out, content)
    return Written(len(data["entities"]), len(corpus.table), len(content))


def _render(page: Mapping[str, Any], data: Row) -> bytes:
    environment = Environment(
        autoescape=True, loader=FileSystemLoader(HERE), trim_blocks=True, lstrip_blocks=True
    )
    # files of our own, not data: nothing in them needs escaping
    inline = {name: Markup((HERE / f"report.{name}").read_text("utf-8")) for name in ("css", "js")}
    policy = {name: _source_hash(text) for name, text in inline.items()}
    shown = {"shown": len(data["entities"]), "total": data["total"], "share": data["share"]}
    html = environment.get_template("report.html").render(
        page=page, inline=inline, policy=policy, data=Markup(_json(data)), most=MOST_PHRASES, **shown
    )
    return html.encode()


def _source_hash(text: str) -> str:
    """How a content security policy names a script or a style sheet that stands in the page itself."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(data: Any) -> str:
    """JSON that cannot end its script tag or open a comment, whatever the data."""
    text = json.dumps(data, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _size(data: Any) -> int:
    """Bytes of a value in the page's JSON, its comma included."""
    return len(_json(data).encode()) + 1


# The entities that fit, with their neighbours and places.


def _shown(corpus: Artifact, room: int) -> Row:
    """The largest part of the entities, most mentioned first, that takes at most ``room`` bytes.

    An entity names its neighbours by id. The names of those that are not shown themselves are in ``others``.
    """
    plane = principal_plane(corpus.embeddings)
    names = corpus.table["name"].to_pylist()
    entries: list[Row] = []
    seen: set[int] = set()
    waiting: dict[int, int] = {}  # neighbours not shown so far -> bytes of their names
    spent = fits = 0
    for entry in _entries(corpus, _on_grid(plane.places)):
        spent += _size(entry)
        if spent > room:
            break
        entries.append(entry)
        seen.add(entry["id"])
        waiting.pop(entry["id"], None)
        waiting |= {near: _size({str(near): names[near]}) for near, _ in entry["near"] if near not in seen}
        if spent + sum(waiting.values()) <= room:
            fits = len(entries)
    shown = entries[:fits]
    there = {entry["id"] for entry in shown}
    others = sorted({near for entry in shown for near, _ in entry["near"]} - there)
    return {
        "entities": shown,
        "others": {str(near): names[near] for near in others},
        "share": round(plane.share, 4),
    }


def _on_grid(places: np.ndarray) -> Int[np.ndarray, "entities 2"]:
    """Whole steps from the upper left corner, the same on both axes, so that distances keep their proportions."""
    low, high = places.min(axis=0), places.max(axis=0)
    longest = float((high - low).max()) or 1.0
    steps = (places - low) / longest * GRID
    steps[:, 1] = (high[1] - low[1]) / longest * GRID - steps[:, 1]
    return np.rint(steps).astype(np.int64)


def _entries(corpus: Artifact, places: Int[np.ndarray, "entities 2"]) -> Iterator[Row]:
    """Every entity as the page's script wants it, most mentioned first (ties: the lower id)."""
    table, vectors = corpus.table.drop_columns(["embedding"]), corpus.embeddings
    index = build_index(vectors, "flat").index
    senses = _by_entity(corpus, artifact.SENSES)
    merged = _by_entity(corpus, artifact.MERGED)
    order = np.argsort(-table["count"].to_numpy(), kind="stable")
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        hits = nearest_others(index, vectors, block, NEIGHBOURS)
        for position, row in enumerate(table.take(block).to_pylist()):
            number = row["entity_id"]
            near = zip(hits.ids[position].tolist(), hits.scores[position].tolist(), strict=True)
            yield _entry(row, senses[number], merged[number]) | {
                "near": [[other, round(cosine, 3)] for other, cosine in near],
                "at": places[number].tolist(),
            }


def _by_entity(corpus: Artifact, name: str) -> defaultdict[int, list[Row]]:
    rows: defaultdict[int, list[Row]] = defaultdict(list)
    for row in pq.read_table(corpus.folder / name).to_pylist():
        rows[row["entity_id"]].append(row)
    return rows


def _entry(row: Row, senses: Sequence[Row], merged: Sequence[Row]) -> Row:
    weighed = sorted(senses, key=lambda sense: (not sense["chosen"], -(sense["score"] or 0)))
    entry = {
        "kind": KINDS.index(row["kind"]),
        "sources": [SOURCES.index(source) for source in row["sources"]],
        "labels": row["labels"][:MOST_LABELS],
        "more_labels": max(0, len(row["labels"]) - MOST_LABELS),
        "senses": [
            [sense["sense"], sense["gloss"], _rounded(sense["score"], 2), sense["chosen"]]
            for sense in weighed
        ],
        "merged": [
            [item["name"], item["key"], item["reason"], _rounded(item["cosine"], 3), item["count"]]
            for item in merged
        ],
    }
    plain = ("key", "name", "aliases", "gloss", "lexname", "text", "count", "contexts")
    entry |= {name: row[name] for name in plain}
    return {"id": row["entity_id"]} | {
        name: value for name, value in entry.items() if value not in (None, [])
    }


def _rounded(number: float | None, digits: int) -> float | None:
    return None if number is None or not math.isfinite(number) else round(number, digits)


# What was dropped.


def _dropped(corpus: Artifact) -> Row:
    """Reasons with how often each spoke, and the phrases it dropped most, with where one was found."""
    table = pq.read_table(corpus.folder / artifact.CANDIDATES)
    table = table.filter(pc.is_valid(table["reason"]))
    finds: dict[tuple[str, str], Row] = {}
    for row in table.select(["reason", "phrase", "source", "count", "label", "contexts"]).to_pylist():
        fresh = {
            "count": 0,
            "source": row["source"],
            "where": row["label"] or next(iter(row["contexts"]), ""),
        }
        finds.setdefault((row["reason"], row["phrase"]), fresh)["count"] += row["count"]
    phrases: defaultdict[str, list[list[Any]]] = defaultdict(list)
    for (reason, phrase), find in finds.items():
        phrases[reason].append([phrase, find["count"], SOURCES.index(find["source"]), find["where"]])
    mentions = {reason: sum(row[1] for row in rows) for reason, rows in phrases.items()}
    order = sorted(phrases, key=lambda reason: (-mentions[reason], reason))
    return {
        "reasons": [[reason, mentions[reason], len(phrases[reason])] for reason in order],
        "rows": [
            [number, *row]
            for number, reason in enumerate(order)
            for row in sorted(phrases[reason], key=lambda row: (-row[1], row[0]))[:MOST_PHRASES]
        ],
    }


# What the head of the page says.


def _page(corpus: Artifact, stats: Mapping[str, Any]) -> Row:
    """The words and numbers of the page that stand in its HTML."""
    manifest = corpus.manifest
    inputs = [entry for name, entry in _in_order(manifest["inputs"]) if name != "wordnet"]
    bare = _labels_without_entity(corpus)
    counts = manifest["counts"]
    return {
        "origin": ", ".join(entry["file"] for entry in inputs) or "a list of words",
        "model": _model(manifest["model"]),
        "random": manifest["model"]["random_weights"],
        "stats": stats,
        "derived": manifest["config"].get("operation", {}).get("name"),
        "bare": bare[:MOST_PHRASES],
        "bare_count": max(len(bare), counts.get("labels_without_entity", 0)),
        "skipped": counts.get("skipped_captions", {}),
        "truncated": counts.get("texts_truncated", 0),
        "tallies": {
            "Kind": _falling(stats["by_kind"]),
            "First source": _falling(stats["by_source"]),
            "Lexicographer file of the sense": _falling(stats["by_lexname"]),
        },
        "facts": _facts(manifest),
    }


def _model(model: Mapping[str, Any]) -> str:
    weights = "RANDOM WEIGHTS" if model["random_weights"] else model["pretrained"] or "own weights"
    return f"{model['name']} ({weights})"


def _falling(tally: Mapping[str, int]) -> list[tuple[str, int]]:
    named = {"no sense" if name == "None" else name: number for name, number in tally.items()}
    return Counter(named).most_common()


def _labels_without_entity(corpus: Artifact) -> list[str]:
    """Labels that gave a phrase, but none that became an entity of this corpus."""
    labels = pq.read_table(corpus.folder / artifact.CANDIDATES, columns=["label"])["label"]
    covered = set(pc.list_flatten(corpus.table["labels"]).to_pylist())
    return sorted(set(labels.unique().drop_null().to_pylist()) - covered)


def _facts(manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """Name -> lines of text: what the corpus is and how to make it again."""
    model = manifest["model"]
    config = manifest["config"].get("operation", manifest["config"])
    index = manifest.get("index", {})
    return {
        "Make it again": [remake(manifest)],
        "Fingerprint": [manifest["fingerprint"]],
        "Made": [f"{manifest['created']} by {manifest['package']}"],
        "Model": [f"{_model(model)}, {model['embed_dim']} numbers, weights {model['weights_sha256']}"],
        "Inputs": [
            f"{name}: {entry['file']} {entry['sha256']}" for name, entry in _in_order(manifest["inputs"])
        ],
        "Settings": _settings(config),
        "Index": _settings(index),
    }


def _settings(values: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]


def _in_order(inputs: Mapping[str, Row]) -> list[tuple[str, Row]]:
    """The inputs by name, numbered ones by their number."""
    stem = {name: name.rstrip("0123456789") for name in inputs}
    return sorted(inputs.items(), key=lambda item: (stem[item[0]], len(item[0]), item[0]))


def remake(manifest: Mapping[str, Any]) -> str:
    """The command that makes a corpus again, files named as the manifest does: without their folders."""
    inputs = [(name.rstrip("0123456789"), entry["file"]) for name, entry in _in_order(manifest["inputs"])]
    operation = manifest["config"].get("operation", {"name": "build"})
    named = [file for name, file in inputs if name in POSITIONAL]
    flags = [
        word for name, file in inputs if name not in (*POSITIONAL, "wordnet") for word in _flag(name, file)
    ]
    if operation["name"] not in ("subset", "merge"):
        flags += _flag("model", manifest["model"]["name"]) + _flag(
            "pretrained", manifest["model"]["pretrained"]
        )
    told = {
        name: value
        for name, value in operation.items()
        if name != "name" and value not in (None, "", [], 0, True)
    }
    settings = told | (_unusual(manifest["config"]) if operation["name"] in ("build", "import") else {})
    flags += [word for name, value in settings.items() for word in _flag(name, value)]
    return shlex.join(["corpus-builder", operation["name"], *named, *flags, "--out", "corpus"])


POSITIONAL = ("corpus", "words")
"""Inputs that commands take without a flag."""


def _unusual(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a build or an import that are not the default, as its flags."""
    usual = {field.name: field.default for field in fields(CorpusConfig)}
    given = {name: value for name, value in config.items() if name in usual and value != usual[name]}
    spacy = (given.pop("spacy_model", None) or DEFAULT_SPACY_MODEL).split()[0]
    given |= {"spacy_model": spacy} if spacy != DEFAULT_SPACY_MODEL else {}
    sources = given.pop("sources", None)
    return given | ({"sources": ",".join(sources)} if sources else {})


def _flag(name: str, value: Any) -> list[str]:
    """A setting as the command line spells it; a list is its singular, repeated."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [word for item in value for word in (f"--{name.removesuffix('s')}", str(item))]
    return [] if value is None else [f"--{name}", str(value)]
