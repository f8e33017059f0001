"""The training job on a real Slurm of two nodes: preempted, requeued, finished, and the same as one that was not."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

from tests.parity.runs import evaluations_of, metrics_of, run_command, write_recipe
from tests.slurm.cluster import Cluster, cluster, missing

REPOSITORY = Path(__file__).parents[2]
NUM_STEPS = 40
UNFINISHED = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED")

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def wait_until(made: Cluster, job: str, is_there: Path, num_lines: int) -> None:
    """Wait until a file has so many lines; not longer than the job runs."""
    while not is_there.exists() or is_there.read_bytes().count(b"\n") < num_lines:
        assert made.field(job, "JobState") in UNFINISHED, _told(made, is_there.parents[2], job)
        time.sleep(0.2)


def _told(made: Cluster, folder: Path, job: str) -> str:
    logs = [folder / f"slurm-{job}.log", *(folder / f"slurm-{job}").glob("*.log")]
    return "\n".join([*(f"== {log}\n{log.read_text()[-3000:]}" for log in logs if log.exists()), made.logs()])


def test_a_preempted_job_is_requeued_and_finishes_as_if_it_had_not_been(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, parallel={"pipeline": 2}, training={"tokens": NUM_STEPS * 8 * 16}, checkpoint={"every": None}
    )
    for name in ("slurm", "megacpt"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    with tempfile.TemporaryDirectory(prefix="megacpt-slurm-") as folder, cluster(Path(folder)) as made:
        layout = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1"]
        environment = "--export=ALL,MASTER_ADDR=127.0.0.1"  # n1 is no name that resolves
        command = ["sbatch", "--parsable", *layout, environment, "slurm/train.sbatch", "--recipe", str(recipe)]
        job = made.command(*command, "--set", "name=preempted", cwd=tmp_path)
        wait_until(made, job, tmp_path / "runs" / "preempted" / "metrics.jsonl", 3)
        made.command("scancel", "--signal=USR1", "--batch", job)
        while made.field(job, "Restarts") == "0" or made.field(job, "JobState") == "COMPLETING":
            assert made.field(job, "JobState") != "FAILED", _told(made, tmp_path, job)
            time.sleep(0.2)
        time.sleep(2)  # slurmd refuses a job that starts in the second in which it was killed
        made.command("scontrol", "update", f"JobId={job}", "StartTime=now")  # a requeued job waits for two minutes
        while (state := made.field(job, "JobState")) in UNFINISHED:
            time.sleep(0.2)
        assert state == "COMPLETED", f"{state}\n{_told(made, tmp_path, job)}"
        assert made.field(job, "Restarts") == "1"
    assert run_command(2, recipe) == [0, 0]
    assert len(metrics_of(recipe)) == NUM_STEPS
    assert metrics_of(recipe, "preempted") == metrics_of(recipe)
    assert evaluations_of(recipe, "preempted") == evaluations_of(recipe)
