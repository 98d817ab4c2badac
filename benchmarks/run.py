"""Runs benchmarks and writes what they said into BENCHMARKS.md: ``python -m benchmarks.run``.

Without names it renders BENCHMARKS.md from the stored results. With ``--only NAME ...`` (or ``--all``) it runs these
first, each in a process of its own, into ``out/benchmarks/NAME.json``; ``--quick`` runs them small, to see that they
work, and ``--keep`` stores what was measured beside the code. A benchmark that lacks what it needs is told, and left
out.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks import results
from docs.blocks import fill

PAGE = Path(__file__).resolve().parent.parent / "BENCHMARKS.md"
SHARED = Path("../shared")


@dataclass(frozen=True)
class Benchmark:
    """How ``python -m benchmarks.NAME`` is called: as published, and small; and what it needs."""

    usual: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    module: str = ""
    gpu: bool = False
    shared: bool = False

    def missing(self) -> str:
        """What is not here, or nothing."""
        import torch

        if self.module and find_spec(self.module) is None:
            return f"needs {self.module}: pip install 'alt-toolkit[benchmarks]'"
        if self.gpu and not torch.cuda.is_available():
            return "needs a GPU"
        return (
            f"needs {SHARED} (WordNet, a spaCy pipeline, label lists)"
            if self.shared and not SHARED.is_dir()
            else ""
        )


WORDS = ("--nltk-data", f"{SHARED}/nltk_data", "--spacy-model", f"{SHARED}/spacy/en_ewt_sm")
TEXTS = ("--texts", f"{SHARED}/data/clip_text/vit_b16_openai_entities.parquet")
BENCHMARKS = {
    "speed": Benchmark(quick=("--rounds", "1")),
    "decode": Benchmark(("--rounds", "9"), ("--rounds", "1", "--frames", "8"), module="cv2"),
    "aligner": Benchmark(quick=("--matching", "1000", "--rounds", "1", "--memory", "3")),
    "dense": Benchmark(quick=("--frames", "64")),
    "store": Benchmark(
        ("--seeds", "0"), ("--size", "tiny", "--seeds", "0", "--epochs", "1", "--rounds", "1")
    ),
    "reading": Benchmark(quick=("--videos", "20", "--rounds", "1"), module="webdataset"),
    "senses": Benchmark(WORDS, (*WORDS, "--strategy", "first"), shared=True),
    "mining": Benchmark(
        ("--shared", str(SHARED), "--taggers", "spacy"),
        ("--shared", str(SHARED), "--taggers", "spacy", "--count", "2000", "--part", "200"),
        shared=True,
    ),
    "million": Benchmark(
        ("--folder", "/dev/shm/alt-million"),
        ("--folder", "/dev/shm/alt-million", "--videos", "200", "--videos-per-shard", "16"),
    ),
    "toyworld": Benchmark(quick=("--size", "tiny", "--seeds", "0", "--rows", "clip")),
    "held_objects": Benchmark(quick=("--seeds", "0")),
    "named": Benchmark(TEXTS, TEXTS, shared=True),
    "finetune": Benchmark(gpu=True),
    "gpu": Benchmark(gpu=True),
}


def run(name: str, arguments: Sequence[str]) -> results.Result:
    """Run one benchmark, its output passed on as it comes; one that fails raises."""
    module = f"benchmarks.{name}"
    lines = []
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise SystemExit(f"{module} failed with exit code {process.returncode}")
    if not results.tables_of("".join(lines)):
        raise SystemExit(f"{module} printed no table")
    return results.made_now(name, results.shown_command(module, arguments), "".join(lines))


def stored() -> dict[str, results.Result]:
    """Results that are committed, by name."""
    found = (results.read_result(path) for path in sorted(results.FOLDER.glob("*.json")))
    return {result.name: result for result in found}


def rendered(page: str, found: Mapping[str, results.Result]) -> str:
    """BENCHMARKS.md with its tables made from the stored results; a result that no block shows is an error."""
    blocks = results.blocks(found)
    unshown = [name for name in blocks if f"<!-- generated: {name} -->" not in page]
    if unshown:
        raise SystemExit(
            f"BENCHMARKS.md has no block '<!-- generated: {unshown[0]} -->' (closed by '<!-- end -->')"
        )
    return fill(page, blocks)


def main() -> None:
    """Run what is asked for, then render."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=[], metavar="NAME")
    chosen.add_argument("--all", action="store_true", help="all that can run here")
    parser.add_argument("--quick", action="store_true", help="small, to see that they work; not to be kept")
    parser.add_argument(
        "--keep", action="store_true", help="store the results and show them in BENCHMARKS.md"
    )
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    given = parser.parse_args()
    if given.quick and given.keep:
        parser.error("--quick measures nothing worth keeping; leave out one of --quick and --keep")
    for name in BENCHMARKS if given.all else given.only:
        benchmark = BENCHMARKS[name]
        if missing := benchmark.missing():
            print(f"{name}: left out, {missing}", file=sys.stderr)
            continue
        path = run(name, benchmark.quick if given.quick else benchmark.usual).write(given.out)
        print(f"wrote {path}", file=sys.stderr)
        if given.keep:
            results.FOLDER.mkdir(exist_ok=True)
            shutil.copy(path, results.FOLDER / path.name)
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(rendered(page, stored()), encoding="utf-8")


if __name__ == "__main__":
    main()
