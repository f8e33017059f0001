"""A run whose rows, batches and weights change on the way computes the same on every layout and after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.parity.runs import metrics_of, run_command, write_recipe

STAGES = [
    {"at": "25%", "sequence_length": 32, "weights": {"new": 1, "old": 1}},
    {"at": "60%", "sequence_length": 8, "global_rows": 12},
]


def losses(records: list[dict[str, Any]]) -> list[tuple[int, float, float]]:
    return [(record["tokens"], record["loss"], record["grad_norm"]) for record in records]


def test_stages_are_the_same_on_every_layout_and_after_a_resume(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    stages = ["--set", f"data.stages={json.dumps(STAGES)}"]
    assert run_command(1, recipe, *stages) == [0]
    expected = losses(metrics_of(recipe))
    steps = [after[0] - before[0] for before, after in zip([(0, 0.0, 0.0), *expected], expected, strict=False)]
    assert steps == [128, 128, 256, 256, 96, 96, 96]

    for name, parallel in (("pipeline", "pipeline=2"), ("zero", "zero_stage=2")):
        changes = [*stages, "--set", f"name={name}", "--set", f"parallel.{parallel}"]
        if name == "pipeline":
            assert run_command(2, recipe, *changes, "--set", "training.stop_at_step=3") == [0, 0]
        assert run_command(2, recipe, *changes, "--resume", "auto") == [0, 0]
        found = losses(metrics_of(recipe, name))
        assert [record[0] for record in found] == [record[0] for record in expected]
        assert sum(found, ()) == pytest.approx(sum(expected, ()), rel=1e-5), name
