"""Documents of one domain are told apart on every layout, after a resume, and by their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.test_view import corpus_of
from tests.parity.runs import VOCAB_SIZE, metrics_of, run_command, write_recipe

PARTS = ["a", "b", None]


def recipe_in_parts(folder: Path) -> Path:
    """The small recipe; every third document of the new domain is of one part."""
    random = np.random.default_rng(1)
    documents = [random.integers(3, VOCAB_SIZE, random.integers(3, 41)).tolist() for _ in range(60)]
    sources: list[list[object]] = [[PARTS[number % 3] for number in range(half, half + 30)] for half in (0, 30)]
    corpus_of(folder / "shards", [documents[:30], documents[30:]], source=sources)
    new = {"role": "new", "shards": str(folder / "shards"), "weight": 3, "parts_by": "source"}
    old = {"role": "replay", "shards": str(folder / "old"), "weight": 1}
    return write_recipe(folder, data={"sequence_length": 16, "domains": {"new": new, "old": old}})


def told(records: list[dict[str, Any]]) -> list[float]:
    return [
        number
        for record in records
        for key in ("domains", "parts")
        for name in sorted(record[key])
        for number in (record["loss"], record["grad_norm"], *record[key][name].values())
    ]


def test_parts_add_up_to_the_domain(tmp_path: Path) -> None:
    """Without weights, nothing else of the run depends on them."""
    recipe = recipe_in_parts(tmp_path)
    assert run_command(2, recipe) == [0, 0]
    records = metrics_of(recipe)
    for record in records:
        parts = record["parts"].values()
        assert {*record["parts"]} <= {"new/a", "new/b", "new/none"}
        assert sum(part["tokens"] for part in parts) == record["domains"]["new"]["tokens"]
        nll = sum(part["loss"] * part["tokens"] for part in parts)
        assert nll == pytest.approx(record["domains"]["new"]["loss"] * record["domains"]["new"]["tokens"], rel=1e-6)
    assert {name for record in records for name in record["parts"]} == {"new/a", "new/b", "new/none"}


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_parts_and_their_weights_are_the_same_on_every_layout(packing: str, tmp_path: Path) -> None:
    recipe = recipe_in_parts(tmp_path)
    keys = ["--set", f"data.packing={packing}", "--set", "data.domains.new.part_weights={a: 0, b: 2.5}"]
    assert run_command(1, recipe, *keys) == [0]
    expected = metrics_of(recipe)
    assert run_command(1, recipe, *keys[:2], "--set", "name=unweighted") == [0]
    unweighted = metrics_of(recipe, "unweighted")
    assert [record["parts"].keys() for record in unweighted] == [record["parts"].keys() for record in expected]
    assert all(one["loss"] != other["loss"] for one, other in zip(unweighted, expected, strict=True))
    for name, parallel in (("pipeline", "pipeline=2"), ("sharded", "zero_stage=3")):
        layout = [*keys, "--set", f"name={name}", "--set", f"parallel.{parallel}"]
        assert run_command(2, recipe, *layout, "--set", "training.stop_at_step=3") == [0, 0]
        assert run_command(2, recipe, *layout, "--resume", "auto") == [0, 0]
        assert told(metrics_of(recipe, name)) == pytest.approx(told(expected), rel=1e-5), name
