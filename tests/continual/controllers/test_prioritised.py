"""Prioritised replay: the formula, and that the worst forgetting falls at an equal amount of replay."""

from __future__ import annotations

import pytest

from megacpt.continual.controllers.controller import Observation
from megacpt.continual.controllers.prioritised import Prioritised
from tests.continual.controllers.learner import Learner, observe, simulate

PLAN = {"new": 0.7, "a": 0.2, "b": 0.1}


def test_shares_the_replay_out_by_the_loss_increases() -> None:
    base = {"new": 4.0, "a": 2.0, "b": 2.0}
    seen = observe(base, {"new": 3.0, "a": 2.1, "b": 2.3}, weights=PLAN)
    shares = Prioritised(("a", "b"), exponent=1.0, kept_share=0.2).decide(seen, PLAN)
    assert shares == pytest.approx({
        "new": 0.7,
        "a": 0.3 * 0.8 * 0.1 / 0.4 + 0.2 * 0.2,
        "b": 0.3 * 0.8 * 0.3 / 0.4 + 0.2 * 0.1,
    })  # fmt: skip
    squared = Prioritised(("a", "b"), exponent=2.0, kept_share=0.0).decide(seen, PLAN)
    assert squared["b"] == pytest.approx(0.3 * 0.9)


def test_what_was_not_forgotten_keeps_the_plan() -> None:
    seen = observe({"new": 4.0, "a": 2.0, "b": 2.0}, {"new": 3.0, "a": 1.9, "b": 2.0}, weights=PLAN)
    assert Prioritised(("a", "b")).decide(seen, PLAN) == pytest.approx(PLAN)


def test_the_worst_forgetting_falls_at_equal_replay() -> None:
    plan = {"new": 0.7, "a": 0.15, "b": 0.15}

    def run(controller: Prioritised | None) -> list[Observation]:
        old = {"a": 0.05, "b": 0.005}  # the new text conflicts with a
        return simulate(Learner({"new": 0.0, "a": 2.0, "b": 2.0}, forgets=old), controller, plan)

    def worst(observations: list[Observation]) -> float:
        return max(observations[-1].losses[name] - observations[0].losses[name] for name in ("a", "b"))

    steered = run(Prioritised(("a", "b")))
    assert worst(steered) < 0.9 * worst(run(None))
    assert all(observation.weights["new"] == pytest.approx(0.7) for observation in steered)


def test_small_rises_to_a_large_power_go_to_the_worst() -> None:
    seen = observe({"new": 4.0, "a": 2.0, "b": 2.0}, {"new": 3.0, "a": 2.0 + 1e-6, "b": 2.0 + 2e-6}, weights=PLAN)
    shares = Prioritised(("a", "b"), exponent=60.0, kept_share=0.0).decide(seen, PLAN)
    assert shares == pytest.approx({"new": 0.7, "a": 0.0, "b": 0.3})
