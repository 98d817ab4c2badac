"""Small real inputs: videos that carry their frame numbers, a corpus folder, and the CLI as a process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
BITS = 10
BLOCK = 16


def numbered_picture(number: int, seed: int = 0) -> np.ndarray:
    """A 64 x 160 picture whose upper half spells ``number`` in ten blocks; the lower half is a colour."""
    picture = np.zeros((4 * BLOCK, BITS * BLOCK, 3), np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            picture[: 2 * BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255
    picture[2 * BLOCK :] = np.random.default_rng(seed).integers(40, 216, 3)
    picture[2 * BLOCK :, (7 * number) % 144 : (7 * number) % 144 + 16] = 255
    return picture


def read_number(rgb: np.ndarray) -> int:
    """The number that ``numbered_picture`` spelt, after any codec."""
    middles = rgb[BLOCK, BLOCK // 2 :: BLOCK].mean(-1)
    return sum((value > 128) << bit for bit, value in enumerate(middles))


def write_video(
    path: Path,
    frames: int = 20,
    codec: str = "libx264",
    gop: int = 12,
    pts: list[int] | None = None,
    seed: int = 0,
    b_frames: int | None = None,
    audio_s: float = 0.0,
    pixels: str = "yuv420p",
    pad: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode numbered pictures at 25 fps, or at the given times in 1/1000 s; optionally with silent sound.

    ``pad`` black columns and rows are added on the right and below.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = BITS * BLOCK + pad, 4 * BLOCK + pad, pixels
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("aac", rate=8000) if audio_s else None
        for number in range(frames):
            picture = np.pad(numbered_picture(number, seed), ((0, pad), (0, pad), (0, 0)))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if pts is None else pts[number]
            frame.time_base = Fraction(1, 25) if pts is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            for start in range(0, int(8000 * audio_s), 1024):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                silence.sample_rate, silence.pts = 8000, start
                container.mux(sound.encode(silence))
            container.mux(sound.encode())
    return path


def write_audio(path: Path) -> Path:
    """An mp4 with sound and nothing to see."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_corpus(folder: Path, model: dict, entities: int = 40, seed: int = 0) -> Path:
    """A corpus folder as the contract describes it, with random unit vectors."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((entities, model["embed_dim"])).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = np.arange(entities)
    text = [f"entity {i}" for i in ids]
    columns = {
        "entity_id": pa.array(ids, pa.int32()),
        "name": pa.array(text),
        "source": pa.array(["label"] * entities),
        "sense": pa.nulls(entities, pa.string()),
        "gloss": pa.nulls(entities, pa.string()),
        "lexname": pa.nulls(entities, pa.string()),
        "text": pa.array([f"{name}: something" for name in text]),
        "count": pa.array(np.ones(entities), pa.int32()),
        "labels": pa.array([["a label"]] * entities, pa.list_(pa.string())),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), model["embed_dim"]),
    }
    pq.write_table(pa.table(columns), folder / "entities.parquet")
    manifest = {
        "artifact": "corpus",
        "schema_version": 1,
        "package": "corpus_builder 0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "fingerprint": f"{seed:064x}",
        "config": {},
        "inputs": {},
        "model": model,
        "counts": {},
        "files": {},
        "entities": entities,
        "dim": model["embed_dim"],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def tiny_info(tiny_clip: str) -> dict:
    """ModelInfo of the tiny CLIP."""
    from aligner.encoder import load_clip

    return load_clip(tiny_clip)[1]


@pytest.fixture(scope="session")
def tiny_corpus(tiny_info: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 40 random entities that claims to be made with the tiny CLIP."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus", tiny_info)


@pytest.fixture(scope="session")
def timm_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random CLIP with timm's image tower, saved as open_clip saves models and prepared as SigLIP is."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("timm") / "tinytimm"
    folder.mkdir()
    config = {
        "embed_dim": 96,
        "vision_cfg": {
            "timm_model_name": "test_vit3",
            "timm_pool": "map",
            "timm_proj": "none",
            "image_size": 160,
        },
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CustomTextCLIP(**config)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    half = [0.5, 0.5, 0.5]
    pixels = {"mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "squash"}
    saved = {"model_cfg": config | {"custom_text": True}, "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(saved))
    return f"local-dir:{folder}"


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven short videos in two class folders."""
    root = tmp_path_factory.mktemp("clips")
    for place in range(7):
        write_video(root / ("run", "jump")[place % 2] / f"{place}.mp4", frames=12 + place, seed=place)
    return root


@pytest.fixture
def aligner() -> Callable[..., subprocess.CompletedProcess]:
    """``aligner ARGS...`` in a process of its own."""

    def call(*args: object, **env: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            command(*args), env=environment(**env), cwd=ROOT, capture_output=True, text=True
        )

    return call


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "aligner", *map(str, args)]


def environment(**extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"} | extra


@pytest.fixture
def start() -> Callable[..., subprocess.Popen]:
    """``aligner ARGS...`` as a running process, for tests that kill it."""

    def begin(*args: object) -> subprocess.Popen:
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command(*args), env=environment(), cwd=ROOT, stdout=quiet, stderr=quiet)

    return begin


@pytest.fixture
def settings(clips: Path, tiny_corpus: Path, tiny_clip: str, tmp_path: Path) -> Callable:
    """Settings of a small run, with whatever a test wants different."""
    from aligner.config import AlignConfig

    def make(**changes: object) -> AlignConfig:
        chosen = {"videos": clips, "corpus": tiny_corpus, "model": tiny_clip, "out": tmp_path / "out"}
        chosen |= {"frames": 3, "merge": 2, "top_k": 5, "videos_per_shard": 3, "device": "cpu"}
        return AlignConfig(**(chosen | changes))

    return make


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """``write_video`` for tests."""
    return write_video


@pytest.fixture(scope="session")
def make_audio() -> Callable[..., Path]:
    """``write_audio`` for tests."""
    return write_audio


@pytest.fixture(scope="session")
def make_corpus() -> Callable[..., Path]:
    """``write_corpus`` for tests."""
    return write_corpus


@pytest.fixture(scope="session")
def number_in() -> Callable[[np.ndarray], int]:
    """``read_number`` for tests."""
    return read_number
