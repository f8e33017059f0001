"""The shipped recipes of the literature run as they are, but for their size: a tiny model, random text, few tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from megacpt.recipe import load_recipe
from tests.parity.runs import LLAMA, metrics_of, run_command, write_shard


def shrunken(folder: Path, name: str, num_steps: int, **changes: Any) -> Path:
    """The recipe on steps of 128 tokens."""
    shards = str(write_shard(folder / "text", num_documents=400))
    domains = {
        domain: ({} if section.role == "anchor" else {"shards": shards}) | {"held_out": shards}
        for domain, section in load_recipe(name).data.domains.items()
    }
    for domain, keys in changes.get("domains", {}).items():
        domains[domain] |= keys
    recipe = {
        "extends": name,
        "name": "small",
        "model": {"path": None, "init": "random", "config": LLAMA, "dtype": "float32", "vocab_multiple": 8},
        "data": {"sequence_length": 16, "domains": domains},
        "batch": {"global_rows": 8},
        "parallel": {"pipeline": 1},
        "training": {"tokens": num_steps * 128},
        "evaluation": {"every": None, "tokens_per_domain": 64},
        "checkpoint": {"every": None, "at_end": False},
        "logging": {"folder": str(folder / "runs"), "tensorboard": False},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def shares(records: list[dict[str, Any]]) -> dict[str, float]:
    """Domain -> part of the labels of these steps."""
    tokens: dict[str, int] = {}
    for record in records:
        for name, domain in record["domains"].items():
            tokens[name] = tokens.get(name, 0) + domain["tokens"]
    return {name: count / sum(tokens.values()) for name, count in tokens.items()}


def test_two_stages_of_llama_3_syne(tmp_path: Path) -> None:
    recipe = shrunken(tmp_path, "llama3-8b-syne", num_steps=40)
    assert run_command(1, recipe) == [0]
    steps = metrics_of(recipe)
    assert {step["step"]: step["mixture"] for step in steps if "mixture" in step} == {
        1: pytest.approx({"chinese": 0.2, "english": 0.8}),
        38: pytest.approx({"chinese": 0.1, "english": 0.7, "synthetic": 0.2}),
    }
    assert shares(steps[:37]) == pytest.approx({"chinese": 0.2, "english": 0.8}, abs=0.03)
    assert steps[1]["learning_rate"] < steps[3]["learning_rate"] == steps[-1]["learning_rate"] == 1e-5


def test_the_stability_gap_s_strategies(tmp_path: Path) -> None:
    subset = {"rank_by": "num_tokens", "top_tokens": 2000}
    recipe = shrunken(tmp_path, "llama3-8b-stability-gap", num_steps=30, domains={"medical": subset})
    assert run_command(1, recipe) == [0]
    taken = shares(metrics_of(recipe))
    assert taken["medical"] == pytest.approx(0.82, abs=0.03)
    assert taken["github"] == pytest.approx(taken["wikipedia"], abs=0.03)
    assert "web" not in taken
