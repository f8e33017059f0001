"""DDK: the formula, its fixed point, and that it holds back the worst forgetting."""

from __future__ import annotations

import math

import numpy as np
import pytest

from megacpt.continual.controllers.controller import Observation
from megacpt.continual.controllers.ddk import DDK
from tests.continual.controllers.learner import Learner, observe, simulate

UNIFORM = {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}


def test_is_the_paper_s_formula() -> None:
    teacher = {"a": 1.5, "b": 2.0, "c": 2.5}
    losses = {"a": 2.0, "b": 2.1, "c": 2.4}
    ratio = np.exp(list(losses.values())) / np.exp(list(teacher.values()))
    first = np.exp(ratio) / np.exp(ratio).sum()
    controller = DDK(smoothing=0.5, reference=teacher)
    assert list(controller.weights(observe(losses, weights=UNIFORM), UNIFORM).values()) == pytest.approx(first)

    present = dict(zip(UNIFORM, (0.6, 0.3, 0.1), strict=True))
    psi = np.array([0.6, 0.3, 0.1]) * np.exp(ratio)
    later = 0.5 * psi / psi.sum() + 0.5 / 3
    weights = controller.weights(observe(losses, losses, weights=present), UNIFORM)
    assert list(weights.values()) == pytest.approx(later)


def test_a_model_like_its_reference_returns_to_the_plan_geometrically() -> None:
    losses = {"a": 2.0, "b": 3.0, "c": 4.0}
    weights = {"a": 0.8, "b": 0.1, "c": 0.1}
    for _ in range(4):
        after = DDK(smoothing=0.5).weights(observe(losses, losses, weights=weights), UNIFORM)
        assert after["a"] - 1 / 3 == pytest.approx((weights["a"] - 1 / 3) / 2)
        weights = after


def test_the_domain_that_is_forgotten_gets_most_and_none_less_than_its_floor() -> None:
    def run(controller: DDK | None) -> list[Observation]:
        learner = Learner({"a": 2.0, "b": 2.0, "c": 2.0}, forgets={"a": 0.3, "b": 0.02}, rate=0.1)
        return simulate(learner, controller, UNIFORM)

    steered, static = run(DDK()), run(None)
    assert max(steered[4].weights, key=steered[4].weights.__getitem__) == "a"
    assert all(share >= 0.5 / 3 - 1e-9 for observation in steered for share in observation.weights.values())

    def worst_ratio(observations: list[Observation]) -> float:
        return max(math.exp(observations[-1].losses[name] - observations[0].losses[name]) for name in UNIFORM)

    assert worst_ratio(steered) < worst_ratio(static)
