"""Trains and scores in child processes that may be killed, stopped or joined to ranks; jobs and outcomes are JSON.

Run by tests as a program: torch is imported once, and every job's process is a fork of that process.
"""

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import pandas  # noqa: F401, with torch._dynamo what trainings import at work: once for all children
import torch
import torch._dynamo

from adapter import checkpoint, ranks
from adapter import train as work
from adapter.alignments import open_alignments
from adapter.config import AdapterError, make_settings
from adapter.evaluate import evaluate, predict
from adapter.labels import open_labels
from adapter.ranks import joined
from adapter.scoring import run_and_keep


def at_call(module, name, number, act):
    """Let ``act`` happen at the ``number``-th call of a function, before it does its work."""
    original, calls = getattr(module, name), []

    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            act(*args)
        return original(*args, **kwargs)

    setattr(module, name, wrapped)


def send(number):
    return lambda *args: os.kill(os.getpid(), number)


def die_halfway(original):
    """Write half of a file's bytes, then be killed."""

    def act(state, path, note):
        original(state, path, note)
        with open(path, "rb+") as file:
            file.truncate(path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    return act


def prepare_fault(kind, number):
    faults = {
        "kill at step": lambda: at_call(work.Training, "train_step", number, send(signal.SIGKILL)),
        "stop at step": lambda: at_call(work.Training, "train_step", number, send(signal.SIGTERM)),
        "stop by USR1 at step": lambda: at_call(work.Training, "train_step", number, send(signal.SIGUSR1)),
        "kill in file": lambda: at_call(checkpoint, "save_file", number, die_halfway(checkpoint.save_file)),
        "kill before validation": lambda: at_call(work, "validate", number, send(signal.SIGKILL)),
        "kill after line": lambda: at_call(work.Training, "save_if_due", number, send(signal.SIGKILL)),
        "kill before manifest": lambda: at_call(work, "publish", number, send(signal.SIGKILL)),
    }
    faults[kind]()


def figures(job, settings):
    """Validation of an untrained model by all ranks; the first writes it."""
    alignments = open_alignments(Path(job["alignments"]))
    data = work.prepare(alignments, open_labels(Path(job["labels"])), settings.train)
    with joined(torch.device("cpu")) as group, work.seeded(0):
        model = work._fresh_model(settings, alignments, data.labels, group.device)
        training = work.Training.of(model, data, alignments, settings.train, group, Path(job["out"]), {})
        found = training._validate()
        if group.leads:
            Path(job["out"]).write_text(json.dumps(found))


def forbidden(*paths):
    raise AssertionError(f"only the first rank writes, this one wrote {paths[-1]}")


def score(job, rank):
    """Evaluate a run by every head of the job, predict with it, and score it by a protocol."""
    if rank:
        os.replace = os.mkdir = forbidden
    out, *data = (Path(job[name]) for name in ("out", "alignments", "labels"))
    for head in job["heads"]:
        evaluate(out, *data, name=f"by-{head}", device="cpu", head=head)
    predict(out, *data, out / "new" / "predictions.parquet", device="cpu")
    run_and_keep(job["protocol"], [out], Path(job["lists"]), *data, out / "table.json", "cpu")


def run(job, rank):
    """One process of a job."""
    ranks.PASS = job.get("pass", ranks.PASS)
    if "heads" in job:
        return score(job, rank)
    settings = make_settings(job["settings"])
    if "fault" in job and rank == job.get("fault_rank", 0):
        prepare_fault(*job["fault"])
    if job.get("validate"):
        return figures(job, settings)
    paths = (Path(job[name]) for name in ("alignments", "labels", "out"))
    return work.train(*paths, settings, job.get("force", False), resume=job.get("resume", "auto"))


def child(job, rank, port):
    ranks = job.get("ranks", 1)
    if ranks > 1:
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in told.items()}, MASTER_ADDR="127.0.0.1")
    try:
        run(job, rank)
    except AdapterError as error:
        print(error, file=sys.stderr, flush=True)
        return getattr(error, "exit_code", 1)
    return 0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def outcome(job):
    """Exit codes of a job's processes; minus the signal that ended one."""
    port, children = free_port(), []
    for rank in range(job.get("ranks", 1)):
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = child(job, rank, port)
            except Exception:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([outcome(job) for job in json.load(sys.stdin)]))
