"""What is there for GPUs, on whatever device is at hand: it may change the last bits, and nothing else."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aligner import artifact, run
from aligner.config import GPU_PASS, AlignerError, ChangedSettings
from aligner.encoder import ClipRegionEncoder, load_clip
from aligner.engine import FrameEncoder, Timings
from aligner.pixels import Cutter
from aligner.verify import verify
from benchmarks import gpu

ROOT = Path(__file__).resolve().parents[2]


def vectors(out: Path, video: str) -> np.ndarray:
    return artifact.vectors(artifact.read_video(out, video))


def frame_vectors(out: Path, video: str) -> np.ndarray:
    return vectors(out, video)[artifact.read_video(out, video)["region_index"].to_numpy() == 0]


def test_pictures_cut_on_the_device_give_the_same_alignments(settings: Callable, tmp_path: Path) -> None:
    """Whole pictures of two sizes come out of the decoders; one video has pictures of both."""
    videos = tmp_path / "videos"
    random = np.random.default_rng(0)
    for name, sizes in {"a": [(48, 70)], "b": [(90, 40)], "c": [(48, 70), (90, 40)], "d": [(32, 32)]}.items():
        (videos / name).mkdir(parents=True)
        for place in range(6):
            rows = np.kron(random.integers(0, 256, (4, 4, 3), np.uint8), np.ones((24, 24, 1), np.uint8))
            height, width = sizes[place // 2 % len(sizes)]
            Image.fromarray(rows[:height, :width]).save(videos / name / f"{place}.png")
    outs = {}
    for where in ("cpu", "device"):
        outs[where] = tmp_path / where
        report = run.run(settings(videos=videos, out=outs[where], preprocess=where, batch_frames=4))
        assert (report.ok, report.failed) == (4, 0) and verify(outs[where]) == []
    for name in "abcd":
        same = (frame_vectors(outs["cpu"], name) * frame_vectors(outs["device"], name)).sum(1)
        assert same.min() > 0.999
    # Pictures that need no resizing, or were cut before, are the same bytes.
    for name in "cd":
        assert np.array_equal(vectors(outs["cpu"], name), vectors(outs["device"], name))
    with pytest.raises(ChangedSettings, match=r"config.preprocess: got 'device', expected 'Pillow [\d.]+'"):
        run.prepare(settings(videos=videos, out=outs["cpu"], preprocess="device"))


def test_whole_pictures_of_several_sizes_are_cut_after_all() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, shape, np.uint8) for shape in ((40, 50, 3), (60, 50, 3))]
    cutter = Cutter((32, 32), whole=True)
    assert all(np.shares_memory(cutter(picture), picture) for picture in pictures)
    assert np.array_equal(cutter.stack([pictures[0]] * 2), np.stack([pictures[0]] * 2))
    plain = replace(cutter, whole=False)
    assert np.array_equal(cutter.stack(pictures), np.stack([plain(picture) for picture in pictures]))


def test_fp16_merges_the_same_patches_and_gives_nearly_the_same_vectors(tiny_clip: str) -> None:
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    full, half = (
        ClipRegionEncoder(load_clip(tiny_clip)[0], 2, precision=p)(pixels) for p in ("fp32", "fp16")
    )
    assert half.embeddings.dtype == torch.float32
    assert (full.source == half.source).float().mean() > 0.95
    cosine = torch.nn.functional.cosine_similarity(full.embeddings[:, 0], half.embeddings[:, 0], dim=-1)
    assert cosine.min() > 0.9999


@pytest.mark.slow
def test_the_encoder_is_one_graph_for_a_compiler(tiny_clip: str) -> None:
    """Every operation is captured without a break, in a process in which nothing wraps the functions."""
    code = (
        "import sys, torch\n"
        "from aligner.encoder import ClipRegionEncoder, load_clip\n"
        "encode = ClipRegionEncoder(load_clip(sys.argv[1])[0], 2).encode\n"
        "graph = torch.compile(encode, dynamic=False, fullgraph=True, backend='eager')\n"
        "pixels = torch.randn(2, 3, 32, 32)\n"
        "with torch.inference_mode():\n"
        "    plain, captured = encode(pixels), graph(pixels)\n"
        "assert torch.equal(plain.embeddings, captured.embeddings) and torch.equal(plain.source, captured.source)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny_clip], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("device", "size"), [("cpu", 3), ("cuda", GPU_PASS), ("cuda:1", GPU_PASS)])
def test_a_plan_is_for_the_device_of_the_runs(settings: Callable, device: str, size: int) -> None:
    """A plan for GPUs can be made where there is none; only a run needs one."""
    config = settings(device=device)
    assert run.prepare(config, only_plan=True).frames_per_pass == size
    if device == "cuda" and not torch.cuda.is_available():
        with pytest.raises(AlignerError, match="--device cuda: no usable GPU here"):
            run.prepare(config)
    assert run.prepare(settings()).frames_per_pass == size


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("preprocess", ["cpu", "device"])
def test_asking_for_a_pass_does_not_wait_for_the_gpu(settings: Callable, preprocess: str) -> None:
    encode = FrameEncoder(run.prepare(settings(device="cuda", preprocess=preprocess, batch_frames=4)))
    shape = (4, 32, 32, 3) if preprocess == "cpu" else (4, 50, 70, 3)
    pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    before = encode(encode.cut(pictures), Timings())
    torch.cuda.set_sync_debug_mode("error")
    try:
        rows = encode.start(encode.cut(pictures))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.array_equal(rows(Timings()).embedding, before.embedding)


def test_the_gpu_benchmark_measures_and_says_where_there_is_none(
    tiny_clip: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = f"--models {tiny_clip} --merge 0 2 --precision fp32 bf16 --frames 3 --passes 2 --entities 20"
    gpu.main([*given.split(), "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    assert [row[1:5] for row in cells] == [
        [merge, precision, "3", "3"] for merge in "02" for precision in ("fp32", "bf16")
    ]
    assert all(float(row[5]) > 0 and 0 < float(row[6]) <= 100 for row in cells)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if not torch.cuda.is_available():
        gpu.main(given.split())
        said = capsys.readouterr()
        assert said.out == "" and "no GPU here: nothing was measured" in said.err
