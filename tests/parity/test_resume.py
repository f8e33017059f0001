"""A run killed at any step and resumed is the uninterrupted run, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from megacpt.checkpoint.folder import CheckpointFolder
from tests.distributed import RankFailure
from tests.long_form import cases
from tests.parity.runs import evaluations_of, metrics_of, refusal, run_command, write_recipe

LAYOUTS = {
    "one process, fp32": (1, {}, "float32"),
    "pipeline 2, bf16": (2, {"pipeline": 2}, "bfloat16"),
    "pipeline 2 x tensor 2, sequence parallel, fp32": (
        4, {"pipeline": 2, "tensor": 2, "sequence_parallel": True}, "float32",
    ),
    "ZeRO-1 x 2, bf16": (2, {"zero_stage": 1}, "bfloat16"),
    "ZeRO-2 x 2, bf16": (2, {"zero_stage": 2}, "bfloat16"),
    "ZeRO-3 x 2, fp32": (2, {"zero_stage": 3}, "float32"),
}  # fmt: skip


ALWAYS = ("pipeline 2, bf16", "pipeline 2 x tensor 2, sequence parallel, fp32", "ZeRO-3 x 2, fp32")


@pytest.mark.parametrize("layout", cases(LAYOUTS, always=ALWAYS))
def test_killed_and_resumed_is_uninterrupted(layout: str, tmp_path: Path) -> None:
    world_size, parallel, dtype = LAYOUTS[layout]
    recipe = write_recipe(tmp_path, parallel=parallel)
    changes = ["--set", f"model.dtype={dtype}"]
    assert run_command(world_size, recipe, *changes) == [0] * world_size
    expected, expected_evaluations = metrics_of(recipe), evaluations_of(recipe)
    assert len(expected) == 8

    killed = [*changes, "--set", "name=killed"]
    steps = random.randint(1, 7)
    print(f"killed after step {steps}")
    with pytest.raises(RankFailure, match="exit code -9"):
        run_command(
            world_size, recipe, *killed, kill_after_steps=steps, metrics=tmp_path / "runs" / "killed" / "metrics.jsonl"
        )
    assert len(metrics_of(recipe, "killed")) < 8, "it was killed too late to prove anything"
    assert run_command(world_size, recipe, *killed, "--resume", "auto") == [0] * world_size
    assert metrics_of(recipe, "killed") == expected
    assert evaluations_of(recipe, "killed") == expected_evaluations


def test_a_save_that_never_finished_is_ignored(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    assert run_command(1, recipe, "--set", "training.stop_at_step=5") == [0]
    folder = CheckpointFolder(tmp_path / "runs" / "small" / "checkpoints")
    unfinished = folder.begin(7)
    (unfinished / "engine").mkdir()
    assert (folder.folder / "latest").read_text().strip() == "step_000005"
    assert folder.complete()[-1].name == "step_000005"
    assert run_command(1, recipe, "--resume", "auto") == [0]
    assert not unfinished.exists()
    assert [path.name for path in folder.complete()] == ["step_000006", "step_000008"]


@pytest.mark.parametrize(
    "change, named",
    [
        ("seed=1", "seed: 0 then, 1"),
        ("data.sequence_length=8", "data.sequence_length: 16 then, 8"),
        ("lr.peak=0.5", "lr.peak: 0.002 then, 0.5"),
        ("model.config.hidden_size=64", "model.config.hidden_size: 32 then, 64"),
    ],
)
def test_a_recipe_that_contradicts_the_checkpoint_is_refused(change: str, named: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    assert run_command(1, recipe, "--set", "training.stop_at_step=2") == [0]
    error = refusal(recipe, "--resume", "auto", "--set", change)
    assert "the recipe contradicts the checkpoint" in error
    assert named in error


def test_an_accepted_change_continues(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    assert run_command(1, recipe, "--set", "training.stop_at_step=2") == [0]
    change = ["--set", "lr.peak=0.001"]
    assert run_command(1, recipe, "--resume", "auto", *change, "--accept", "lr.peak") == [0]
    assert len(metrics_of(recipe)) == 8


def test_a_run_folder_is_not_overwritten(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    assert run_command(1, recipe, "--set", "training.stop_at_step=1") == [0]
    before = metrics_of(recipe)
    assert "already holds a run" in refusal(recipe)
    assert metrics_of(recipe) == before


def test_an_older_checkpoint_is_another_way(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, checkpoint={"every": "25%", "keep_last": 9})
    assert run_command(1, recipe) == [0]
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    older = ["--resume", str(checkpoints / "step_000004"), "--set", "training.stop_at_step=5"]
    assert run_command(1, recipe, *older) == [0]
    assert [record["step"] for record in evaluations_of(recipe)] == [0, 4, 5]
    assert run_command(1, recipe, "--resume", "auto") == [0]
    assert [record["step"] for record in evaluations_of(recipe)] == [0, 4, 8], "that of step 5 was due to the stop"
    assert [path.name for path in CheckpointFolder(checkpoints).complete()][-1] == "step_000008"
    assert (checkpoints / "step_000008.set_aside" / "state.json").is_file()
    assert len(metrics_of(recipe)) == 8


def test_a_finished_run_resumed_stays_as_it_is(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, evaluation={"every": None})
    assert run_command(1, recipe) == [0]
    before = metrics_of(recipe), evaluations_of(recipe)
    assert run_command(1, recipe, "--resume", "auto") == [0]
    assert (metrics_of(recipe), evaluations_of(recipe)) == before
