"""``import alt``: the same predictions as the command's, typed, with nothing left behind."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import alt
from pipelines.cli import app
from pipelines.config import PipelineConfig
from pipelines.predict import predict_videos


@pytest.fixture(scope="module")
def model(miniature: PipelineConfig) -> alt.Model:
    return alt.load(miniature.out)


def test_a_prediction_is_the_command_s(
    model: alt.Model, miniature: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good, broken and missing files; the user's folder stays as it was."""
    root = miniature.alignments.videos.parent
    files = [root / "videos" / "0-3.mp4", root / "videos" / "broken.mp4", tmp_path / "missing.mp4"]
    monkeypatch.chdir(tmp_path)
    before = sorted(root.rglob("*"))
    found = model.predict(files, labels=["juggling balls", "riding a horse"], regions=True, entities=True)
    assert not list(tmp_path.iterdir()) and sorted(root.rglob("*")) == before
    expected = predict_videos(files, root / "new.txt", miniature.out)
    assert [item.video for item in found] == [str(file) for file in files]
    for one, other in zip(found, expected, strict=True):
        assert (list(one.labels), one.error) == (other.labels, other.error)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    good, broken, _ = found
    assert good.label == good.labels[0] and good.probability == max(good.probabilities)
    assert (broken.label, broken.probability, broken.regions, broken.entities) == (None, None, None, None)
    frames = miniature.alignments.frames
    assert {region.frame for region in good.regions} == set(range(frames))
    patches = {frame: sum(r.patches for r in good.regions if r.frame == frame) for frame in range(frames)}
    assert set(patches.values()) == {16}, "the regions of a frame are all of its patches"
    names = {name for region in good.regions for name, _ in region.entities}
    assert good.entities and {entity.name for entity in good.entities} <= names


def test_one_video_gives_one_prediction_among_the_labels_trained_on(
    model: alt.Model, miniature: PipelineConfig
) -> None:
    video = miniature.alignments.videos.parent / "videos" / "1-3.mp4"
    found = model.predict(str(video), topk=2)
    assert isinstance(found, alt.Prediction) and set(found.labels) < set(model.labels)
    assert len(found.labels) == 2 and found.regions is None and found.entities is None
    assert "riding a bicycle" in model.labels and "alt.Model 'alt'" in repr(model)


def test_a_model_alone_predicts_among_labels_that_are_named(miniature: PipelineConfig) -> None:
    video = miniature.alignments.videos.parent / "videos" / "1-3.mp4"
    model = alt.zero_shot(miniature.model, device="cpu")
    found = model.predict([video], labels=["playing a drum", "flying a kite"], entities=True)
    assert set(found[0].labels) == {"playing a drum", "flying a kite"} and found[0].entities
    assert sum(found[0].probabilities) == pytest.approx(1, abs=1e-5) and model.labels == ()
    with pytest.raises(alt.AltError, match="no labels given"):
        model.predict(video)


def test_what_it_cannot_do_is_an_error(model: alt.Model, miniature: PipelineConfig, tmp_path: Path) -> None:
    video = miniature.alignments.videos.parent / "videos" / "1-3.mp4"
    with pytest.raises(alt.AltError, match="no labels given"):
        model.predict(video, labels=[])
    with pytest.raises(alt.AltError, match="give a list of them"):
        model.predict(video, labels="juggling")
    with pytest.raises(alt.AltError, match="names several videos; give"):
        model.predict(video.parent)
    with pytest.raises(alt.AltError, match="no pipeline.yaml"):
        alt.load(tmp_path)


def test_a_copied_run_predicts_without_the_folder_that_it_was_made_in(
    model: alt.Model, miniature: PipelineConfig, tmp_path: Path
) -> None:
    """What ``alt push --to`` writes is all that predicting needs."""
    done = CliRunner().invoke(app, ["push", str(miniature.out), "me/thing", "--to", str(tmp_path / "copy")])
    assert done.exit_code == 0, done.output
    video = miniature.alignments.videos.parent / "videos" / "2-3.mp4"
    copied = alt.load(tmp_path / "copy")
    assert copied.labels == model.labels
    ours, theirs = copied.predict(video), model.predict(video)
    assert ours.labels == theirs.labels
    assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-6)


def test_the_readme_s_snippets_run(miniature: PipelineConfig, tmp_path: Path) -> None:
    """Python of pipelines/README.md, with its names replaced by those of a miniature."""
    page = (Path(__file__).resolve().parents[2] / "pipelines" / "README.md").read_text(encoding="utf-8")
    videos = miniature.alignments.videos.parent / "videos"
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "0.mp4").write_bytes((videos / "1-3.mp4").read_bytes())
    names = {
        '"runs/first"': miniature.out,
        '"clip.mp4"': videos / "0-3.mp4",
        '"more"': tmp_path / "more",
        '"ViT-B-16", "openai"': miniature.model,
    }
    snippets = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        for name, value in names.items():
            snippet = snippet.replace(name, repr(str(value)))
        exec(compile(snippet, "README", "exec"), {})


def test_clip_is_loaded_once(miniature: PipelineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """By all stages of a call and by all calls, with a run and without; the commands load it once, too."""
    from aligner import encoder
    from corpus_builder import embed

    loads: list[str] = []
    for module, name in ((encoder, "load_clip"), (embed, "load_text_encoder")):
        load = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, name=name, load=load, **b: [loads.append(name), load(*a, **b)][1]
        )
    video = miniature.alignments.videos.parent / "videos" / "1-3.mp4"
    for model in (alt.load(miniature.out), alt.zero_shot(miniature.model, device="cpu")):
        loads.clear()
        found = [model.predict(video, labels=["playing a drum", other]) for other in ("flying a kite", "sit")]
        assert loads == ["load_clip"] and found[0].probabilities != found[1].probabilities
    loads.clear()
    predict_videos([video], ["playing a drum", "sit"], miniature.out)
    assert loads == ["load_clip"]
