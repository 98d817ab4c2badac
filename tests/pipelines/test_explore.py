"""``alt explore``: what the page shows is what the stages say of the same video."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from adapter.explain import explain
from pipelines.cli import app
from pipelines.config import PipelineConfig
from pipelines.errors import USER_ERRORS
from pipelines.explore import Explorer, Sight, answer, effects, open_explorer, picture, region_at
from pipelines.predict import predict_videos

LABELS = ["juggling balls", "riding a horse", "flying a kite"]


@pytest.fixture(scope="module")
def explorer(miniature: PipelineConfig) -> Explorer:
    return open_explorer(miniature.out, "cpu")


@pytest.fixture(scope="module")
def video(miniature: PipelineConfig) -> Path:
    return miniature.alignments.videos.parent / "videos" / "0-3.mp4"


@pytest.fixture(scope="module")
def sight(explorer: Explorer, video: Path) -> Sight:
    return explorer.look(video, LABELS)


@pytest.fixture(scope="module")
def predicted(miniature: PipelineConfig, video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``alt predict`` makes of the same video."""
    out = tmp_path_factory.mktemp("predicted")
    predict_videos([video], LABELS, miniature.out, out, report=False)
    return out


def test_the_whole_video_gets_the_prediction_of_alt_predict(sight: Sight, predicted: Path) -> None:
    found = answer(sight)
    (expected,) = json.loads((predicted / "predictions.json").read_text())
    assert list(found.labels) == expected["labels"]
    assert found.probabilities == pytest.approx(expected["probabilities"], abs=1e-6)
    assert found.logits_without == found.logits and found.probabilities_without == found.probabilities


def test_without_an_entity_it_is_what_leave_one_out_says(
    sight: Sight, predicted: Path, miniature: PipelineConfig
) -> None:
    run = miniature.out / "runs" / "alt"
    (known,) = explain(run, predicted / "alignments", predicted / "labels" / "own", device="cpu")
    assert {one.entity_id for one in known.entities} == {*sight.places} and len(sight.places) > 1
    assert max(abs(one.effect) for one in known.entities) > 1e-3, "some entity matters"
    for one in known.entities:
        found = answer(sight, {one.entity_id})
        fall = np.subtract(found.logits, found.logits_without)
        assert list(found.labels) == known.labels
        assert fall == pytest.approx(one.effects, abs=1e-5)
    for ours, theirs in zip(effects(sight), known.entities, strict=True):
        assert (ours.entity_id, ours.effects) == (theirs.entity_id, pytest.approx(theirs.effects, abs=1e-5))


def test_entities_go_together_and_what_is_not_in_the_video_changes_nothing(sight: Sight) -> None:
    entities = list(sight.places)
    absent = next(i for i in range(len(sight.entities)) if i not in sight.places)
    assert answer(sight, {absent}).logits_without == answer(sight).logits
    both = answer(sight, entities[:2]).logits_without
    assert both not in (
        answer(sight, entities[:1]).logits_without,
        answer(sight, entities[1:2]).logits_without,
    )
    assert both == answer(sight, entities[1::-1]).logits_without


def test_other_labels_need_no_other_alignment(sight: Sight, explorer: Explorer) -> None:
    other = explorer.choose_labels(sight, ["playing a drum", " flying a kite ", ""])
    assert set(other.labels) == {"playing a drum", "flying a kite"} and other.video is sight.video
    # A label's logit is its own, whatever the other candidates are.
    logits = [dict(zip(found.labels, found.logits, strict=True)) for found in map(answer, (sight, other))]
    assert logits[0]["flying a kite"] == pytest.approx(logits[1]["flying a kite"], abs=1e-5)


def test_a_click_finds_the_region_that_owns_the_pixel(sight: Sight) -> None:
    card = sight.card
    rows, columns = card.grid
    height, width = card.frames[0].shape[:2]
    for frame in range(len(card.frames)):
        for patch, region in enumerate(card.patch_region[frame]):
            x = (patch % columns + 0.5) * width / columns
            y = (patch // columns + 0.5) * height / rows
            found = region_at(sight, frame, x, y)
            assert (found.frame, found.region) == (frame, region)
            assert found.patches == (card.patch_region[frame] == region).sum()
            best = sight.video.topk_entity[frame, region, 0]
            assert found.entities[0][0] is sight.entities[best]
    assert region_at(sight, 0, width - 1, height - 1).region == card.patch_region[0][-1]
    for x, y in ((-1, 0), (width, 0), (0, height)):
        with pytest.raises(USER_ERRORS, match="outside the picture"):
            region_at(sight, 0, x, y)


def test_outlines_lie_where_regions_meet_and_nothing_else_is_painted(sight: Sight) -> None:
    card, plain = sight.card, sight.card.frames[0]
    drawn = picture(sight, 0)
    size = plain.shape[0] // card.grid[0]
    changed = (drawn != plain).any(-1)
    for patch, region in enumerate(card.patch_region[0]):
        row, column = divmod(patch, card.grid[1])
        cell = slice(row * size, (row + 1) * size), slice(column * size, (column + 1) * size)
        assert not changed[cell][3:-3, 3:-3].any(), "the middle of a patch stays as it is"
        colour = sight.colours[int(card.topk_entity[0, region, 0])]
        right = patch + 1 if column + 1 < card.grid[1] else None
        if right is None or card.patch_region[0][right] != region:
            assert (drawn[cell][size // 2, -1] == colour).all()
        else:
            assert not changed[cell][size // 2, -1].any()


def test_what_is_off_is_grey_and_what_is_chosen_is_white(sight: Sight) -> None:
    entity = int(sight.card.topk_entity[0, 1, 0])
    off, plain = picture(sight, 0, {entity}), picture(sight, 0)
    owners = {
        int(r) for r in np.unique(sight.card.patch_region[0]) if sight.card.topk_entity[0, r, 0] == entity
    }
    size = plain.shape[0] // sight.card.grid[0]
    for patch, region in enumerate(sight.card.patch_region[0]):
        row, column = divmod(patch, sight.card.grid[1])
        colour = off[row * size + size // 2, column * size + size // 2].astype(int)
        assert (np.ptp(colour) <= 1) or region not in owners
        if region not in owners:
            assert (colour == plain[row * size + size // 2, column * size + size // 2]).all()
    assert (picture(sight, 0, chosen=1) == 255).all(-1).sum() > (plain == 255).all(-1).sum()


def test_a_region_s_own_embedding_finds_its_entity_first(sight: Sight, explorer: Explorer) -> None:
    for frame, region in ((0, 1), (1, 2), (3, 0)):
        best, *_ = explorer.search_region(sight, frame, region, k=3)
        assert best.entity_id == sight.video.topk_entity[frame, region, 0]
        assert best.cosine == pytest.approx(sight.video.topk_score[frame, region, 0], abs=2e-3)


def test_a_text_finds_what_the_corpus_command_finds(explorer: Explorer) -> None:
    found, expected = explorer.search_text("a drum", 4), explorer.corpus.search("a drum", 4)
    assert [hit.key for hit in found] == [hit.key for hit in expected]
    with pytest.raises(USER_ERRORS, match="is empty"):
        explorer.search_text("  ")


def test_what_cannot_be_done_is_an_error(explorer: Explorer, sight: Sight, video: Path) -> None:
    with pytest.raises(USER_ERRORS, match=r"broken.mp4 cannot be read: "):
        explorer.look(video.parent / "broken.mp4", LABELS)
    with pytest.raises(USER_ERRORS, match="no labels given"):
        explorer.choose_labels(sight, [" "])
    with pytest.raises(USER_ERRORS, match="there is no frame 4; there are 4"):
        picture(sight, 4)


def test_without_gradio_the_command_says_how_to_get_it(
    miniature: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["explore", str(miniature.out)])
    assert done.exit_code == 1 and "pip install 'alt-toolkit[app]'" in done.output


@pytest.fixture(scope="module")
def address(explorer: Explorer) -> Any:
    pytest.importorskip("gradio", reason="needs Gradio (extra app)")
    from pipelines.app import build, launch

    page = build(explorer)
    yield launch(page, None)
    page.close()


def test_the_page_shows_it_and_fetches_nothing_from_elsewhere(
    address: str, browser: Any, explorer: Explorer, video: Path
) -> None:
    """Look at a video, click a region, switch an entity off, search; every request goes to this machine."""
    page = browser.new_context(viewport={"width": 1200, "height": 1000}).new_page()
    page.set_default_timeout(60_000)
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    page.locator("input[type=file]").first.set_input_files(str(video))
    page.get_by_label("Labels, one a line or with commas between them").fill("juggling balls, riding a horse")
    page.get_by_role("button", name="Look").click()
    page.wait_for_function("document.querySelectorAll('input[type=checkbox]').length > 2")
    image = page.locator("img").last
    image.click(position={"x": 60, "y": 60})
    page.get_by_text("patches at").wait_for()
    shown = image.get_attribute("src")
    page.get_by_role("checkbox").nth(1).uncheck()
    page.wait_for_function("before => [...document.images].at(-1).src !== before", arg=shown)
    page.get_by_placeholder("something to ride on").fill("a drum")
    page.keyboard.press("Enter")
    found = page.locator(".block", has_text="Entities nearest to the text").last
    found.get_by_text(explorer.search_text("a drum")[0].name, exact=True).first.wait_for()
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert not problems
