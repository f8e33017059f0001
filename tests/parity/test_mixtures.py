"""Runs under every mixture controller: a resume is the uninterrupted run, layouts decide alike, and stop alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megacpt.checkpoint.folder import CheckpointFolder
from megacpt.continual.controllers.agent import Agent
from megacpt.continual.skills_graph import SkillsGraph
from tests.distributed import RankFailure
from tests.long_form import cases
from tests.parity.runs import evaluations_of, metrics_of, run_command, write_recipe, write_shard

CONTROLLERS: dict[str, dict[str, Any]] = {
    "constrained": {"step_size": 20.0},
    "ddk": {},
    "topic_perplexity": {},
    "skill_it": {"graph": "graph.json"},
    "prioritised": {},
    "agent": {"agent": "agent"},
    "random_walk": {},
}


def write(folder: Path, controller: str) -> Path:
    """A recipe of 8 steps with a decision every second one, on a new domain and two that are replayed."""
    names = ("new", "old", "older")
    SkillsGraph(names, ((1.0, 0.2, 0.0), (0.0, 1.0, 0.5), (0.0, 0.0, 1.0))).save(folder / "graph.json")
    Agent(np.array([0.0, 30.0, 5.0, 1.0]), {"new": 0.2}).save(folder / "agent")
    keys = {
        key: str(folder / value) if isinstance(value, str) else value for key, value in CONTROLLERS[controller].items()
    }
    domains = {
        name: {
            "role": "replay" if seed else "new",
            "shards": str(write_shard(folder / name, seed=seed)),
            "held_out": str(write_shard(folder / f"{name}-held-out", num_documents=5, seed=seed + 10)),
            "weight": 1,
        }
        for seed, name in enumerate(names)
    }
    return write_recipe(
        folder,
        data={"domains": domains},
        parallel={"pipeline": 2},
        mixture={"controller": controller, "every": "25%", **keys},
        forgetting={"old": 0.0} if controller == "constrained" else {},
        evaluation={"every": None, "tokens_per_domain": 64},
        checkpoint={"every": "25%", "keep_last": 9},
    )


@pytest.mark.parametrize("controller", cases(CONTROLLERS, always=("ddk", "skill_it")))
def test_resumed_is_uninterrupted(controller: str, tmp_path: Path) -> None:
    recipe = write(tmp_path, controller)
    assert run_command(2, recipe) == [0, 0]
    expected = metrics_of(recipe), evaluations_of(recipe)
    mixtures = [tuple(record["mixture"].values()) for record in expected[0] if "mixture" in record]
    assert len(set(mixtures)) >= 3, "it decided next to nothing"
    checkpoint = tmp_path / "runs" / "small" / "checkpoints" / "step_000004"
    assert run_command(2, recipe, "--resume", str(checkpoint)) == [0, 0]
    assert (metrics_of(recipe), evaluations_of(recipe)) == expected


@pytest.mark.parametrize("controller", cases(CONTROLLERS, always=("constrained",)))
def test_every_layout_decides_alike(controller: str, tmp_path: Path) -> None:
    recipe = write(tmp_path, controller)
    mixtures: list[list[dict[str, float]]] = []
    for tensor, data in ((1, 1), (2, 2)):
        changes = {"name": f"tensor-{tensor}", "parallel.pipeline": 1, "parallel.tensor": tensor}
        world_size = tensor * data
        settings = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
        assert run_command(world_size, recipe, *settings) == [0] * world_size
        records = metrics_of(recipe, str(changes["name"]))
        mixtures.append([record["mixture"] for record in records if "mixture" in record])
    one, four = mixtures
    assert len({tuple(mixture.values()) for mixture in one}) >= 3, "it decided next to nothing"
    for expected, found in zip(one, four, strict=True):
        # Losses agree to 1e-6; of their differences, some thousandths here, that is up to 1e-3.
        assert found == pytest.approx(expected, rel=1e-3)


def test_a_budget_stops_all_ranks_with_a_checkpoint(tmp_path: Path) -> None:
    recipe = write(tmp_path, "random_walk")
    changes = [
        "lr.peak=0.1",
        "forgetting={old: 0.0}",
        "evaluation.over_budget=stop",
        "evaluation.every=25%",
        "parallel.tensor=2",
    ]
    settings = [part for change in changes for part in ("--set", change)]
    assert run_command(4, recipe, *settings) == [2] * 4
    stopped_at = len(metrics_of(recipe))
    assert 0 < stopped_at < 8
    newest = CheckpointFolder(tmp_path / "runs" / "small" / "checkpoints").complete()[-1]
    assert newest.name == f"step_{stopped_at:06d}"


def test_killed_between_decision_and_checkpoint_is_uninterrupted(tmp_path: Path) -> None:
    recipe = write(tmp_path, "constrained")
    changes = ["--set", "checkpoint.every=50%"]
    assert run_command(2, recipe, *changes) == [0, 0]
    expected = metrics_of(recipe), evaluations_of(recipe)
    changes += ["--set", "name=killed"]
    with pytest.raises(RankFailure, match="exit code -9"):
        metrics = tmp_path / "runs" / "killed" / "metrics.jsonl"
        run_command(2, recipe, *changes, kill_after_steps=7, metrics=metrics)
    assert run_command(2, recipe, *changes, "--resume", "auto") == [0, 0]
    assert (metrics_of(recipe, "killed"), evaluations_of(recipe, "killed")) == expected
