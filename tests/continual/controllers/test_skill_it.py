"""Skill-It: the formula, its two limits, and that it reaches a skill through the one it needs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from megacpt.continual.controllers.controller import Observation
from megacpt.continual.controllers.skill_it import SkillIt
from megacpt.continual.skills_graph import SkillsGraph
from tests.continual.controllers.learner import Learner, observe, simulate

UNIFORM = {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}


def graph(*rows: tuple[float, ...]) -> SkillsGraph:
    return SkillsGraph(("a", "b", "c"), rows)


def test_is_the_code_s_formula() -> None:
    effects = np.array([[1, 0.5, 0], [0, 1, 0], [0.2, 0, 1]])
    losses = np.array([[9, 9, 9], [1, 2, 3], [1, 1, 2], [1, 0, 1]], dtype=float)  # the first is out of the window
    plan = np.array([0.5, 0.3, 0.2])
    expected = plan * np.exp(0.3 * effects @ losses[1:].sum(axis=0))
    controller = SkillIt(graph(*map(tuple, effects.tolist())), step_size=0.3, window=3)
    seen = observe(*(dict(zip("abc", row, strict=True)) for row in losses.tolist()), weights=UNIFORM)
    shares = controller.decide(seen, dict(zip("abc", plan.tolist(), strict=True)))
    assert list(shares.values()) == pytest.approx(expected / expected.sum())


def test_no_effects_keep_the_plan_and_the_identity_follows_the_losses() -> None:
    seen = observe({"a": 1.0, "b": 2.0, "c": 3.0}, weights=UNIFORM)
    assert SkillIt(graph(*[(0.0,) * 3] * 3)).decide(seen, UNIFORM) == pytest.approx(UNIFORM)
    shares = SkillIt(graph((1, 0, 0), (0, 1, 0), (0, 0, 1)), step_size=0.2).decide(seen, UNIFORM)
    assert math.log(shares["c"] / shares["b"]) == pytest.approx(0.2)
    assert math.log(shares["b"] / shares["a"]) == pytest.approx(0.2)


def test_what_needs_another_skill_is_learned_sooner() -> None:
    """A strong edge would not do here: it goes on teaching the needed skill when that is known."""

    def decisions_until_learned(controller: SkillIt | None) -> int:
        learner = Learner({"a": 0.05, "b": 0.0, "c": 3.0}, needs={"b": "a"}, rate=0.1)
        run: list[Observation] = simulate(learner, controller, UNIFORM, num_decisions=100)
        return next(observation.step for observation in run if observation.losses["b"] < 1.3)

    skill_it = SkillIt(graph((1, 0.3, 0), (0, 1, 0), (0, 0, 1)), step_size=0.3)
    assert decisions_until_learned(skill_it) < 0.9 * decisions_until_learned(None)
