"""A real SLURM of one node, started and stopped by the tests; nothing of it outlives them.

It needs Debian's packages slurm-wlm and munge, and root. Everything lies in a folder of its own: configuration,
state, spool, logs. It listens on this machine's loopback address only.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("sbatch", "squeue", "scontrol", "slurmctld", "slurmd", "munged")
CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={worker}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=6
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=1
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
MinJobAge=300
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why no SLURM can be started here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"needs SLURM (apt-get install slurm-wlm munge); not here: {', '.join(missing)}"
    return None if os.geteuid() == 0 else "needs root, to start munged and slurmd"


@contextmanager
def slurm(folder: Path, cpus: int = 4) -> Iterator[dict[str, str]]:
    """The environment with which ``sbatch`` and its kin find a running one-node SLURM.

    Raises RuntimeError with the daemons' logs if the node does not come up.
    """
    folder.mkdir(parents=True)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    conf = folder / "slurm.conf"
    ports = {"controller": _free_port(), "worker": _free_port()}
    conf.write_text(CONF.format(host=host, folder=folder, cpus=cpus, **ports))
    env = os.environ | {"SLURM_CONF": str(conf)}
    with ExitStack() as stack:
        stack.enter_context(_munge(folder))
        for program in ("slurmctld", "slurmd"):
            command = [program, "-D", "-f", str(conf)]
            stack.enter_context(_running(command, env, folder / f"{program}.out"))
        _wait_for_node(env, folder)
        try:
            yield env
        finally:
            subprocess.run(["scancel", "--full", "--user=root"], env=env, capture_output=True)
            _wait_until(lambda: not _queue(env), 20)


def wait_for(env: dict[str, str], seconds: float) -> bool:
    """Wait until the queue is empty; False where it is not within ``seconds``."""
    return _wait_until(lambda: not _queue(env), seconds)


@contextmanager
def _munge(folder: Path) -> Iterator[None]:
    """munged with a key and a socket of its own; it insists on folders that nobody else may write to."""
    home = folder / "munge"
    home.mkdir(mode=0o700)
    key = home / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = [f"--{name}-file={home / name}" for name in ("log", "pid", "seed")]
    command = [
        "munged",
        "--foreground",
        "--force",
        f"--socket={folder}/munge.socket",
        f"--key-file={key}",
        *files,
    ]
    with _running(command, dict(os.environ), home / "out"):
        if not _wait_until((folder / "munge.socket").exists, 20):
            raise RuntimeError(f"munged did not start: {(home / 'out').read_text()}")
        yield


@contextmanager
def _running(command: list[str], env: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=env, stdout=stream, stderr=stream, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_node(env: dict[str, str], folder: Path) -> None:
    def idle() -> bool:
        told = subprocess.run(["sinfo", "-h", "-o", "%t"], env=env, capture_output=True, text=True)
        return told.stdout.strip() == "idle"

    if not _wait_until(idle, 60):
        logs = "\n".join(path.read_text()[-1500:] for path in sorted(folder.glob("slurm*.[lo]*")))
        raise RuntimeError(f"the node did not come up\n{logs}")


def _queue(env: dict[str, str]) -> list[str]:
    return subprocess.run(["squeue", "-h", "-r"], env=env, capture_output=True, text=True).stdout.splitlines()


def _wait_until(met, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not met():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
