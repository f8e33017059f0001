"""Which steps are bad, and what they lead to."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from megacpt.data.loader import Loader
from megacpt.engine.engine import StepResult
from megacpt.errors import TrainingError
from megacpt.observe.events import EVENTS_FILE, Events
from megacpt.trainer.guard import Guard, GuardSettings, OnSpike, Rollback

ROWS = 8
LOADER = SimpleNamespace(
    stream=SimpleNamespace(
        history=SimpleNamespace(
            first_sample=lambda step: step * ROWS, settings=lambda step: SimpleNamespace(global_rows=ROWS)
        )
    )
)


def make(folder: Path | None = None, on_spike: OnSpike = "skip", **settings: Any) -> Guard:
    defaults = dict(
        window_steps=32, threshold=8.0, patience_steps=2, jump_before_steps=1, max_skipped_steps=4, max_rollbacks=1
    )
    return Guard(GuardSettings(on_spike, **defaults | settings), Events(folder), cast(Loader, LOADER))


def take(guard: Guard, step: int, loss: float, grad_norm: float = 1.0) -> tuple[bool, Rollback | None]:
    """(the update was applied, what is wanted)."""
    applied = guard.is_acceptable(loss, grad_norm)
    return applied, guard.after_step(step, StepResult(loss, grad_norm, not applied, []))


def warmed_up(guard: Guard, num_steps: int = 40) -> int:
    """Give a guard a noisy, slowly falling loss; returns the next step."""
    numbers = random.Random(0)
    for step in range(1, num_steps + 1):
        assert take(guard, step, 3.0 - 0.002 * step + numbers.gauss(0, 0.02), math.exp(numbers.gauss(0, 0.2))) == (
            True,
            None,
        )
    return num_steps + 1


@pytest.mark.parametrize("loss, grad_norm", [(math.nan, 1.0), (math.inf, 1.0), (3.0, math.inf), (3.0, math.nan)])
@pytest.mark.parametrize("on_spike", ["warn", "skip"])
def test_what_is_not_finite_is_never_applied(on_spike: OnSpike, loss: float, grad_norm: float) -> None:
    guard = make(on_spike=on_spike)
    assert take(guard, 1, loss, grad_norm) == (False, None)
    assert guard.num_skipped_steps == 1


@pytest.mark.parametrize("on_spike, applied", [("warn", True), ("skip", False), ("rollback", False)])
@pytest.mark.parametrize("values", [(4.0, 1.0), (3.0, 50.0)], ids=["loss", "gradient norm"])
def test_a_spike_is_far_above_the_recent_past(
    on_spike: OnSpike, applied: bool, values: tuple[float, float], tmp_path: Path
) -> None:
    guard = make(tmp_path, on_spike)
    step = warmed_up(guard)
    assert take(guard, step, *values) == (applied, None)
    event = json.loads((tmp_path / EVENTS_FILE).read_text())
    assert (event["event"], event["step"], event["skipped"]) == ("spike", step, not applied)
    assert (event["first_sample"], event["num_samples"]) == ((step - 1) * ROWS, ROWS)
    assert take(guard, step + 1, 3.0) == (True, None), "the spike moved the window"


def test_nothing_is_a_spike_before_there_is_a_past() -> None:
    guard = make()
    assert take(guard, 1, 3.0)[0] and take(guard, 2, 30.0)[0]


def test_bad_steps_in_a_row_roll_back_and_jump_over_their_samples() -> None:
    guard = make(on_spike="rollback")
    step = warmed_up(guard)
    assert take(guard, step, math.nan) == (False, None), "one bad step is only skipped"
    assert take(guard, step + 1, 9.0) == (False, Rollback(step, step - 1, step + 1))


def test_rollbacks_have_a_budget_that_going_back_does_not_refill() -> None:
    guard = make(on_spike="rollback")
    before = guard.state()
    assert [take(guard, step, math.nan)[1] for step in (1, 2)] == [None, Rollback(1, 1, 2)]
    guard.restore(before)
    take(guard, 1, math.nan)
    with pytest.raises(TrainingError, match=r"rolled back 1 times, which is guard\.max_rollbacks"):
        take(guard, 2, math.nan)


def test_skipping_without_end_ends_the_run() -> None:
    guard = make()
    for step in (1, 2, 3):
        take(guard, step, math.nan)
    with pytest.raises(TrainingError, match="4 steps in a row were skipped"):
        take(guard, 4, math.nan)


def test_a_restored_guard_judges_as_the_one_that_was_saved() -> None:
    guard, other = make(), make()
    step = warmed_up(guard)
    other.restore(json.loads(json.dumps(guard.state())))
    assert take(other, step, 4.0) == take(guard, step, 4.0) == (False, None)
