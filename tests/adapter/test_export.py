"""``adapter export``: the files give what the run gives, whatever the sizes, and say what they are."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from adapter.artifact import open_run
from adapter.checkpoint import load_model
from adapter.config import AdapterError, make_settings
from adapter.dataset import Sample, collate
from adapter.evaluate import open_all, score
from adapter.export import INPUTS, export, random_inputs, read_facts
from adapter.train import train

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {
    "paper": {"variant": "paper"},
    "tracks-regions": {"queries": "tracks", "context": "regions", "pool": "attention", "whiten_labels": True},
}
# Sizes that were traced are 3 videos, 5 tokens, 4 cached entities, 41 entities and 7 labels; tracks are 8.
SIZES = [
    {"videos": 1, "tokens": 3, "topk": 1, "entities": 8, "labels": 1},
    {"videos": 6, "tokens": 9, "topk": 5, "entities": 300, "labels": 40},
]
# One process, one trace a form: the exporter's own work is nearly all of the time. Types are not checked in it, for a
# size that is free is no ``int`` while torch traces.
PROGRAM = """
import sys
from pathlib import Path
from adapter.cli import app
from adapter.export import trace
folder, plain, *runs = map(Path, sys.argv[1:])
for run in runs:
    traced = trace(run)
    # ONNX is made from the trace and costs most: the form with the most kinds of operations stands for it.
    for suffix in (".pt2",) if run.name == "paper" else (".pt2", ".onnx"):
        assert traced.write(folder / (run.name + suffix)).difference < 1e-5
app(["export", str(plain), "--out", str(folder / "new" / "plain.pt2")])
"""
FILES = ["paper.pt2", "tracks-regions.pt2", "tracks-regions.onnx"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, learnable: Path, label_set: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("forms")
    for name, options in VARIANTS.items():
        settings = make_settings({"blocks": 1, "epochs": 1, "device": "cpu", **options})
        train(learnable, label_set, root / name, settings)
    return {name: root / name for name in VARIANTS}


@pytest.fixture(scope="module")
def files(runs: dict[str, Path], learnable: Path, label_set: Path) -> Path:
    """Folder of ``FILES``, all exported, and ``new/plain.pt2`` by the command, whose words are in ``said.txt``."""
    root = next(iter(runs.values())).parent
    settings = make_settings({"model": "mean_pool", "epochs": 1, "device": "cpu"})
    train(learnable, label_set, root / "plain", settings)
    folder = root / "exported"
    command = [sys.executable, "-c", PROGRAM, folder, root / "plain", *runs.values()]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


def sizes_of(run: Path, sizes: dict[str, int]) -> dict[str, int]:
    manifest = open_run(run).manifest
    return {**sizes, "frames": manifest["frames"], "dim": manifest["dim"]}


def runner(file: Path) -> Callable[[dict[str, torch.Tensor]], list[np.ndarray]]:
    if file.suffix == ".pt2":
        module = torch.export.load(file).module()
        return lambda inputs: [out.detach().numpy() for out in module(*inputs.values())]
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    assert [one.name for one in session.get_inputs()] == list(INPUTS)
    return lambda inputs: session.run(["logits", "z"], {key: value.numpy() for key, value in inputs.items()})


@pytest.mark.parametrize("name", FILES)
def test_an_exported_model_gives_what_the_run_gives_whatever_the_sizes(
    files: Path, runs: dict[str, Path], learnable: Path, label_set: Path, name: str
) -> None:
    """On random tensors of other sizes than the traced, and on cached videos as ``adapter eval`` scores them."""
    from adapter.export import Forward

    run = runs[Path(name).stem]
    forward = Forward(load_model(open_run(run), torch.device("cpu")))
    exported = runner(files / name)
    batches = [random_inputs(sizes_of(run, sizes), seed) for seed, sizes in enumerate(SIZES)]
    for inputs in batches:
        with torch.no_grad():
            wanted = [out.numpy() for out in forward(*inputs.values())]
        for found, expected in zip(exported(inputs), wanted, strict=True):
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-4)
    ids = ["Archery/000.mp4", "YoYo/003.mp4"]
    opened = open_all(run, learnable, label_set, "cpu")
    batch = collate([(video, -1) for video in opened.alignments.read(ids)])
    tables = {"entities": opened.alignments.entities.embeddings, "labels": opened.labels.embeddings}
    inputs = {key: torch.from_numpy(tables[key]) if key in tables else getattr(batch, key) for key in INPUTS}
    scored = score(opened, [Sample(video, -1) for video in ids]).logits
    # An evaluation stores logarithms of probabilities.
    logits = torch.from_numpy(exported(inputs)[0])
    assert logits.log_softmax(-1).numpy() == pytest.approx(
        torch.from_numpy(scored).log_softmax(-1).numpy(), abs=2e-3
    )


@pytest.mark.parametrize("name", ["paper.pt2", "tracks-regions.onnx"])
def test_a_file_tells_what_it_is(files: Path, runs: dict[str, Path], name: str) -> None:
    facts, run = read_facts(files / name), open_run(runs[Path(name).stem])
    assert facts["run"]["fingerprint"] == run.manifest["fingerprint"]
    assert facts["trained_labels"] == run.train_labels and facts["model"] == run.manifest["model"]
    frames, dim = run.manifest["frames"], run.manifest["dim"]
    shapes = {tensor["name"]: tensor["shape"] for tensor in (*facts["inputs"], *facts["outputs"])}
    assert list(shapes)[: len(INPUTS)] == list(INPUTS)
    assert shapes["embeddings"] == ["videos", frames, "tokens", dim]
    assert shapes["logits"] == ["videos", "labels"]
    assert str(ROOT) not in json.dumps(facts) and str(runs["paper"].parent) not in json.dumps(facts)


def test_the_readme_s_snippets_run(files: Path, label_set: Path, learnable: Path) -> None:
    """Python of the section Export, with its names replaced by those of a test."""
    readme = (ROOT / "adapter" / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Export\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    assert section
    snippets = re.findall(r"^```python\n(.*?)^```", section.group(1), re.MULTILINE | re.DOTALL)
    names = {'"model.pt2"': files / "paper.pt2", '"model.onnx"': files / "tracks-regions.onnx"}
    names |= {'Path("alignments")': learnable, 'Path("labels")': label_set}
    assert len(snippets) == 2
    for snippet in snippets:
        for name, path in names.items():
            snippet = snippet.replace(name, f"Path('{path}')" if "Path" in name else f"'{path}'")
        exec(compile(snippet, "adapter/README.md", "exec"), {})


def test_the_command_writes_a_file_and_names_its_inputs(files: Path) -> None:
    said = (files / "said.txt").read_text()
    assert (files / "new" / "plain.pt2").is_file() and f"wrote {files}/new/plain.pt2" in said
    assert all(name in said for name in INPUTS)


def test_what_cannot_be_exported_is_refused(
    tmp_path: Path, trained: Path, learnable: Path, label_set: Path
) -> None:
    with pytest.raises(AdapterError, match="ends in neither .pt2 nor .onnx"):
        export(trained, tmp_path / "model.bin")
    with pytest.raises(AdapterError, match="did you mean 'onnx'"):
        export(trained, tmp_path / "model.onnx", "onxx")
    with pytest.raises(AdapterError, match="must end in .onnx"):
        export(trained, tmp_path / "model.pt2", "onnx")
    settings = make_settings({"blocks": 1, "epochs": 1, "device": "cpu", "identities": "scrambled"})
    train(learnable, label_set, tmp_path / "control", settings)
    with pytest.raises(AdapterError, match="identities=scrambled"):
        export(tmp_path / "control", tmp_path / "model.pt2")
    (tmp_path / "other.onnx").write_bytes(b"no model")
    with pytest.raises(AdapterError, match="holds no exported run"):
        read_facts(tmp_path / "other.onnx")
    assert not (tmp_path / "model.pt2").exists()
