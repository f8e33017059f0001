"""A real Slurm on this machine: munged, slurmctld and two slurmd that call themselves n1 and n2. Needs root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.distributed import free_port

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=requeue_delay=0
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=30
MinJobAge=600
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname={host} Port={n1_port} CPUs=2 State=UNKNOWN
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname={host} Port={n2_port} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


def missing() -> str | None:
    """Why there can be no cluster here; None: there can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "a test cluster needs root"


def _path() -> str:
    return f"{os.environ['PATH']}{os.pathsep}/usr/sbin"


@dataclass(frozen=True)
class Cluster:
    """A running cluster; `folder` holds its state and logs."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's commands need to find it."""
        return {**os.environ, "PATH": _path(), "SLURM_CONF": str(self.folder / "slurm.conf")}

    def command(self, *arguments: str, cwd: Path | None = None) -> str:
        """The output of one of Slurm's commands."""
        done = subprocess.run(
            arguments, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`: JobState, Restarts, ExitCode, ..."""
        fields = self.command("scontrol", "show", "job", job).split()
        return next(field.partition("=")[2] for field in fields if field.startswith(f"{name}="))

    def logs(self) -> str:
        """What its daemons wrote, for a failed test."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster in a folder whose path is short enough for a socket; take it down at the end."""
    folder.chmod(0o755)
    made = Cluster(folder)
    daemons: list[subprocess.Popen[bytes]] = []
    host = socket.gethostname().partition(".")[0]
    ports = {f"{name}_port": free_port() for name in ("controller", "n1", "n2")}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder, **ports))
    (folder / "state").mkdir()
    try:
        daemons.append(_start_munge(made))
        for name in ("n1", "n2"):
            (folder / f"spool-{name}").mkdir()
        for command in (["slurmctld", "-D", "-i"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]):
            daemons.append(_daemon(made, *command))
        deadline = time.monotonic() + 60
        while (states := _node_states(made)) != ["idle", "idle"]:
            assert time.monotonic() < deadline, f"nodes are {states}:\n{made.logs()}"
            time.sleep(0.2)
        yield made
    finally:
        if len(daemons) > 1:
            subprocess.run(["scancel", "--user=root", "--quiet"], env=made.environment, timeout=60, check=False)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _start_munge(made: Cluster) -> subprocess.Popen[bytes]:
    home = made.folder / "munge"
    home.mkdir(mode=0o755)
    (home / "key").write_bytes(os.urandom(128))
    (home / "key").chmod(0o400)
    files = {"key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed", "socket": "socket"}
    options = [f"--{option}={home / file}" for option, file in files.items()]
    daemon = _daemon(made, "munged", "--foreground", "--force", *options)
    while not (home / "socket").exists():
        assert daemon.poll() is None, (home / "log").read_text()
        time.sleep(0.02)
    return daemon


def _daemon(made: Cluster, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, env=made.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _node_states(made: Cluster) -> list[str]:
    done = subprocess.run(
        ["sinfo", "-h", "-N", "-o", "%t"], env=made.environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout.split()
