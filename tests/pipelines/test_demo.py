"""The demo in miniature: the same code, a handful of videos, and a table whose rows are what they say."""

from pathlib import Path

import pytest

from pipelines.demo import MODELS, SHOTS, SIZES, demo_config, run_demo
from pipelines.toyworld import TINYCLIP
from pipelines.workflow import Layout

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory):
    if not (TINYCLIP / "open_clip_model.safetensors").is_file():
        pytest.skip("the demo's tiny CLIP is not in this checkout")
    return run_demo(tmp_path_factory.mktemp("demo") / "demo", "tiny", 0, lambda line: None)


@pytest.mark.exhaustive  # tests/journeys/test_sceptic.py runs the same from the shell
def test_the_demo_ends_in_a_report_and_a_table(demo) -> None:
    assert "riding a bicycle" in Layout(demo.out).report.read_text()
    assert [row[0] for row in demo.rows] == [title for title, _ in MODELS.values()]
    assert all(0 <= value <= 100 for row in demo.rows for value in row[1:])
    assert str(Layout(demo.out).report) in demo.text()


@pytest.mark.exhaustive  # tests/journeys/test_sceptic.py runs the same from the shell
def test_training_free_rows_do_not_depend_on_shots(demo) -> None:
    name, supervised, few, *_ = demo.rows[0]
    assert "no training" in name and supervised == few


def test_controls_differ_from_the_model_in_one_option_only() -> None:
    model, control = MODELS["alt"][1], MODELS["alt_random"][1]
    assert {key for key in control if control[key] != model.get(key)} == {"identities"}


def test_held_out_actions_are_never_trained_on(tmp_path: Path) -> None:
    from pipelines.toyworld.videos import planned
    from pipelines.toyworld.vocabulary import ACTION_BY_LABEL

    for size in SIZES.values():
        for split, task in planned(tmp_path, 0, size["videos"]):
            assert ACTION_BY_LABEL[task.label].held_out == split.startswith("zeroshot")
    config = demo_config(tmp_path, "small", 0, inputs=False)
    assert all(section.labels == "seen" for section in config.adapters.values())
    few = [section.options()["shots"] for name, section in config.adapters.items() if name.endswith("-4shot")]
    assert few == [SHOTS] * (len(MODELS) - 1)
