"""Whole documents, in an order, with insertions: the same on every layout, and after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megacpt.data.corpus import open_corpus
from tests.parity.runs import metrics_of, run_command, write_recipe


def told(records: list[dict[str, Any]]) -> list[float]:
    return [
        number
        for record in records
        for number in (
            record["loss"],
            record["grad_norm"],
            *(value for name in sorted(record["domains"]) for value in record["domains"][name].values()),
        )
    ]


@pytest.mark.slow
def test_orders_packing_and_insertions_are_the_same_on_every_layout(tmp_path: Path) -> None:
    canaries = tmp_path / "canaries.jsonl"
    canaries.write_text(
        '{"name": "often", "tokens": [7, 8, 9, 10, 11], "copies": 12}\n'
        '{"name": "late", "tokens": [9, 8, 7], "at": [905]}\n'
    )
    recipe = write_recipe(tmp_path)
    changes = ["data.packing=best_fit", f"data.insertions={canaries}"]
    changes += ["data.domains.new={order: descending, order_by: num_tokens, order_window: 64}"]
    keys = [argument for change in changes for argument in ("--set", change)]
    assert run_command(1, recipe, *keys) == [0]
    expected = metrics_of(recipe)
    assert sum(record["domains"].get("insertions", {"tokens": 0})["tokens"] for record in expected) == 12 * 4 + 2
    assert "insertions" in expected[905 // 128]["domains"]
    assert len(open_corpus(tmp_path / "new").document_offsets()) == 61

    for name, parallel in (("pipeline", "pipeline=2"), ("data", "zero_stage=1")):
        layout = [*keys, "--set", f"name={name}", "--set", f"parallel.{parallel}"]
        assert run_command(2, recipe, *layout, "--set", "training.stop_at_step=3") == [0, 0]
        assert run_command(2, recipe, *layout, "--resume", "auto") == [0, 0]
        assert told(metrics_of(recipe, name)) == pytest.approx(told(expected), rel=1e-5), name
        files = [tmp_path / "runs" / run / "insertions.jsonl" for run in (name, "small")]
        first, second = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
        assert first == second and [len(line["places"]) for line in first] == [12, 1]
