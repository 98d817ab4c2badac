"""The page of a corpus against the corpus: what goes in comes out, nothing escapes, and it can be used."""

import html.parser
import json
import re
import shlex
import shutil
from itertools import combinations

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from corpus_builder import artifact, build, report, reuse
from corpus_builder.cli import app
from corpus_builder.config import KINDS, SOURCES, CorpusConfig, CorpusError
from corpus_builder.index import build_index, index_bytes
from corpus_builder.report import write_report
from corpus_builder.tables import with_embeddings

EVIL = "playing </script><img src=x onerror=alert(1)><!--<script> trumpet"
RIGHT_TO_LEFT = "playing \u202eguitar שלום عليكم"
LABELS = [
    "playing guitar",
    "swinging baseball bat",
    "feeding horse",
    "grooming horse",
    "cutting nails",
    "zumba",
    EVIL,
    RIGHT_TO_LEFT,
]
ROWS = 20_000


@pytest.fixture(scope="module")
def corpus(shared, tiny_clip, tmp_path_factory):
    """A real corpus of nasty labels and a few captions, some of them too rare."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "labels.json").write_text(json.dumps(LABELS))
    captions = ["a horse in a field", "two horses and a dog", "a dog with a ball", "", "a <b>violin</b>"]
    (folder / "captions.txt").write_text("\n".join(captions) + "\n")
    inputs = build.Inputs(
        labels=folder / "labels.json", captions=folder / "captions.txt", nltk_data=shared / "nltk_data"
    )
    config = CorpusConfig(taggers="wordnet", min_count=2, merge_above=0.9999)
    build.build_corpus(inputs, config, tiny_clip, None, folder / "corpus", device="cpu")
    return folder / "corpus"


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(corpus, out)
    return out


class Reader(html.parser.HTMLParser):
    """Tags, texts and the data script of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.scripts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        (self.scripts if self.cdata_elem == "script" else self.texts).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def data_of(path):
    text = path.read_text("utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))


def rows(folder, name=artifact.ENTITIES):
    return pq.read_table(folder / name).to_pylist()


def crowd(folder, count, dim=16):
    """A corpus of ``count`` made-up entities with random embeddings and random numbers of mentions."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    times = rng.zipf(1.6, count).clip(max=10_000)
    table = [
        {
            "entity_id": i,
            "key": f"thing{i}.n.01",
            "name": f"thing {i}",
            "aliases": [],
            "kind": KINDS[i % len(KINDS)],
            "source": SOURCES[1],
            "sources": [SOURCES[1]],
            "sense": f"thing{i}.n.01",
            "gloss": f"the kind of thing that has the number {i} and looks like all the others of its kind",
            "lexname": "noun.artifact",
            "text": f"thing {i}: the kind of thing that has the number {i} and looks like all the others",
            "count": int(times[i]),
            "labels": [],
            "contexts": [f"a man holds thing {i} in front of a building", f"thing {i} lies on a table"],
        }
        for i in range(count)
    ]
    told = {
        artifact.SENSES: artifact.table_of([], artifact.SENSES_SCHEMA),
        artifact.MERGED: artifact.table_of([], artifact.MERGED_SCHEMA),
        artifact.CANDIDATES: artifact.table_of([], artifact.CANDIDATES_SCHEMA),
    }
    model = {"name": "none", "pretrained": "none", "weights_sha256": "0" * 64, "random_weights": True}
    facts = {"config": {}, "inputs": {}, "counts": {}, "model": model | {"embed_dim": dim}}
    entities = with_embeddings(table, vectors, artifact.entities_schema(dim))
    artifact.write_corpus(folder, entities, index_bytes(build_index(vectors).index), told, facts)
    return folder


# What the page says.


@pytest.mark.shared
def test_every_entity_is_there_with_all_that_the_corpus_knows(corpus, made):
    data = data_of(made)
    shown = {entity["id"]: entity for entity in data["entities"]}
    table = rows(corpus)
    assert sorted(shown) == [row["entity_id"] for row in table] and data["total"] == len(table)
    for row in table:
        entity = shown[row["entity_id"]]
        for name in ("key", "name", "gloss", "lexname", "text", "count"):
            assert entity.get(name) == row[name]
        for name in ("aliases", "labels", "contexts"):
            assert entity.get(name, []) == row[name]
        assert KINDS[entity["kind"]] == row["kind"]
        assert [SOURCES[i] for i in entity["sources"]] == row["sources"]
    times = [entity["count"] for entity in data["entities"]]
    assert times == sorted(times, reverse=True)


@pytest.mark.shared
def test_senses_and_merges_are_those_of_the_corpus_chosen_first(corpus, made):
    shown = {entity["id"]: entity for entity in data_of(made)["entities"]}
    for name, column in ((artifact.SENSES, "senses"), (artifact.MERGED, "merged")):
        table = rows(corpus, name)
        assert len(table) == sum(len(entity.get(column, [])) for entity in shown.values())
    for row in rows(corpus, artifact.SENSES):
        score = None if row["score"] is None else round(row["score"], 2)
        assert [row["sense"], row["gloss"], score, row["chosen"]] in shown[row["entity_id"]]["senses"]
    several = [entity["senses"] for entity in shown.values() if len(entity.get("senses", [])) > 1]
    assert several and all(senses[0][3] and not any(s[3] for s in senses[1:]) for senses in several)


@pytest.mark.shared
def test_what_was_merged_is_told_with_its_cosine(corpus, tmp_path):
    opened = artifact.open_corpus(corpus)
    gone = {"entity_id": 2, "key": "gone.n.01", "name": "gone", "reason": "near-duplicate", "cosine": 0.98765}
    told = {name: pq.read_table(corpus / name) for name in (artifact.SENSES, artifact.CANDIDATES)}
    told[artifact.MERGED] = artifact.table_of([gone | {"count": 4}], artifact.MERGED_SCHEMA)
    facts = {name: opened.manifest[name] for name in ("config", "inputs", "model", "counts")}
    index = (corpus / artifact.INDEX).read_bytes()
    artifact.write_corpus(tmp_path / "c", opened.table, index, told, facts)
    write_report(tmp_path / "c", tmp_path / "r.html")
    merged = {e["id"]: e["merged"] for e in data_of(tmp_path / "r.html")["entities"] if "merged" in e}
    assert merged == {2: [["gone", "gone.n.01", "near-duplicate", 0.988, 4]]}


@pytest.mark.shared
def test_neighbours_are_those_of_every_cosine_computed(corpus, made):
    vectors = artifact.open_corpus(corpus).embeddings.astype(np.float64)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    for entity in data_of(made)["entities"]:
        ids = [other for other, _ in entity["near"]]
        best = np.sort(cosines[entity["id"]])[::-1][: report.NEIGHBOURS]
        np.testing.assert_allclose(cosines[entity["id"], ids], best, atol=1e-5)
        np.testing.assert_allclose([cosine for _, cosine in entity["near"]], best, atol=6e-4)


@pytest.mark.shared
def test_places_on_the_map_keep_the_proportions_of_the_plane(corpus, made):
    data = data_of(made)
    vectors = artifact.open_corpus(corpus).embeddings.astype(np.float64)
    centred = vectors - vectors.mean(axis=0)
    left, spread, _ = np.linalg.svd(centred, full_matrices=False)
    plane = left[:, :2] * spread[:2]
    at = np.array([e["at"] for e in sorted(data["entities"], key=lambda entity: entity["id"])])
    drawn = np.linalg.norm(at[:, None] - at, axis=-1)
    true = np.linalg.norm(plane[:, None] - plane, axis=-1)
    np.testing.assert_allclose(drawn / report.GRID, true / np.ptp(plane, axis=0).max(), atol=3e-4)
    assert data["share"] == pytest.approx((spread[:2] ** 2).sum() / (spread**2).sum(), abs=1e-4)
    assert at.min() == 0 and at.max() == report.GRID


@pytest.mark.shared
def test_what_was_dropped_is_counted_by_reason_with_its_phrases(corpus, made):
    dropped = data_of(made)["dropped"]
    table = [row for row in rows(corpus, artifact.CANDIDATES) if row["reason"] is not None]
    for reason, mentions, phrases in dropped["reasons"]:
        finds = [row for row in table if row["reason"] == reason]
        assert mentions == sum(row["count"] for row in finds)
        assert phrases == len({row["phrase"] for row in finds})
    assert {reason for reason, _, _ in dropped["reasons"]} == {row["reason"] for row in table}
    told = {(dropped["reasons"][number][0], phrase) for number, phrase, *_ in dropped["rows"]}
    assert told == {(row["reason"], row["phrase"]) for row in table}
    assert "too rare" in {reason for reason, _, _ in dropped["reasons"]}


@pytest.mark.shared
def test_the_head_names_model_fingerprint_inputs_settings_and_sizes(corpus, made):
    manifest = artifact.open_corpus(corpus).manifest
    text = Reader(made.read_text("utf-8")).text
    for told in (manifest["fingerprint"], manifest["model"]["weights_sha256"], manifest["model"]["name"]):
        assert told in text
    for name, entry in manifest["inputs"].items():
        assert f"{name}: {entry['file']} {entry['sha256']}" in text
    assert "min_count = 2" in text and manifest["created"] in text
    for name, number in manifest["counts"]["skipped_captions"].items():
        assert f"{number} × {name}" in text
    for kind, number in reuse.stats(corpus)["by_kind"].items():
        assert f"{kind} {number}" in text
    assert "RANDOM WEIGHTS" not in text


@pytest.mark.shared
def test_the_command_on_the_page_makes_the_same_corpus(
    corpus, made, shared, tiny_clip, tmp_path, monkeypatch
):
    for name in ("labels.json", "captions.txt"):
        shutil.copy(corpus.parent / name, tmp_path / name)
    clip = tiny_clip.removeprefix("local-dir:")
    shutil.copytree(clip, tmp_path / clip.rsplit("/", 1)[1])
    monkeypatch.chdir(tmp_path)
    command = report.remake(artifact.open_corpus(corpus).manifest)
    assert command in Reader(made.read_text("utf-8")).text
    program, *words = shlex.split(command)
    done = CliRunner().invoke(app, [*words, "--nltk-data", str(shared / "nltk_data"), "--quiet"])
    assert program == "corpus-builder" and done.exit_code == 0, done.output
    assert artifact.open_corpus(tmp_path / "corpus").fingerprint == artifact.open_corpus(corpus).fingerprint


@pytest.mark.shared
def test_the_command_of_a_subset_makes_the_same_subset(corpus, tmp_path, monkeypatch):
    selection = reuse.Selection(kinds=("object", "body part"), top=7)
    shutil.copytree(corpus, tmp_path / "parent")
    monkeypatch.chdir(tmp_path)
    reuse.subset(tmp_path / "parent", tmp_path / "part", selection)
    part = artifact.open_corpus(tmp_path / "part")
    done = CliRunner().invoke(app, shlex.split(report.remake(part.manifest))[1:])
    assert done.exit_code == 0, done.output
    assert artifact.open_corpus(tmp_path / "corpus").fingerprint == part.fingerprint
    write_report(tmp_path / "part", tmp_path / "part.html")
    assert "By subset from parent" in Reader((tmp_path / "part.html").read_text()).text


@pytest.mark.shared
def test_the_command_of_words_and_of_random_nouns_makes_the_same(
    corpus, shared, tiny_clip, tmp_path, monkeypatch
):
    clip = tiny_clip.removeprefix("local-dir:")
    shutil.copytree(clip, tmp_path / clip.rsplit("/", 1)[1])
    shutil.copytree(corpus, tmp_path / "true")
    (tmp_path / "words.txt").write_text("guitar\nbat\tan animal that flies at night\nball.n.01\nzzyx\n")
    monkeypatch.chdir(tmp_path)
    here = ["--nltk-data", str(shared / "nltk_data"), "--quiet"]
    for given in (
        ["import", "words.txt", "--max-words", "3"],
        ["random", "--size", "9", "--seed", "4", "--not-in", "true"],
    ):
        first = [*given, "--model", f"local-dir:{clip.rsplit('/', 1)[1]}", "--out", given[0], *here]
        done = CliRunner().invoke(app, first)
        assert done.exit_code == 0, done.output
        made = artifact.open_corpus(tmp_path / given[0])
        done = CliRunner().invoke(app, [*shlex.split(report.remake(made.manifest))[1:], *here])
        assert done.exit_code == 0, done.output
        assert artifact.open_corpus(tmp_path / "corpus").fingerprint == made.fingerprint


# What the page must never do.


@pytest.mark.shared
def test_labels_cannot_become_markup(corpus, made):
    page = Reader(made.read_text("utf-8"))
    assert EVIL in {label for entity in data_of(made)["entities"] for label in entity.get("labels", [])}
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "b")]
    assert not [
        attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)
    ]
    assert "<!--" not in made.read_text("utf-8")


@pytest.mark.shared
def test_the_page_names_no_address_and_its_policy_names_its_own_script_and_style(made):
    text = made.read_text("utf-8")
    page = Reader(text)
    for tag, attributes in page.tags:
        assert not attributes.get("src") and attributes.get("href", "data:,") == "data:,", tag
    assert "url(" not in text and "@import" not in text
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for name, kind in (("css", "style-src"), ("js", "script-src")):
        own = (report.HERE / f"report.{name}").read_text("utf-8")
        assert f"{kind} '{report._source_hash(own)}'" in policy


@pytest.mark.shared
def test_the_same_corpus_gives_the_same_bytes_wherever_it_lies(corpus, made, tmp_path):
    shutil.copytree(corpus, tmp_path / "moved")
    write_report(tmp_path / "moved", tmp_path / "deep" / "again.html")
    assert (tmp_path / "deep" / "again.html").read_bytes() == made.read_bytes()


def test_random_weights_are_marked(tmp_path):
    write_report(crowd(tmp_path / "c", 3), tmp_path / "r.html")
    text = Reader((tmp_path / "r.html").read_text()).text
    assert text.count("RANDOM WEIGHTS") >= 3 and "every cosine mean nothing" in text


# Sizes.


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_tiny_corpus_has_a_page(tmp_path, count):
    written = write_report(crowd(tmp_path / "c", count), tmp_path / "r.html")
    data = data_of(tmp_path / "r.html")
    assert written.shown == count
    assert all(len(entity["near"]) == count - 1 for entity in data["entities"] if "near" in entity)


def test_of_a_large_corpus_the_most_mentioned_are_shown(tmp_path):
    folder = crowd(tmp_path / "c", 3000)
    written = write_report(folder, tmp_path / "r.html", max_mb=0.6)
    data = data_of(tmp_path / "r.html")
    assert written.bytes == (tmp_path / "r.html").stat().st_size <= 600_000
    assert 0 < written.shown == len(data["entities"]) < 3000
    assert f"{written.shown:,} of 3,000 entities are shown" in Reader((tmp_path / "r.html").read_text()).text
    order = sorted(rows(folder), key=lambda row: (-row["count"], row["entity_id"]))
    assert [e["id"] for e in data["entities"]] == [row["entity_id"] for row in order[: written.shown]]
    near = {other for entity in data["entities"] for other, _ in entity["near"]}
    named = {int(other): name for other, name in data["others"].items()}
    assert near - {entity["id"] for entity in data["entities"]} == named.keys()
    assert all(name == f"thing {other}" for other, name in named.items())
    # the room is used: a page that may be a little larger shows more
    assert written.bytes > 0.9 * 600_000


def test_a_size_that_holds_nothing_is_refused(tmp_path):
    folder = crowd(tmp_path / "c", 3)
    with pytest.raises(
        CorpusError, match="--max-mb is 0.01, but the page takes .* MB before its first entity"
    ):
        write_report(folder, tmp_path / "r.html", max_mb=0.01)
    assert not (tmp_path / "r.html").exists()
    with pytest.raises(CorpusError, match="is a folder, expected a file such as"):
        write_report(folder, tmp_path)


def test_the_command_says_what_it_wrote(tmp_path):
    crowd(tmp_path / "c", 3)
    done = CliRunner().invoke(app, ["report", str(tmp_path / "c"), "--out", str(tmp_path / "r.html")])
    assert done.exit_code == 0 and "3 of 3 entities" in done.output
    done = CliRunner().invoke(app, ["report", str(tmp_path / "none"), "--out", str(tmp_path / "r.html")])
    assert done.exit_code == 1 and "found no manifest.json" in done.output


# Colours.


def _oklab(linear):
    to_cone = [[0.41222, 0.53633, 0.05145], [0.2119, 0.6807, 0.1074], [0.0883, 0.28172, 0.62998]]
    to_lab = [[0.21045, 0.79362, -0.00407], [1.978, -2.42859, 0.45059], [0.0259, 0.78277, -0.80868]]
    return np.cbrt(np.clip(linear, 0, 1) @ np.array(to_cone).T) @ np.array(to_lab).T


def test_kinds_of_one_shape_stay_apart_without_red_or_green_cones():
    assert list(report.MARKS) == list(KINDS) and len(set(report.MARKS.values())) == len(KINDS)
    # linear-light dichromacy matrices of Machado et al. 2009, severity 1
    protan = [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    for one, other in combinations(report.MARKS.values(), 2):
        if one[1] != other[1]:
            continue
        srgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (one[0], other[0])]) / 255
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        for sight in (np.eye(3), protan, deutan):
            first, second = _oklab(linear @ np.array(sight).T)
            assert np.linalg.norm(first - second) > 0.08, (one, other)


# The page in a browser.

WIDE = {"viewport": {"width": 1440, "height": 1000}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def names(page):
    return page.locator("#list .row .name").all_inner_texts()


def chosen(page):
    return page.locator("#detail h3").inner_text()


@pytest.mark.shared
def test_the_page_shows_every_entity_and_its_neighbours_lead_on(made, open_page):
    page = open_page(made, **WIDE)
    data = data_of(made)
    assert sorted(names(page)) == sorted(entity["name"] for entity in data["entities"])
    page.locator(".row", has_text="horse").first.click()
    assert chosen(page) == "horse" and page.url.endswith("#horse.n.01")
    horse = next(entity for entity in data["entities"] if entity["key"] == "horse.n.01")
    assert page.locator(".senses li").count() == len(horse["senses"])
    assert page.locator(".senses li.chosen .id").inner_text() == "horse.n.01"
    assert page.locator(".near .number").all_inner_texts() == [f"{c:.3f}" for _, c in horse["near"]]
    neighbour = page.locator(".near button").first
    name = neighbour.inner_text()
    neighbour.click()
    assert chosen(page) == name and page.locator('.row[aria-current="true"] .name').inner_text() == name


@pytest.mark.shared
def test_search_and_filters_narrow_the_list(made, open_page):
    page = open_page(made, **WIDE)
    entities = data_of(made)["entities"]
    page.keyboard.press("/")
    page.keyboard.type("GROOMING")
    assert names(page) == ["horse"] and page.locator("#count").inner_text().startswith("1 of ")
    page.locator("#text").fill("")
    page.locator("#kind").select_option("body part")
    body = [entity["name"] for entity in entities if KINDS[entity["kind"]] == "body part"]
    assert sorted(names(page)) == sorted(body)
    page.locator("#source").select_option("label")
    label = SOURCES.index("label")
    assert sorted(names(page)) == sorted(
        entity["name"]
        for entity in entities
        if KINDS[entity["kind"]] == "body part" and label in entity["sources"]
    )
    page.locator("#text").fill("no such thing")
    assert page.locator("#nothing").is_visible()
    page.locator("#reset").click()
    assert len(names(page)) == len(entities)
    page.locator("#sense").select_option("without")
    assert sorted(names(page)) == sorted(entity["name"] for entity in entities if "gloss" not in entity)
    page.locator("#sense").select_option("")
    page.locator("#legend button", has_text="animal").click()
    assert page.locator("#kind").input_value() == "animal" and "horse" in names(page)


def on_screen(page, entities, entity):
    """Where the page draws an entity, from its place in the data alone."""
    box = page.locator("#map").bounding_box()
    reach = np.array([other["at"] for other in entities]).max(axis=0)
    size = np.array([box["width"], box["height"]])
    scale = ((size - 52) / np.maximum(1, reach)).min()
    return np.array([box["x"], box["y"]]) + (size - reach * scale) / 2 + np.array(entity["at"]) * scale


def alone(entities):
    """The entity that lies farthest from all others on the map."""
    at = np.array([entity["at"] for entity in entities])
    apart = np.linalg.norm(at[:, None] - at, axis=-1) + 1e9 * np.eye(len(at))
    return entities[apart.min(axis=1).argmax()]


@pytest.mark.shared
def test_the_map_names_what_is_pointed_at_and_a_click_chooses_it(made, open_page):
    page = open_page(made, **WIDE)
    entities = data_of(made)["entities"]
    page.locator("#map").scroll_into_view_if_needed()
    target = alone(entities)
    spot = on_screen(page, entities, target)
    page.mouse.move(*spot)
    assert page.locator("#tip b").inner_text() == target["name"]
    page.mouse.click(*spot)
    assert chosen(page) == target["name"]
    # a filtered entity is no target
    other = next(kind for kind in KINDS if kind != KINDS[target["kind"]] and kind in ("animal", "body part"))
    page.locator("#kind").select_option(other)
    page.mouse.move(5, 5)
    page.mouse.move(*on_screen(page, entities, target))
    assert page.locator("#tip").is_hidden() or page.locator("#tip b").inner_text() != target["name"]


@pytest.mark.shared
def test_the_map_is_painted(made, open_page):
    page = open_page(made, **WIDE)
    page.wait_for_timeout(200)
    colours = page.evaluate(
        "(() => { const c = document.getElementById('map');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "const seen = new Set(); for (let i = 0; i < d.length; i += 4)"
        "if (d[i + 3] === 255) seen.add(`${d[i]},${d[i + 1]},${d[i + 2]}`); return seen.size; })()"
    )
    assert colours > 10


@pytest.mark.shared
def test_the_page_works_by_keyboard(made, open_page):
    page = open_page(made, **WIDE)
    page.keyboard.press("/")
    page.keyboard.press("ArrowDown")
    order = names(page)
    assert chosen(page) == order[0]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert chosen(page) == order[2]
    page.keyboard.press("ArrowUp")
    assert chosen(page) == order[1]
    page.locator("#map").focus()
    places = {entity["name"]: entity["at"] for entity in data_of(made)["entities"]}
    leftmost = min(places, key=lambda name: places[name][0])
    for _ in range(len(places)):
        before = chosen(page)
        page.keyboard.press("ArrowLeft")
        if chosen(page) == before:
            break
        assert places[chosen(page)][0] < places[before][0]
    assert places[chosen(page)][0] <= places[order[1]][0] and places[leftmost][0] == 0
    for key in ("+", "+", "-", "0"):
        page.keyboard.press(key)
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.body")


@pytest.mark.shared
def test_untrusted_text_is_shown_as_it_is(made, open_page):
    page = open_page(made, **WIDE)
    page.locator("#text").fill("onerror")
    page.locator(".row").first.click()
    assert EVIL in page.locator("#detail .chip").all_inner_texts()
    page.locator("#text").fill("שלום")
    page.locator(".row").first.click()
    chip = page.locator("#detail .chip", has_text="שלום")
    assert chip.inner_text() == RIGHT_TO_LEFT
    assert chip.evaluate("node => getComputedStyle(node).unicodeBidi") == "isolate"
    assert page.locator("img").count() == 0


@pytest.mark.shared
def test_dropped_phrases_are_filtered_by_reason_and_text(made, open_page):
    page = open_page(made, **WIDE)
    dropped = data_of(made)["dropped"]
    reason, _, phrases = dropped["reasons"][-1]
    page.locator("#reasons button").last.click()
    number = len(dropped["reasons"]) - 1
    told = [row[1] for row in dropped["rows"] if row[0] == number]
    assert page.locator("#phrases td:first-child").all_inner_texts() == told[:25] and len(told) == phrases
    assert set(page.locator("#phrases td:nth-child(2)").all_inner_texts()) == {reason}
    page.locator("#dropped-text").fill(told[0])
    assert told[0] in page.locator("#phrases td:first-child").all_inner_texts()
    page.locator("#reasons button").last.click()
    page.locator("#dropped-text").fill("no such phrase")
    assert page.locator("#phrases tr").count() == 0


@pytest.mark.shared
def test_on_a_phone_nothing_is_cut_off_and_a_tap_opens_the_entity(made, open_page):
    page = open_page(made, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#detail").is_hidden()
    page.locator(".row", has_text="horse").first.tap()
    assert page.locator("#detail").is_visible() and chosen(page) == "horse"
    page.locator(".close").tap()
    assert page.locator("#detail").is_hidden()
    entities = data_of(made)["entities"]
    page.locator("#map").scroll_into_view_if_needed()
    target = alone(entities)
    page.touchscreen.tap(*on_screen(page, entities, target))
    assert chosen(page) == target["name"]


@pytest.mark.shared
def test_dark_and_light_differ_and_a_link_opens_its_entity(made, open_page):
    light = open_page(made, **WIDE)
    dark = open_page(made, color_scheme="dark", **WIDE)
    tone = "getComputedStyle(document.body).backgroundColor"
    assert light.evaluate(tone) != dark.evaluate(tone)
    dark.goto(made.as_uri() + "#horse.n.01")
    dark.reload()
    assert chosen(dark) == "horse"


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_page_of_twenty_thousand_entities_opens(tmp_path, open_page):
    written = write_report(crowd(tmp_path / "c", ROWS), tmp_path / "r.html")
    assert written.shown == ROWS and written.bytes <= 20_000_000
    page = open_page(tmp_path / "r.html", **WIDE)
    assert page.locator("#list .row").count() == 100
    page.locator("#text").fill("thing 12345")
    assert names(page)[0] == "thing 12345"
    page.locator("#text").fill("")
    page.locator("#pager button").last.click()
    assert page.locator("#list .row").count() == 100 and page.locator("#pager span").inner_text().startswith(
        "101"
    )
