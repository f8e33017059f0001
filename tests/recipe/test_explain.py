"""The plan as text: what a person must be able to read off it."""

from __future__ import annotations

import io

from rich.console import Console

from megacpt.recipe import explain, load_recipe, resolve, show
from tests.recipe.conftest import Write


def lines(write: Write, world_size: int, *overrides: str, layers: list[int] | None = None) -> list[str]:
    text = explain(resolve(load_recipe(write(), overrides), world_size), layers)
    return [" ".join(line.split()) for line in text.splitlines()]


def test_layout_says_who_holds_what(write: Write) -> None:
    plan = lines(write, 8, "parallel={pipeline: 2, tensor: 2, sequence_parallel: true}", layers=[3, 1])
    assert "run, on 8 processes" in plan
    assert "grid pipeline 2 x data 2 x tensor 2, tensor innermost" in plan
    assert "stage 0 ranks 0-3: embedding, 3 layers" in plan
    assert "stage 1 ranks 4-7: 1 layer, norm, head and loss" in plan
    assert "idle 11.1% of each step fills and drains the pipeline" in plan


def test_a_stated_partition_is_shown_as_stated(write: Write) -> None:
    assert "stage 1 rank 1: 3 layers, norm, head and loss" in lines(
        write, 2, "parallel={pipeline: 2, partition: [1, 3]}"
    )


def test_data_and_steps(write: Write) -> None:
    plan = lines(
        write,
        4,
        "data.domains.law.target_weight=3",
        "data.domains.web.target_weight=2",
        "data.domains.code={role: anchor, held_out: x}",
        "training.stop_at_step=9",
    )
    assert "law new 75.0% 60.0% 750K 4 epochs yes" in plan
    assert "web replay 25.0% 40.0% 250K 4 epochs no" in plan
    assert "code anchor - - - - yes" in plan
    assert "batch 16 rows x 64 = 1,024 tokens: 4 replicas x 4 micro-batches x 1 row" in plan
    assert "run 977 steps, 1,000,448 tokens" in plan
    assert "stops after step 9; schedules go on as if it did not" in plan
    assert "evaluation at the start, every 98 steps, at the end; after the first 1, 2, 4, ... steps too" in plan


def test_an_order_that_the_schedule_wastes_is_warned_of(write: Write) -> None:
    def warnings(*overrides: str) -> list[str]:
        return [line for line in lines(write, 1, *overrides) if line.startswith("warning")]

    rising = "data.domains.law={order: ascending, order_by: score}"
    (warning,) = warnings(rising)
    assert "the text of law comes by rising score, and the learning rate falls to 10% of its peak" in warning
    assert "lr.min to 3.3e-05 or more" in warning
    assert warnings(rising, "lr={schedule: wsd, min: 1e-5}")
    infinite = "schedule: infinite_cosine, cooldown: 60%, constant: 5e-5"
    assert warnings(rising, f"lr={{{infinite}, anneal: 10%}}")
    stage = "data.stages=[{at: 50%, lr: {schedule: constant, peak: 1e-5}}]"
    for kept in ("lr.schedule=constant", "lr.min=3.4e-5", f"lr={{{infinite}}}", stage):
        assert not warnings(rising, kept)
    assert not warnings("data.domains.law={order: descending, order_by: score}")


def test_milestones_of_each_schedule(write: Write) -> None:
    cosine = lines(write, 1)
    assert "peak 1.00e-04 step 10 10K tokens" in cosine
    assert "end 1.00e-05 step 977 1M tokens" in cosine
    wsd = lines(write, 1, "lr={schedule: wsd, decay: 20%, min: 0}")
    assert "decay from 1.00e-04 step 782 800K tokens" in wsd
    assert "end 0.00e+00 step 977 1M tokens" in wsd
    assert "end 1.00e-04 step 977 1M tokens" in lines(write, 1, "lr.schedule=constant")
    infinite = lines(write, 1, "lr={schedule: infinite_cosine, cooldown: 60%, constant: 5e-5, anneal: 10%}")
    assert "constant 5.00e-05 step 596 610K tokens" in infinite
    assert "anneal from 5.00e-05 step 880 900K tokens" in infinite
    assert "end 1.00e-05 step 977 1M tokens" in infinite
    assert "end 5.00e-05 step 977 1M tokens" in lines(
        write, 1, "lr={schedule: infinite_cosine, cooldown: 60%, constant: 5e-5}"
    )


def test_steps_and_compute_follow_a_batch_that_changes(write: Write) -> None:
    """500,736 tokens in 489 steps of 1,024; what is left of 1M in 244 of 2,048."""
    larger = "data.stages=[{at: 50%, global_rows: 32}]"
    plan = lines(write, 1, larger, "lr={schedule: wsd, decay: 20%, min: 0}")
    assert "decay from 1.00e-04 step 636 800K tokens" in plan
    assert "end 0.00e+00 step 733 1M tokens" in plan
    assert "run 733 steps, 1,000,448 tokens" in plan
    compute = [
        next(line for line in lines(write, 1, *changes) if line.startswith("compute")) for changes in ([], [larger])
    ]
    assert compute[0] == compute[1]


def test_a_model_that_is_not_at_hand_is_said_to_be_so(write: Write) -> None:
    plan = lines(write, 1, "model={init: pretrained, path: some/model, revision: abc, config: null}")
    assert "model some/model at abc" in plan
    assert any(line.startswith("architecture unknown until the model is at hand") for line in plan)
    assert not any("Memory" in line for line in plan)


def test_the_layers_of_an_unknown_model_can_be_stated(write: Write) -> None:
    unknown = "model={init: pretrained, path: some/model, config: null}"
    plan = lines(write, 2, unknown, "parallel={pipeline: 2, partition: [7, 5]}")
    assert "stage 0 rank 0: embedding, 7 layers" in plan


def test_the_console_shows_the_same_words(write: Write) -> None:
    resolved = resolve(load_recipe(write(), ["parallel.pipeline=2"]), world_size=2)
    console = Console(file=io.StringIO(), width=200)
    show(resolved, console)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().split() == explain(resolved).split()
