"""Mining of captions against the bare spaCy pipe: ``python -m benchmarks.mining --shared ../shared``.

Captions are generated from real label and entity lists. ``corpus-builder mine`` with spaCy alone and with both taggers
runs over all of them in processes of its own. spaCy's own ``nlp.pipe`` with the same components runs over a part of
them before and another part after, so that a machine that slows down slows both: with as many processes by its own
means (``n_process``, which hands every document back), and in as many processes apart that hand nothing back, which no
use of the pipe beats. Resident memory is that of the whole process tree.
"""

import csv
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from corpus_builder.taggers import SpacyTagger

TEMPLATES = (
    "a person is {label} in front of a {one}",
    "a man with a {one} and a {two} is {label}",
    "{label} while the {one} lies on the {two}",
    "two people watch a woman who is {label} near the old {one}",
    "the {one}'s owner is {label}",
    "a {one} is carried by a boy {label} on a sunny day",
    "a small child in a red jacket looks at the {one} and the {two}",
    "{label} outdoors, with a {one} in the background and several {two} around",
)


def captions(shared: Path, count: int) -> Iterator[str]:
    """Sentences about real labels and entities, drawn with a fixed seed."""
    import pyarrow.parquet as pq

    from corpus_builder.sources import clean_name

    labels = []
    for name in ("kinetics_400", "ucf_101", "hmdb_51"):
        with (shared / f"data/labels/{name}_labels.csv").open(encoding="utf-8", newline="") as stream:
            labels += [clean_name(row["name"]) for row in csv.DictReader(stream)]
    entities = pq.read_table(shared / "data/clip_text/vit_b16_openai_entities.parquet")["entity"].to_pylist()
    rng = random.Random(0)
    for _ in range(count):
        one, two = rng.choice(entities), rng.choice(entities)
        yield rng.choice(TEMPLATES).format(label=rng.choice(labels), one=one, two=two)


def piped(texts: list[str], model: Path, processes: int) -> float:
    """Seconds of ``nlp.pipe(n_process=...)``, the pipeline loaded before and its processes started within."""
    nlp = SpacyTagger(str(model))._nlp
    start = time.perf_counter()
    for _ in nlp.pipe(texts, batch_size=256, n_process=processes):
        pass
    return time.perf_counter() - start


def apart(texts: list[str], model: Path, processes: int) -> float:
    """Seconds of ``nlp.pipe`` in processes of its own, each on its share; nothing is handed back, so none is faster."""
    spawn = multiprocessing.get_context("spawn")
    loaded = spawn.Barrier(processes + 1)
    workers = [
        spawn.Process(target=_consume, args=(texts[number::processes], str(model), loaded))
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    loaded.wait()
    start = time.perf_counter()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


def _consume(texts: list[str], model: str, loaded: Any) -> None:
    nlp = SpacyTagger(model)._nlp
    loaded.wait()
    for _ in nlp.pipe(texts, batch_size=256):
        pass


def ours(
    file: Path, count: int, shared: Path, taggers: str, processes: int, out: Path
) -> tuple[float, list[int]]:
    """Seconds from the first mined chunk's begin to the last, and the tree's resident MiB by tenths of the input.

    Loading (spaCy, WordNet) is taken off by running the same command on a single caption first.
    """
    one = file.with_name("one.txt")
    one.write_text("a man holds a ball\n")
    base = [
        sys.executable,
        "-m",
        "corpus_builder",
        "mine",
        "--taggers",
        taggers,
        "--no-body-parts",
        "--quiet",
    ]
    base += ["--nltk-data", str(shared / "nltk_data"), "--spacy-model", str(shared / "spacy/en_ewt_sm")]
    base += ["--processes", str(processes), "--out", str(out)]
    start = time.perf_counter()
    subprocess.run([*base, "--captions", str(one)], check=True)
    loading = time.perf_counter() - start
    start = time.perf_counter()
    process = subprocess.Popen([*base, "--captions", str(file)])
    work, chunks, memory = out.with_name(f"{out.name}.mining"), -(-count // 4096), {}
    while process.poll() is None:
        time.sleep(0.5)
        done = len(list(work.glob("chunk-*"))) if work.exists() else 0
        tenth = min(10 * done // chunks, 9)
        memory[tenth] = max(memory.get(tenth, 0), _resident(process.pid))
    if process.returncode:
        raise SystemExit(f"{base} failed")
    return time.perf_counter() - start - loading, [memory[t] for t in sorted(memory)]


def _resident(pid: int) -> int:
    """MiB of a process and its children, pages that they share counted for each."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * 4096 // 2**20 + sum(_resident(int(child)) for child in children)


def main(
    shared: Annotated[
        Path, typer.Option(help="Folder with labels, entities, NLTK data and a spaCy pipeline.")
    ],
    count: Annotated[int, typer.Option(help="Captions.")] = 1_000_000,
    processes: Annotated[int, typer.Option(help="Processes of either.")] = 2,
    part: Annotated[
        int, typer.Option(help="Captions that the bare pipe gets before, and as many after.")
    ] = 50_000,
    taggers: Annotated[list[str] | None, typer.Option(help="Taggers of ours [default: spacy, both].")] = None,
) -> None:
    """Print captions per second of all, our share of the bare pipe's, and resident memory by tenths of the input."""
    model = shared.resolve() / "spacy/en_ewt_sm"
    texts = list(captions(shared, count))
    part = min(part, count // 2)
    rates: dict[str, list[float]] = {"piped": [], "apart": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "captions.txt"
        file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        runs = {}
        for name in (None, *(taggers or ("spacy", "both"))):
            if name:
                out = Path(folder) / f"{name}.parquet"
                runs[name] = ours(file, count, shared.resolve(), name, processes, out)
            given = texts[:part] if name is None else texts[-part:]
            rates["piped"].append(part / piped(given, model, processes))
            rates["apart"].append(part / apart(given, model, processes))
    mean = {name: sum(found) / len(found) for name, found in rates.items()}
    print(
        f"{count} captions, {processes} processes, the bare pipe on {part} before and after each run of ours\n"
    )
    print(
        "| | captions a second | of n_process | of processes apart | MiB by tenths |\n|---|---|---|---|---|"
    )
    print(f"| nlp.pipe, n_process={processes} | {mean['piped']:.0f} | 1.00 | | |")
    print(f"| nlp.pipe, {processes} processes apart | {mean['apart']:.0f} | | 1.00 | |")
    for name, (took, memory) in runs.items():
        rate = count / took
        shares = f"{rate / mean['piped']:.2f} | {rate / mean['apart']:.2f}"
        print(f"| mine --taggers {name} | {rate:.0f} | {shares} | {' '.join(map(str, memory))} |")


if __name__ == "__main__":
    typer.run(main)
