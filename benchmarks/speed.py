"""Speed as ratios against the alternative in the same run: ``python -m benchmarks.speed``.

Every pair is timed in turns (A B A B ...) and compared by medians: these ratios hold on a noisy machine, the seconds
do not.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


def compare(
    name: str,
    unit: str,
    ours: Callable[[], object],
    other: Callable[[], object],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """A table row: medians in ms and their ratio (above 1: ours is faster)."""
    times: dict[str, list[float]] = {"ours": [], "other": []}
    if rounds > 1:  # a single long round is its own warm-up
        ours(), other()
    for _ in range(rounds):
        for key, work in (("ours", ours), ("other", other)):
            start = clock()
            work()
            times[key].append(1000 * (clock() - start))
    a, b = statistics.median(times["ours"]), statistics.median(times["other"])
    return f"| {name} | {unit} | {a:.1f} | {b:.1f} | {b / a:.2f} |"


def encoder_rows(rounds: int) -> list[str]:
    """ViT-B/16 with random weights, four frames: merged against unmerged, unmerged against open_clip's own forward."""
    from aligner.encoder import ClipRegionEncoder, load_clip

    clip, _ = load_clip("ViT-B-16", "none")
    pixels = torch.randn(4, 3, 224, 224)
    merged, plain = ClipRegionEncoder(clip, 8), ClipRegionEncoder(clip, 0)

    def open_clip_forward() -> torch.Tensor:
        with torch.inference_mode():
            return clip.encode_image(pixels)

    return [
        compare(
            "encoder r=8 / encoder r=0",
            "ViT-B/16, 4 frames",
            lambda: merged(pixels),
            lambda: plain(pixels),
            rounds,
        ),
        compare(
            "encoder r=8 / open_clip encode_image",
            "the same",
            lambda: merged(pixels),
            open_clip_forward,
            rounds,
        ),
        compare(
            "encoder r=0 / open_clip encode_image",
            "the same",
            lambda: plain(pixels),
            open_clip_forward,
            rounds,
        ),
    ]


def match_rows(rounds: int) -> list[str]:
    """Exact top-16 of 10,000 entities for the regions of 20 frames: chunked matmul against FAISS's flat index."""
    import faiss

    from aligner.match import Matcher

    random = np.random.default_rng(0)
    entities = random.normal(size=(10_000, 512)).astype(np.float32)
    entities /= np.linalg.norm(entities, axis=1, keepdims=True)
    regions = random.normal(size=(20 * 101, 512)).astype(np.float32)
    regions /= np.linalg.norm(regions, axis=1, keepdims=True)
    matcher = Matcher(torch.from_numpy(entities), 16)
    index = faiss.IndexFlatIP(512)
    index.add(entities)
    queries = torch.from_numpy(regions)
    return [
        compare(
            "top-16, matmul / FAISS flat",
            "2,020 x 10,000",
            lambda: matcher(queries),
            lambda: index.search(regions, 16),
            rounds,
        )
    ]


def decode_rows(rounds: int) -> list[str]:
    """Eight frames of a 20 s video with a keyframe a second: ours against decoding everything."""
    import av

    from aligner.decode import sample_frames
    from pipelines.toyworld.videos import frames_of
    from pipelines.toyworld.vocabulary import ACTIONS

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.mp4"
        frames = [
            frame for action in ACTIONS[:10] for frame in frames_of(action, (0,), frames=50, pixels=256)
        ]
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"g": "25"})
            stream.height, stream.width, stream.pix_fmt = 256, 256, "yuv420p"
            for frame in frames:
                container.mux(
                    stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
                )
            container.mux(stream.encode())

        def everything() -> list[np.ndarray]:
            with av.open(str(path)) as container:
                return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][::62]

        return [
            compare(
                "8 frames, ours / decode all",
                "500 frames, 256 px",
                lambda: sample_frames(path, 8),
                everything,
                rounds,
            )
        ]


def text_rows(nltk_data: Path) -> list[str]:
    """2,000 entity texts of WordNet in ViT-B/32: batches of one length, against batches in the order of the texts."""
    from corpus_builder.describe import describe
    from corpus_builder.embed import lengths_of, load_text_encoder, text_features
    from corpus_builder.wordnet import open_lexicon

    with open_lexicon(nltk_data)._reader.open("data.noun") as stream:
        lines = [line for line in stream if not line.startswith("  ")]
    entries = [
        (line.split()[4].replace("_", " "), line.partition("| ")[2].split(";")[0].strip()) for line in lines
    ]
    chosen = np.random.default_rng(0).choice(len(entries), 2000, replace=False)
    texts = [describe(*entries[number]) for number in chosen]
    encoder = load_text_encoder("ViT-B-32", "none", "cpu")

    def in_order() -> list[torch.Tensor]:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), 64):
                tokens = encoder._tokenizer(texts[start : start + 64])
                rows.append(text_features(encoder._model, tokens, max(lengths_of(encoder._model, tokens))))
        return rows

    encoder.encode(texts[:64])
    unit = "2,000 WordNet glosses, ViT-B/32"
    # one round is all there is time for, so of the processor's time: others may be at work on the machine
    return [
        compare(
            "texts by length / in order",
            unit,
            lambda: encoder.encode(texts),
            in_order,
            1,
            time.process_time,
        )
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--nltk-data", type=Path, help="folder with WordNet, for the row of texts")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| ours / other | size | ours, ms | other, ms | times faster |\n|---|---|---|---|---|")
    for rows in (encoder_rows, match_rows, decode_rows):
        print("\n".join(rows(given.rounds)), flush=True)
    if given.nltk_data:
        print("\n".join(text_rows(given.nltk_data)), flush=True)


if __name__ == "__main__":
    main()
