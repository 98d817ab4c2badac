"""Statistics against a plain computation over all rows, and the arithmetic of throughput."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from aligner import artifact, run
from aligner.cli import app
from aligner.config import AlignConfig
from aligner.stats import QUANTILES, Tally, stats


@pytest.fixture(scope="module")
def done(clips: Path, tiny_corpus: Path, tiny_clip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven videos and a missing one in three shards."""
    folder = tmp_path_factory.mktemp("stats")
    names = sorted(path.relative_to(clips).as_posix() for path in clips.rglob("*.mp4"))
    (folder / "list.txt").write_text("\n".join([*names, "gone.mp4"]))
    small = {"frames": 2, "merge": 2, "top_k": 3, "videos_per_shard": 3, "device": "cpu"}
    config = AlignConfig(
        videos=folder / "list.txt",
        videos_root=clips,
        corpus=tiny_corpus,
        model=tiny_clip,
        out=folder / "out",
        **small,
    )
    run.run(config)
    return folder / "out"


def test_counts_equal_a_plain_computation(done: Path) -> None:
    found = stats(done, top=3)
    table = pq.read_table(sorted(done.glob("shard-*.parquet")))
    ids, scores = artifact.lists(table["topk_entity"]), artifact.lists(table["topk_score"])
    first, anywhere = Counter(ids[:, 0].tolist()), Counter(ids.ravel().tolist())
    names = artifact.read_entity_names(done)
    assert (found.rows, found.frames, found.regions_per_frame) == (len(table), 14, 12)
    assert (found.videos, found.failures) == ({"planned": 8, "ok": 7, "failed": 1}, {"open (missing)": 1})
    assert found.shards == {"done": 3}
    entities = found.entities
    assert (entities["corpus"], entities["used"], entities["never"]) == (
        40,
        len(anywhere),
        40 - len(anywhere),
    )
    assert entities["first_of_any"] == len(first) and entities["share_used"] == len(anywhere) / 40
    ranked = sorted(first, key=lambda entity: (-first[entity], entity))
    wanted = [{"entity_id": e, "name": names[e], "first": first[e], "any": anywhere[e]} for e in ranked]
    assert entities["most"] == wanted[:3] and entities["least"] == wanted[::-1][:3]
    assert found.scores["mean"] == pytest.approx(scores[:, 0].mean(dtype=np.float64))
    exact = np.quantile(scores[:, 0], QUANTILES, method="inverted_cdf")
    np.testing.assert_allclose([*found.scores["quantiles"].values()], exact, atol=0.0011)
    sizes = [path.stat().st_size for path in done.iterdir()]
    assert sum(found.bytes.values()) == sum(sizes) and found.bytes["set aside"] == 0


def test_throughput_is_frames_by_seconds(done: Path) -> None:
    before = {shard: artifact.read_timings(done, shard) for shard in range(3)}
    told = {"decode": 9.0, "encode": 2.0, "match": 0.5, "wait_decode": 1.0, "wait_write": 0.25, "write": 0.1}
    for shard in (0, 1):
        artifact.write_json(done / artifact.timings_name(shard), {"attempt": 1, "seconds": 4.0, **told})
    (done / artifact.timings_name(2)).unlink()
    found = stats(done).throughput
    ok = sum(len(artifact.read_marker(done, shard)["videos"]) for shard in (0, 1))
    assert found["frames_per_second"] == pytest.approx(2 * ok / 8.0)
    assert found["share"] == {"encode": 0.5, "match": 0.125, "wait_decode": 0.25, "wait_write": 0.0625}
    for shard in (0, 1):
        (done / artifact.timings_name(shard)).unlink()
    assert stats(done).throughput is None
    for shard, timings in before.items():
        artifact.write_json(done / artifact.timings_name(shard), timings)


def test_quantiles_of_known_scores() -> None:
    tally = Tally(2)
    for part in np.split(np.linspace(-1, 1, 2001, dtype=np.float32)[:2000], 4):
        tally.add(np.zeros((len(part), 1), np.int32), part[:, None])
    found = tally.scores()
    assert found["quantiles"] == pytest.approx(
        {"0.05": -0.9, "0.25": -0.5, "0.5": 0, "0.75": 0.5, "0.95": 0.9}, abs=0.002
    )
    assert found["mean"] == pytest.approx(-0.0005, abs=1e-6) and Tally(2).scores() == {}


def test_the_command(done: Path) -> None:
    shown = CliRunner().invoke(app, ["stats", str(done)])
    assert shown.exit_code == 0, shown.output
    assert "rows: 182, of 14 frames with 12 regions each" in shown.stdout and "frames/s" in shown.stdout
    assert "failed at open (missing): 1" in shown.stdout
    assert json.loads(CliRunner().invoke(app, ["stats", str(done), "--json"]).stdout)["rows"] == 182


def test_a_folder_that_was_only_planned(done: Path, tmp_path: Path) -> None:
    for name in (artifact.MANIFEST, artifact.VIDEOS, artifact.ENTITIES):
        (tmp_path / name).write_bytes((done / name).read_bytes())
    found = stats(tmp_path)
    assert (found.rows, found.scores, found.throughput, found.entities["never"]) == (0, {}, None, 40)
    assert "rows: 0" in "\n".join(found.lines())
