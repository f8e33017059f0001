"""Constrained: the multipliers, that budgets are kept, and that a larger budget costs less replay."""

from __future__ import annotations

import math

import pytest

from megacpt.continual.controllers.constrained import Constrained
from megacpt.continual.controllers.controller import Observation
from tests.continual.controllers.learner import Learner, observe, simulate

PLAN = {"new": 0.8, "a": 0.15, "b": 0.05}


def test_multipliers_are_the_mixture() -> None:
    controller = Constrained({"a": 0.1}, ("a", "b"), step_size=0.5)
    seen = observe({"new": 4.0, "a": 2.0, "b": 2.0}, {"new": 3.0, "a": 2.5, "b": 9.0}, weights=PLAN)
    multipliers = {"a": 0.15 / 0.8 + 0.5 * (0.5 - 0.1), "b": 0.05 / 0.8}  # b has no budget
    total = 1 + sum(multipliers.values())
    assert controller.decide(seen, PLAN) == pytest.approx(
        {"new": 1 / total, "a": multipliers["a"] / total, "b": multipliers["b"] / total}
    )
    assert controller.decide(seen[:1], PLAN) == pytest.approx(PLAN), "before training the plan holds"


def test_replay_stays_below_its_limit() -> None:
    seen = observe({"new": 4.0, "a": 2.0, "b": 2.0}, {"new": 3.0, "a": 99.0, "b": 99.0}, weights=PLAN)
    shares = Constrained({"a": 0.0, "b": 0.0}, ("a", "b"), step_size=5, max_replay=0.4).decide(seen, PLAN)
    assert shares["a"] + shares["b"] == pytest.approx(0.4)


def test_an_infinite_budget_ends_replay() -> None:
    seen = observe({"new": 4.0, "a": 2.0, "b": 2.0}, {"new": 3.0, "a": 2.5, "b": 2.0}, weights=PLAN)
    shares = Constrained({"a": math.inf, "b": math.inf}, ("a", "b")).decide(seen, PLAN)
    assert shares == {"new": 1.0, "a": 0.0, "b": 0.0}


def test_budgets_are_kept_and_larger_ones_cost_less_replay() -> None:
    plan = {"new": 0.95, "a": 0.05}

    def run(budget: float) -> list[Observation]:
        learner = Learner({"new": 0.0, "a": 2.0}, forgets={"a": 0.1})
        return simulate(learner, Constrained({"a": budget}, ("a",)), plan, num_decisions=150)

    replay = []
    for budget in (0.1, 0.3, 0.6):
        observations = run(budget)
        assert observations[-1].losses["a"] <= observations[0].losses["a"] + budget + 0.05
        replay.append(sum(observation.weights["a"] for observation in observations) / len(observations))
    assert replay == sorted(replay, reverse=True) and replay[0] > 1.5 * replay[-1]
    static = simulate(Learner({"new": 0.0, "a": 2.0}, forgets={"a": 0.1}), None, plan, num_decisions=150)
    assert static[-1].losses["a"] > static[0].losses["a"] + 0.35, "the plan alone breaks the smaller budgets"


def test_a_stage_without_new_text_keeps_its_plan() -> None:
    seen = observe({"a": 2.0, "b": 2.0}, {"a": 2.5, "b": 2.0}, weights={"a": 0.5, "b": 0.5})
    plan = {"a": 0.75, "b": 0.25}
    assert Constrained({"a": 0.1}, ("a", "b")).decide(seen, plan) == plan
