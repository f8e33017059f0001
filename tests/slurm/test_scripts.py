"""The batch script with stand-ins for Slurm's commands: what each rank gets, and what signals and failures do.

`srun` runs its command once per task with Slurm's variables, and hands USR1 on to all processes of a task; `python`
writes down its arguments and environment in place of training.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megacpt.trainer.stopping import INTERRUPTED

SCRIPTS = Path(__file__).parents[2] / "slurm"
NUM_NODES = 2
TASKS_PER_NODE = 2

SRUN = """
import itertools, os, signal, subprocess, sys
options = list(itertools.takewhile(lambda argument: argument.startswith("--"), sys.argv[1:]))
command = sys.argv[1 + len(options):]
open("srun.txt", "w").write("\\n".join(options))
per_node = int(os.environ["SLURM_NTASKS_PER_NODE"])
num_tasks = int(os.environ["SLURM_JOB_NUM_NODES"]) * per_node
tasks = []
signal.signal(signal.SIGUSR1, lambda *_: [os.killpg(task.pid, signal.SIGUSR1) for task in tasks])
for task in range(num_tasks):
    of_the_task = dict(SLURM_PROCID=task, SLURM_LOCALID=task % per_node, SLURM_NTASKS=num_tasks)
    environment = os.environ | {name: str(value) for name, value in of_the_task.items()}
    tasks.append(subprocess.Popen(command, env=environment, start_new_session=True))
log = os.environ.get("TRAIN_LOG")
if log:
    open("slurm-123456/node7.log", "a").write(log + "\\n")
sys.exit(max(abs(task.wait()) for task in tasks))
"""

SCONTROL = """
import sys
if sys.argv[1:3] == ["show", "hostnames"]:
    print("node7\\nnode8")
else:
    open("scontrol.txt", "a").write(" ".join(sys.argv[1:]) + "\\n")
"""

PYTHON = """
import json, os, signal, sys, time
rank = os.environ.get("RANK", "dry-run")
dry_run = "--dry-run" in sys.argv
stopped = []
signal.signal(signal.SIGUSR1, lambda *_: stopped.append("USR1"))
open(f"{rank}.new", "w").write(json.dumps(dict(arguments=sys.argv[1:], environment=dict(os.environ))))
os.rename(f"{rank}.new", f"{rank}.json")
while not dry_run and "WAIT" in os.environ and not stopped:
    time.sleep(0.01)
if stopped:
    open(f"{rank}.stopped", "w").close()
sys.exit(int(os.environ.get("DRY_RUN_STATUS" if dry_run else "TRAIN_STATUS", "0")))
"""


class Job:
    """A folder with the stand-ins, and the script run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "slurm").symlink_to(SCRIPTS)
        commands = folder / "bin"
        commands.mkdir()
        for name, source in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
            command = commands / name
            command.write_text(f"#!{sys.executable} -S\n{source}")
            command.chmod(command.stat().st_mode | stat.S_IXUSR)
        self.environment = {
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_JOB_NUM_NODES": str(NUM_NODES),
            "SLURM_NTASKS_PER_NODE": str(TASKS_PER_NODE),
            "SLURM_CPUS_PER_TASK": "4",
        }

    def start(self, *arguments: str, script: str = "train", **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(SCRIPTS / f"{script}.sbatch"), *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, script: str = "train", **environment: str) -> tuple[int, str]:
        process = self.start(*arguments, script=script, **environment)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def call(self, name: str) -> dict[str, Any]:
        """What the stand-in for Python was called with, by rank or "dry-run"."""
        call: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        return call

    def requests(self) -> int:
        """How often the job was put back into the queue."""
        calls = self.folder / "scontrol.txt"
        return calls.read_text().count("requeue 123456\n") if calls.exists() else 0

    def wait_for_ranks(self, process: subprocess.Popen[str]) -> None:
        ranks = [self.folder / f"{rank}.json" for rank in range(NUM_NODES * TASKS_PER_NODE)]
        while not all(rank.exists() for rank in ranks):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_every_rank_gets_its_place(job: Job) -> None:
    status, output = job.run("--recipe", "debug tiny", "--set", "a=$b")
    assert status == 0, output
    for rank in range(NUM_NODES * TASKS_PER_NODE):
        environment = job.call(str(rank))["environment"]
        expected = {
            "RANK": str(rank),
            "WORLD_SIZE": "4",
            "LOCAL_RANK": str(rank % TASKS_PER_NODE),
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "node7",
            "MASTER_PORT": "23456",
            "NCCL_DEBUG": "WARN",
            "OMP_NUM_THREADS": "4",
        }
        assert {name: environment.get(name) for name in expected} == expected
        assert job.call(str(rank))["arguments"] == [
            *("megacpt/train.py", "--resume", "auto", "--recipe", "debug tiny", "--set", "a=$b"),
        ]


def test_srun_gives_every_rank_all_gpus_and_every_node_a_log(job: Job) -> None:
    job.run("--recipe", "x")
    options = (job.folder / "srun.txt").read_text().split()
    assert {"--gpu-bind=none", "--kill-on-bad-exit=1", "--cpus-per-task=4"} <= set(options)
    assert "--output=slurm-123456/%N.log" in options
    assert (job.folder / "slurm-123456").is_dir()


def test_the_submitting_shell_wins(job: Job) -> None:
    job.run("--recipe", "x", NCCL_DEBUG="INFO", OMP_NUM_THREADS="1")
    environment = job.call("0")["environment"]
    assert (environment["NCCL_DEBUG"], environment["OMP_NUM_THREADS"]) == ("INFO", "1")


def test_a_recipe_that_does_not_fit_is_refused_before_any_rank_starts(job: Job) -> None:
    status, _ = job.run("--recipe", "x", DRY_RUN_STATUS="3")
    assert status == 3
    assert job.call("dry-run")["arguments"] == [
        *("megacpt/train.py", "--recipe", "x", "--dry-run", "--world-size", "4"),
    ]
    assert not (job.folder / "srun.txt").exists()


def test_without_arguments_it_says_how_it_is_called(job: Job) -> None:
    status, output = job.run()
    assert status == 2
    assert "--recipe NAME" in output


@pytest.mark.parametrize("status", [0, 2], ids=["finished", "a user's mistake"])
def test_what_a_new_start_does_not_help_is_not_requeued(job: Job, status: int) -> None:
    assert job.run("--recipe", "x", TRAIN_STATUS=str(status))[0] == status
    assert job.requests() == 0


def test_an_interrupted_run_is_requeued_however_often(job: Job) -> None:
    for requests in (1, 2, 3, 4):
        assert job.run("--recipe", "x", TRAIN_STATUS=str(INTERRUPTED))[0] == INTERRUPTED
        assert job.requests() == requests


def test_failures_without_a_new_checkpoint_are_requeued_until_they_are_too_many(job: Job) -> None:
    assert job.run("--recipe", "x", TRAIN_STATUS="7", MAX_FAILURES="2")[0] == 7
    assert job.requests() == 1
    status, output = job.run("--recipe", "x", TRAIN_STATUS="7", MAX_FAILURES="2")
    assert status == 7 and job.requests() == 1
    assert "failed 2 times in a row without a new checkpoint: not requeued" in output


def test_a_new_checkpoint_ends_the_row_of_failures(job: Job) -> None:
    job.run("--recipe", "x", TRAIN_STATUS="7", MAX_FAILURES="2")
    for requests in (2, 3, 4):
        log = f"0: checkpoint runs/x/checkpoints/step_{requests:06d}"
        assert job.run("--recipe", "x", TRAIN_STATUS="7", MAX_FAILURES="2", TRAIN_LOG=log)[0] == 7
        assert job.requests() == requests


def test_a_requeued_branch_goes_on_from_its_own_checkpoints(job: Job) -> None:
    branch = ("--recipe", "x", "--resume", "runs/trunk")
    failed = "0: warning: there is no checkpoint of step 6: No space left: 'runs/x/step_000006.partial/tensors'"
    for log, begins_at in (
        (failed, "runs/trunk"),
        ("0: checkpoint runs/x/checkpoints/step_000008", "runs/trunk"),
        ("", "auto"),
    ):
        job.run(*branch, TRAIN_STATUS=str(INTERRUPTED), TRAIN_LOG=log)
        assert job.call("0")["arguments"][-2:] == ["--resume", begins_at]


@pytest.mark.parametrize(
    "sent, requests", [(signal.SIGUSR1, 1), (signal.SIGTERM, 0)], ids=["time limit", "cancelled or preempted"]
)
def test_a_signal_reaches_every_rank_and_the_job_waits_for_them(job: Job, sent: signal.Signals, requests: int) -> None:
    process = job.start("--recipe", "x", WAIT="1", TRAIN_STATUS=str(INTERRUPTED))
    job.wait_for_ranks(process)
    process.send_signal(sent)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED, output
    assert len(list(job.folder.glob("*.stopped"))) == NUM_NODES * TASKS_PER_NODE
    assert job.requests() == requests


def test_an_evaluation_trains_nothing_and_is_not_requeued(job: Job) -> None:
    status, output = job.run("--recipe", "x", script="eval", TRAIN_STATUS="7")
    assert status == 7, output
    assert "training.stop_at_step=0" in job.call("0")["arguments"]
    assert job.requests() == 0


def test_the_scripts_pass_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = [path.relative_to(SCRIPTS.parent) for path in sorted(SCRIPTS.iterdir()) if path.suffix != ".md"]
    subprocess.run(["shellcheck", "--external-sources", *scripts], check=True, cwd=SCRIPTS.parent)


@pytest.mark.parametrize(
    ("array", "num_slices", "built"),
    [((2, 3, 4), None, "4"), ((7, 7, 1), "16", "16"), ((7, 7, 1), None, None)],
    ids=["all", "one again", "one of nobody knows how many"],
)
def test_a_task_of_the_array_builds_its_slice(
    job: Job, array: tuple[int, int, int], num_slices: str | None, built: str | None
) -> None:
    megacpt = job.folder / "bin" / "megacpt"
    megacpt.write_text('#!/bin/bash\nprintf "%s\\n" "$@" >> called.txt\n')
    megacpt.chmod(0o755)
    index, last, count = array
    places = {"SLURM_ARRAY_TASK_ID": index, "SLURM_ARRAY_TASK_MAX": last, "SLURM_ARRAY_TASK_COUNT": count}
    environment = {name: str(value) for name, value in places.items()}
    environment |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1"}
    environment |= {"NUM_SLICES": num_slices} if num_slices else {}
    status, output = job.run("--input", "a b", script="build_shards")
    assert status == 2 and "this is no task of an array" in output
    status, output = job.run("--input", "a b", script="build_shards", **environment)
    assert status == (0 if built else 2), output
    expected = [
        "shards",
        "build",
        "--input",
        "a b",
        "--workers",
        "4",
        "--shard-index",
        str(index),
        "--num-shards",
        built,
    ]
    called = job.folder / "called.txt"
    assert (called.read_text().splitlines() if built else called.exists()) == (expected if built else False)
