"""Numbers that go wrong: what is planted is skipped or rolled back, and what follows is as if it had never been."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from megacpt.checkpoint.folder import CheckpointFolder, read_state
from megacpt.data.batch import MicroBatch
from megacpt.engine.engine import Acceptable, StepResult
from megacpt.engine.pipelined import PipelinedEngine
from megacpt.engine.sharded import ShardedEngine
from megacpt.observe.events import EVENTS_FILE
from tests.distributed import run_ranks
from tests.long_form import cases
from tests.parity.runs import metrics_of, refusal, train, write_recipe

LAYOUTS = {
    "pipeline 2, bf16": (2, {"pipeline": 2}, "bfloat16"),
    "ZeRO-2 x 2, bf16": (2, {"zero_stage": 2}, "bfloat16"),
    "one process, fp32": (1, {"zero_stage": 0}, "float32"),
}


def planted(rank: int, arguments: list[str], kind: str, calls: Sequence[int]) -> int:
    """The body of a rank: the training command, with a fault in the calls of `train_step` (from 1) that are named.

    data: the last rank's weights of the loss are NaN. loss: they are 1e4, on every rank. gradient: one gradient of the
    last rank is NaN. weights: one weight of the last rank becomes NaN, and stays it.
    """
    is_last = rank == int(torch.distributed.get_world_size()) - 1
    for engine_class in (PipelinedEngine, ShardedEngine):
        _plant(engine_class, kind, calls, is_last)
    return train(rank, arguments)


def _plant(engine_class: Any, kind: str, calls: Sequence[int], is_last: bool) -> None:
    train_step, count = engine_class.train_step, [0]

    def spoiled(
        self: Any, micro_batches: Sequence[MicroBatch], learning_rate: float, acceptable: Acceptable
    ) -> StepResult:
        count[0] += 1
        handle = None
        if count[0] in calls:
            if kind == "data" and is_last:
                micro_batches[-1].weights.fill_(math.nan)
            if kind == "loss":
                for batch in micro_batches:
                    batch.weights.mul_(1e4)
            _, parameter, _ = next(iter(self.parameters()))
            if kind == "gradient" and is_last:
                handle = parameter.register_hook(lambda gradient: gradient * math.nan)
            if kind == "weights" and is_last:
                with torch.no_grad():
                    parameter.view(-1)[0] = math.nan
        result: StepResult = train_step(self, micro_batches, learning_rate, acceptable)
        if handle is not None:
            handle.remove()
        return result

    engine_class.train_step = spoiled


def events_of(recipe: Path, name: str) -> list[dict[str, Any]]:
    lines = (recipe.parent / "runs" / name / EVENTS_FILE).read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] not in ("start", "end", "checkpoint")]


@pytest.mark.parametrize(
    "layout, kind",
    cases(
        product(LAYOUTS, ["data", "gradient"]),
        always=[("pipeline 2, bf16", "data"), ("ZeRO-2 x 2, bf16", "gradient")],
    ),
)
def test_a_step_that_is_not_finite_is_skipped_and_named(layout: str, kind: str, tmp_path: Path) -> None:
    world_size, parallel, dtype = LAYOUTS[layout]
    recipe = write_recipe(tmp_path, parallel=parallel, evaluation={"every": None, "at_start": False, "at_end": False})
    arguments = ["--recipe", str(recipe), "--set", f"model.dtype={dtype}", "--resume", "auto"]
    assert run_ranks(world_size, planted, arguments, kind, [3]) == [0] * world_size
    metrics = metrics_of(recipe)
    assert [record["step"] for record in metrics if record.get("skipped")] == [3]
    assert all(math.isfinite(record["loss"]) for record in metrics[3:])
    (event,) = events_of(recipe, "small")
    assert (event["event"], event["step"], event["first_sample"], event["num_samples"]) == ("not_finite", 3, 16, 8)


def test_broken_weights_roll_back_and_jump_and_resume_repeats_the_jump(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        parallel={"pipeline": 2},
        evaluation={"every": "50%"},
        guard={"on_spike": "rollback", "patience_steps": 2},
    )
    arguments = ["--recipe", str(recipe), "--resume", "auto", "--set"]
    # Weights break at step 4; steps 4 and 5 are bad; back to the checkpoint of step 2 (every 2 steps), then on.
    assert run_ranks(2, planted, [*arguments, "name=rolled"], "weights", [4]) == [0, 0]
    metrics = metrics_of(recipe, "rolled")
    assert [record["step"] for record in metrics] == list(range(1, 9))
    assert not any(record.get("skipped") for record in metrics)
    assert [event["event"] for event in events_of(recipe, "rolled")] == ["not_finite", "not_finite", "rollback"]
    rollback = events_of(recipe, "rolled")[-1]
    assert (rollback["to_step"], rollback["jump_at_step"], rollback["num_samples"]) == (2, 4, 16)

    # Stopped after the rollback and started again: the jump is in the checkpoint, and the rest is the same.
    assert run_ranks(2, planted, [*arguments, "name=again", "--set", "training.stop_at_step=6"], "weights", [4]) == [
        0,
        0,
    ]
    assert run_ranks(2, train, [*arguments, "name=again"]) == [0, 0]
    assert metrics_of(recipe, "again") == metrics

    # Without the fault: the same until the jump, then other samples.
    assert run_ranks(2, train, [*arguments, "name=undisturbed"]) == [0, 0]
    undisturbed = metrics_of(recipe, "undisturbed")
    assert undisturbed[:3] == metrics[:3]
    assert undisturbed[3]["loss"] != metrics[3]["loss"]


@pytest.mark.slow
def test_another_layout_repeats_the_jump(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        parallel={"pipeline": 2},
        evaluation={"every": None, "at_start": False, "at_end": False},
        guard={"on_spike": "rollback", "patience_steps": 2},
    )
    stopped = ["--recipe", str(recipe), "--set", "training.stop_at_step=6"]
    assert run_ranks(2, planted, stopped, "weights", [4]) == [0, 0]  # rolled back, and jumped at step 4
    for layout in ("pipeline", "data"):
        shutil.copytree(tmp_path / "runs" / "small", tmp_path / "runs" / layout)
        changes = [] if layout == "pipeline" else ["--set", "parallel.pipeline=1"]
        arguments = ["--recipe", str(recipe), "--set", f"name={layout}", *changes, "--resume", "auto"]
        assert run_ranks(2, train, arguments) == [0, 0]
    for one, other in zip(metrics_of(recipe, "pipeline"), metrics_of(recipe, "data"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
        counted = [{name: domain["tokens"] for name, domain in record["domains"].items()} for record in (one, other)]
        assert counted[0] == counted[1]
    (jump,) = read_state(CheckpointFolder(tmp_path / "runs" / "data" / "checkpoints").complete()[-1])["data"]["jumps"]
    assert (jump["at_step"], jump["num_samples"]) == (3, 16)


@pytest.mark.parametrize("on_spike", cases(["skip", "rollback"], always=["rollback"]))
def test_a_loss_spike_is_left_out(on_spike: str, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        training={"tokens": 24 * 8 * 16},
        guard={"on_spike": on_spike, "window_steps": 8, "patience_steps": 1},
        evaluation={"every": None},
    )
    assert run_ranks(1, planted, ["--recipe", str(recipe)], "loss", [20]) == [0]
    spike, *rollbacks = events_of(recipe, "small")
    assert spike["event"] == "spike" and spike["loss"] > spike["limits"]["loss"]
    assert [record["step"] for record in metrics_of(recipe)] == list(range(1, 25))
    skipped = [record["step"] for record in metrics_of(recipe) if record.get("skipped")]
    if on_spike == "skip":
        assert (skipped, rollbacks) == ([20], [])
    else:
        (rollback,) = rollbacks
        assert skipped == []
        assert (rollback["event"], rollback["to_step"], rollback["jump_at_step"], rollback["num_samples"]) == (
            "rollback", 18, 20, 8,
        )  # fmt: skip


def test_rollbacks_that_do_not_help_end_in_one_clear_error(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, guard={"on_spike": "rollback", "patience_steps": 1, "max_rollbacks": 1})
    (code,) = run_ranks(1, planted, ["--recipe", str(recipe)], "data", range(4, 99))
    assert code == 2
    assert [event["event"] for event in events_of(recipe, "small")][-2:] == ["rollback", "not_finite"]
    assert "already holds a run" in refusal(recipe), "nothing is lost: the run can be continued by hand"
