"""Prompts of the text tower: gradients to them alone, and the same class vectors wherever they are used."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from adapter.dataset import Sample
from adapter.evaluate import open_all, score
from adapter.train import seeded
from aligner.encoder import load_clip
from corpus_builder.artifact import open_corpus, open_labels
from corpus_builder.build import build_labels
from corpus_builder.embed import lengths_of, load_text_encoder
from pipelines.cli import app
from pipelines.config import PipelineConfig, load_config
from pipelines.finetune import NAME, Session, finetune, inputs_of
from pipelines.tuned_labels import TunedLabels
from pipelines.tuner import Clips, Progress, load_state, save_state
from pipelines.tuning_config import TuneConfig
from pipelines.workflow import run_pipeline

BOTH: dict[str, Any] = {
    "prompts": 3,
    "text_prompts": 2,
    "augment": "none",
    "batch_size": 4,
    "micro_batch": 2,
    "epochs": 1,
    "warmup": 0.0,
    "lr_adapter": 1e-2,
    "decode_workers": 1,
    "device": "cpu",
}


def opened(miniature: PipelineConfig, **options: Any) -> Session:
    return Session.open(inputs_of(miniature.out), TuneConfig(**BOTH | options), {})


@pytest.fixture(scope="module")
def passes(miniature: PipelineConfig) -> list[Clips]:
    """Four clips in two passes: a step."""
    session = opened(miniature)
    with session.feed:
        return list(next(session.feed.steps(session.data.train.samples, 1, 0)))


def stepped(session: Session, passes: list[Clips]) -> None:
    """One step of the optimiser."""
    with seeded(0):
        for clips in passes:
            session.tuner.learn(clips, 0.1, 4)
    session.tuner.step(1.0)


def test_only_prompts_and_adapter_change(miniature: PipelineConfig, passes: list[Clips]) -> None:
    session = opened(miniature)
    assert session.tuner.text is not None
    before = {name: value.clone() for name, value in session.clip.state_dict().items()}
    vectors = session.tuner.text.vectors.detach().clone()
    stepped(session, passes)
    after = session.clip.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"visual.prompts", "text_prompts"}
    assert all(weight.grad is None for weight in session.clip.parameters() if not weight.requires_grad)
    assert session.tuner.parameters["text prompts"] == 2 * 2 * 32
    assert not torch.allclose(vectors, session.tuner.text.vectors, atol=1e-4)


def test_the_gradient_of_a_steps_passes_is_that_of_the_whole(
    miniature: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference keeps the text tower's graph and goes through it at once."""
    text = opened(miniature).tuner.text
    assert text is not None
    weights = torch.randn(text.vectors.shape, generator=torch.manual_seed(0))
    (reference,) = torch.autograd.grad((text._embed(slice(0, None)) * weights).sum(), text.prompts)
    for half in (weights * 0.25, weights * 0.75):
        (text.vectors * half).sum().backward()
    text.tokens = text.tokens.repeat(
        1, 200, 1
    )  # more templates than go through the tower at once: same means
    text.backward()
    torch.testing.assert_close(text.prompts.grad, reference, rtol=1e-3, atol=1e-6)
    assert reference.abs().max() > 1e-3


def test_no_prompts_are_the_labels_as_they_were(miniature: PipelineConfig) -> None:
    session = opened(miniature)
    assert session.tuner.text is not None
    none = nn.Parameter(torch.zeros(2, 0, 32))
    without = TunedLabels(session.clip, session.tuner.text.tokens, none).vectors
    torch.testing.assert_close(without.detach(), session.tuner.labels, rtol=0, atol=1e-6)
    assert not torch.allclose(session.tuner.text.vectors, session.tuner.labels, atol=1e-4)
    assert opened(miniature, text_prompts=0).tuner.text is None


def test_a_state_gives_the_prompts_and_their_moments_back(
    miniature: PipelineConfig, passes: list[Clips], tmp_path: Path
) -> None:
    first, second = opened(miniature), opened(miniature)
    stepped(first, passes)
    save_state(tmp_path / "state", first.tuner, Progress(), "key")
    assert first.tuner.text is not None and second.tuner.text is not None
    assert not torch.equal(first.tuner.text.vectors, second.tuner.text.vectors)
    load_state(tmp_path / "state", second.tuner, "key")
    assert torch.equal(first.tuner.text.vectors, second.tuner.text.vectors)
    for session in (first, second):
        stepped(session, passes)
    assert torch.equal(first.tuner.text.prompts, second.tuner.text.prompts)


@pytest.fixture(scope="module")
def prompted(miniature: PipelineConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tuning with prompts on both sides."""
    out = tmp_path_factory.mktemp("prompted") / "out"
    finetune(inputs_of(miniature.out), TuneConfig(**BOTH), out)
    return out


def test_a_tuned_model_embeds_any_label_set_with_its_prompts_and_nothing_else(
    miniature: PipelineConfig, prompted: Path, tmp_path: Path
) -> None:
    model = f"local-dir:{prompted / 'clip'}"
    written = open_labels(prompted / "labels" / "train")
    build_labels(miniature.labels["train"].file, model, None, tmp_path / "again", device="cpu")
    again = open_labels(tmp_path / "again")
    assert np.array_equal(written.embeddings, again.embeddings)
    assert written.manifest["model"] == again.manifest["model"] == load_clip(model)[1]
    old = open_labels(miniature.out / "labels" / "train").embeddings
    assert not np.allclose(written.embeddings, old, atol=1e-3)
    texts = open_corpus(prompted / "corpus").table["text"].to_pylist()
    plain = load_text_encoder(model, device="cpu").encode(texts)
    assert np.array_equal(plain, load_text_encoder(miniature.model, device="cpu").encode(texts))


def test_evaluation_sees_the_labels_that_training_saw(prompted: Path) -> None:
    report = run_pipeline(load_config(prompted / "pipeline.yaml"), lambda line: None)
    assert report.steps == {"corpus": "up to date", "labels/train": "up to date", "alignments": "done"}
    scored = open_all(prompted / "runs" / NAME, prompted / "alignments", prompted / "labels" / "train", "cpu")
    videos = [
        Sample(v.video_id, scored.labels.match(v.label)) for v in scored.alignments.plan if v.split == "val"
    ]
    logits = torch.from_numpy(score(scored, videos).logits)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([video.label for video in videos]))
    line = (prompted / "runs" / NAME / "metrics.jsonl").read_text().splitlines()[0]
    assert loss.item() == pytest.approx(json.loads(line)["val_loss"], abs=0.01)


def test_predict_names_new_classes_through_the_prompts(
    miniature: PipelineConfig, prompted: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "new.txt"
    labels.write_text("juggling balls\nriding a horse\n")
    video = sorted((miniature.alignments.videos.parent / "videos").glob("0-*.mp4"))[0]
    given = [
        "predict",
        str(video),
        "--labels",
        str(labels),
        "--run",
        str(prompted),
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    found = open_labels(tmp_path / "out" / "labels" / "own").embeddings
    model = load_text_encoder(f"local-dir:{prompted / 'clip'}", device="cpu", prompted=True)
    tokens = model._tokenizer(["riding a horse"])
    assert found.shape == (2, 32) and lengths_of(model._model, tokens)[0] < 77
    plain = tmp_path / "plain"
    build_labels(labels, miniature.model, None, plain, device="cpu")
    assert not np.allclose(found, open_labels(plain).embeddings, atol=1e-3)
