"""One self-contained HTML file: regions and their entities, predictions, and what carried them.

``gather.py`` joins alignments, predictions and videos into cards; ``write_report`` makes the file. The page needs no
network: pictures are data URIs, cards are one JSON script tag, and ``report.css`` and ``report.js`` beside this file
go inline.
"""

import base64
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from pipelines.gather import Entity, Mistakes, Reasons, ReportError, Table, VideoCard, Without, digest
from pipelines.mistakes import ConfusedPair
from pipelines.windows import Action

HERE = Path(__file__).parent
LEAD = (
    "Each frame is cut into regions, each region is matched with the entity whose text lies nearest to it, "
    "and the prediction is read from where those entities are and how they move."
)
LEAD_WHOLE_FRAMES = (
    "The prediction is read from whole frames, whose embeddings are compared with the texts of the labels. Regions and "
    "the entities nearest to them are shown beside it; they play no part in it."
)
MAX_BYTES = 20_000_000
ALTERNATIVES = 5  # entities shown per region
LONG_TABLE = 14  # rows; longer tables are folded up, after the others
QUALITIES = (82, 68, 54, 40)  # WebP, tried from the left until the file fits its budget

# Largest least distance under normal and red-green-deficient sight that a search among 36 published colours
# found (OKLab 0.10; tests/pipelines/test_report.py measures it).
PALETTE = (
    "#56b4e9 #aa4499 #f0e442 #661100 #ee7733 #b8f2e6 #332288 #882255 #44aa99 #5d3fd3 #117733 #f2b701".split()
)
ORIGINS = {
    "label": "a phrase of a label",
    "caption": "a phrase of the captions",
    "expansion": "an expansion of a label",
    "related": "a thing WordNet relates to a label",
    "body_part": "a body part, added to every corpus",
    "list": "a word of a list",
    "random": "a noun drawn at random, for comparison",
}


NO_MISTAKES = Mistakes()

# Colours.


def entity_slots(weights: Mapping[int, float], entities: Sequence[Entity]) -> dict[int, int]:
    """A slot for each entity: colour ``PALETTE[slot % len(PALETTE)]``, another texture for every further lap.

    An entity's hash says where it would like to go; the heavier ones choose first and later ones move on, so
    that no two entities look alike while slots last.
    """
    size, taken, slots = len(PALETTE), Counter[int](), {}
    for entity in sorted(weights, key=lambda entity: (-weights[entity], entities[entity].key)):
        wish = int(digest(entities[entity].key), 16) % size
        colour = min(range(wish, wish + size), key=lambda colour: taken[colour % size]) % size
        slots[entity] = colour + size * taken[colour]
        taken[colour] += 1
    return slots


# Writing.


def write_report(
    out: Path,
    *,
    title: str,
    cards: Sequence[VideoCard],
    tables: Sequence[Table],
    facts: Mapping[str, str],
    entities: Sequence[Entity],
    notices: Sequence[str] = (),
    lead: str = LEAD,
    max_bytes: int = MAX_BYTES,
    mistakes: Mistakes = NO_MISTAKES,
    config: str = "",
    actions: Sequence[Action] = (),
) -> Path:
    """Write the report atomically and return its path; the same input gives the same bytes.

    Beyond ``max_bytes`` pictures are compressed harder, then videos are left out, and the report says so.
    ``mistakes`` are those of all videos, not only of the cards; ``config`` is a text to fold up at the end,
    ``actions`` the timeline of long videos whose windows the cards are.

    Raises:
        ReportError: even without videos the report is too large.
    """
    page = _Page(title, lead, list(tables), dict(facts), list(notices), config, mistakes, list(actions))
    for quality, count in _attempts(len(cards)):
        html = _render(page, cards[:count], len(cards), entities, quality).encode()
        if len(html) <= max_bytes:
            out.parent.mkdir(parents=True, exist_ok=True)
            _publish(out, html)
            return out
    raise ReportError(
        f"the report takes {len(html):,} bytes without any video, the budget is {max_bytes:,}; "
        "hand in fewer tables or a larger budget"
    )


@dataclass(frozen=True)
class _Page:
    title: str
    lead: str
    tables: list[Table]
    facts: dict[str, str]
    notices: list[str]
    config: str
    mistakes: Mistakes
    actions: list[Action]


def _attempts(cards: int) -> Iterator[tuple[int, int]]:
    """Picture quality and number of cards, from the best report to the smallest."""
    for quality in QUALITIES:
        yield quality, cards
    while cards:
        cards = cards * 3 // 4
        yield QUALITIES[-1], cards


def _render(
    page: _Page, cards: Sequence[VideoCard], asked: int, entities: Sequence[Entity], quality: int
) -> str:
    page = replace(page, notices=page.notices + _budget_notices(quality, len(cards), asked))
    environment = Environment(
        autoescape=True, loader=FileSystemLoader(HERE), trim_blocks=True, lstrip_blocks=True
    )
    # Files of our own, not data: nothing in them needs escaping.
    inline = {name: Markup((HERE / f"report.{name}").read_text("utf-8")) for name in ("css", "js")}  # noqa: S704
    data = _script_json(payload(cards, entities, quality, page.mistakes) | _timeline_json(page.actions))
    tables = [_formatted(table) for table in page.tables]
    by_class = _formatted(page.mistakes.by_class) if page.mistakes.by_class else None
    return environment.get_template("report.html").render(
        page=page, tables=tables, by_class=by_class, inline=inline, data=data
    )


def _budget_notices(quality: int, shown: int, asked: int) -> list[str]:
    notices = []
    if quality < QUALITIES[0]:
        notices.append(
            f"Pictures are compressed harder than usual (quality {quality}) to keep this file small."
        )
    if shown < asked:
        notices.append(f"{shown} of {asked} videos are shown: the others did not fit the size of this file.")
    return notices


def _script_json(data: Any) -> Markup:
    """JSON that cannot end its script tag or open a comment, whatever the data."""
    text = json.dumps(data, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704


def payload(
    cards: Sequence[VideoCard],
    entities: Sequence[Entity],
    quality: int = QUALITIES[0],
    mistakes: Mistakes = NO_MISTAKES,
) -> dict[str, Any]:
    """What the page's script draws: the cards, and the entities that they mention.

    A frame is {t: seconds, src: data URI or null, map: region of each patch, top: per region [ids, scores]}.
    """
    weights: Counter[int] = Counter()
    for card in cards:
        weights.update(dict.fromkeys(card.topk_entity[:, :, :ALTERNATIVES].ravel().tolist(), 0))
        weights.update(dict.fromkeys((carrier.entity_id for carrier in card.reasons.carriers), 0))
        weights.update(card.entity_patches())
    if weights and max(weights) >= len(entities):
        raise ReportError(
            f"cards name entity {max(weights)}, the list has {len(entities)}; pass load_entities()"
        )
    slots = entity_slots(_prominence(cards, weights), entities)
    return {
        "palette": PALETTE,
        "origins": ORIGINS,
        "entities": {str(i): _entity_json(entities[i], slots[i], weights[i]) for i in sorted(weights)},
        "cards": [_card_json(card, quality) for card in cards],
        "confusions": vars(mistakes.confusions) if mistakes.confusions else None,
        "pairs": [_pair_json(pair, quality) for pair in mistakes.pairs],
    }


def _prominence(cards: Sequence[VideoCard], patches: Mapping[int, int]) -> dict[int, float]:
    """Who chooses a colour first: what carried predictions, then what covers much."""
    carried: dict[int, float] = defaultdict(float)
    for card in cards:
        for carrier in card.reasons.carriers:
            carried[carrier.entity_id] += max(carrier.effect, 0.0)
    most = 1 + max(patches.values(), default=0)
    return {entity: carried[entity] + count / most * 1e-3 for entity, count in patches.items()}


def _timeline_json(actions: Sequence[Action]) -> dict[str, Any]:
    """Per video its actions, [start, end, label, probability, windows], times in seconds."""
    videos: dict[str, list[list[Any]]] = defaultdict(list)
    for one in actions:
        videos[one.video].append([one.start_s, one.end_s, one.label, round(one.probability, 4), one.windows])
    told = [{"video": Path(path).name, "actions": stretches} for path, stretches in videos.items()]
    return {"timeline": told} if actions else {}


def _pair_json(pair: ConfusedPair, quality: int) -> dict[str, Any]:
    shown = [
        {
            "id": one.video_id,
            "p": round(float(one.probability), 4),
            "truth": None if one.truth_probability is None else round(float(one.truth_probability), 4),
            "src": None if one.frame is None else _data_uri(one.frame, quality),
        }
        for one in pair.shown
    ]
    return {"label": pair.label, "predicted": pair.predicted, "count": pair.count, "shown": shown}


def _entity_json(entity: Entity, slot: int, patches: int) -> dict[str, Any]:
    content = {name: getattr(entity, name) for name in ("name", "source", "sense", "gloss")}
    return {**content, "labels": list(entity.labels), "slot": slot, "patches": patches}


def _card_json(card: VideoCard, quality: int) -> dict[str, Any]:
    content = {name: getattr(card, name) for name in ("label", "split", "predicted", "correct", "note")}
    return {
        **content,
        "id": card.video_id,
        "grid": list(card.grid),
        "top": [[label, round(float(probability), 4)] for label, probability in card.topk],
        "frames": [_frame_json(card, i, quality) for i in range(len(card.times_s))],
        **_reasons_json(card.reasons),
    }


def _reasons_json(reasons: Reasons) -> dict[str, Any]:
    """The best labels with the effect of each frame, and the entities with their effect on each label."""
    carriers = [
        {
            "entity": carrier.entity_id,
            "effects": [round(effect, 4) for effect in carrier.effects],
            "regions": [list(pair) for pair in carrier.regions],
            "without": _without_json(carrier.without),
        }
        for carrier in reasons.carriers
    ]
    return {
        "explained": list(reasons.labels),
        "carriers": carriers,
        "untried": reasons.untried,
        "frameEffects": [[round(effect, 4) for effect in effects] for effects in reasons.frame_effects],
        "framesWithout": [_without_json(without) for without in reasons.frames_without],
    }


def _without_json(without: Without) -> list[Any]:
    return [without.label, round(without.probability, 4), round(without.kept, 4)]


def _frame_json(card: VideoCard, frame: int, quality: int) -> dict[str, Any]:
    ids = card.topk_entity[frame, :, :ALTERNATIVES].tolist()
    scores = np.round(card.topk_score[frame, :, :ALTERNATIVES].astype(np.float64), 3).tolist()
    return {
        "t": round(card.times_s[frame], 3),
        "src": _data_uri(card.frames[frame], quality) if card.frames else None,
        "map": card.patch_region[frame].tolist(),
        "top": [list(pair) for pair in zip(ids, scores, strict=True)],
    }


def _data_uri(rgb: np.ndarray, quality: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _formatted(table: Table) -> dict[str, Any]:
    """A table as text, and which columns hold numbers (given as such, or as text of digits)."""
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    texts = [_column(values) for values in columns]
    numeric = [all(v is None or not isinstance(v, str) or v.isdigit() for v in values) for values in columns]
    rows = list(zip(*texts, strict=True))
    return {**vars(table), "rows": rows, "numeric": numeric, "long": len(rows) > LONG_TABLE}


def _column(values: Sequence[str | float | None]) -> list[str]:
    """One number of decimals a column: three where all are fractions of one, else one."""
    fractions = all(abs(value) <= 1 for value in values if isinstance(value, int | float))
    return [_cell(value, 3 if fractions else 1) for value in values]


def _cell(value: str | float | None, decimals: int) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.{decimals}f}"


def _publish(target: Path, content: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
