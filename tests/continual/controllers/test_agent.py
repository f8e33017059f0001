"""The agent: its policy, what it learns from random pilots, and its files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from megacpt.continual.controllers.agent import Agent, features, train_agent, trajectory
from megacpt.continual.controllers.controller import Observation
from megacpt.continual.controllers.random_walk import RandomWalk
from megacpt.errors import DataError
from megacpt.observe.record import DomainEvaluation, EvaluationRecord
from tests.continual.controllers.learner import Learner, observe, simulate

UNIFORM = {"a": 1 / 3, "b": 1 / 3, "useless": 1 / 3}


def learner() -> Learner:
    """Three domains of which one teaches nothing, not even itself."""
    return Learner({"a": 0.0, "b": 0.0, "useless": 0.0}, teaches={("useless", "useless"): 0.0}, rate=0.05)


def pilots(num_pilots: int) -> list[list[Observation]]:
    return [simulate(learner(), RandomWalk(seed), UNIFORM, num_decisions=20) for seed in range(num_pilots)]


def test_leans_towards_what_it_values() -> None:
    agent = Agent(np.array([0.0, 2.0, 0.0, 0.0]), {"b": 0.1}, temperature=0.5)
    seen = observe({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.3}, weights={"a": 0.5, "b": 0.5})
    assert features(seen, "b") == pytest.approx([1, 0.3, 0.3, 0.5])
    shares = agent.decide(seen, {"a": 0.8, "b": 0.2})
    assert shares["b"] / shares["a"] == pytest.approx(0.2 / 0.8 * math.exp((2 * 0.3 + 0.1) / 0.5))


def test_learns_from_random_pilots_to_avoid_what_is_useless() -> None:
    agent = train_agent(pilots(20))
    steered = simulate(learner(), agent, UNIFORM, num_decisions=20)
    static = simulate(learner(), None, UNIFORM, num_decisions=20)
    assert all(observation.weights["useless"] < 1 / 9 for observation in steered[1:])
    assert sum(steered[-1].losses.values()) < sum(static[-1].losses.values())


def test_training_is_deterministic_and_the_files_are_exact(tmp_path: Path) -> None:
    agent, again = train_agent(pilots(3)), train_agent(pilots(3))
    agent.save(tmp_path / "agent")
    loaded = Agent.load(tmp_path / "agent")
    seen = pilots(1)[0]
    assert loaded.decide(seen, UNIFORM) == agent.decide(seen, UNIFORM) == again.decide(seen, UNIFORM)
    assert {path.suffix for path in (tmp_path / "agent").iterdir()} == {".json", ".safetensors"}


def test_a_value_of_what_no_pilot_measured_is_refused() -> None:
    with pytest.raises(DataError, match=r"no pilot measured .*\(found c, expected a, b, useless\)"):
        train_agent(pilots(1), {"a": 2.0, "c": 2.0})


def test_a_trajectory_is_what_was_seen_at_the_decisions() -> None:
    def record(step: int) -> EvaluationRecord:
        losses = {"a": 5.0 - step, "b": 3.0, "anchor": 1.0}
        return EvaluationRecord(
            step, step * 10, {name: DomainEvaluation(loss, None, 9) for name, loss in losses.items()}
        )

    first, second = {"a": 0.5, "b": 0.5}, {"a": 0.8, "b": 0.2}
    seen = trajectory([record(step) for step in (0, 1, 2, 4, 6)], {1: first, 5: second})
    assert [(o.step, o.weights) for o in seen] == [(0, first), (4, first), (6, second)]
    assert seen[1].losses == {"a": 1.0, "b": 3.0}


def test_pilots_may_have_stages_in_which_domains_join() -> None:
    losses = ({"a": 3.0, "b": 3.0}, {"a": 2.5, "b": 3.5}, {"a": 2.0, "b": 2.5}, {"a": 1.9, "b": 2.25})
    records = [
        EvaluationRecord(step, step, {name: DomainEvaluation(loss, None, 9) for name, loss in found.items()})
        for step, found in enumerate(losses)
    ]
    seen = trajectory(records, {1: {"a": 1.0}, 2: {"a": 0.5, "b": 0.5}, 3: {"a": 0.25, "b": 0.75}})
    assert features(seen[:3], "b").tolist() == pytest.approx([1.0, -0.5, -1.0, 0.5])
    assert set(train_agent([seen]).offsets) == {"a", "b"}


def test_what_is_no_agent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this is no agent"):
        Agent.load(tmp_path)
    with pytest.raises(DataError, match="nothing to learn"):
        train_agent([])


def test_the_walk_follows_from_seed_and_step() -> None:
    seen = pilots(1)[0]
    assert RandomWalk(3).decide(seen, UNIFORM) == RandomWalk(3).decide(seen, UNIFORM)
    assert RandomWalk(3).decide(seen, UNIFORM) != RandomWalk(4).decide(seen, UNIFORM)
