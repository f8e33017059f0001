"""The quickstart's picture and table show a run's own records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
from docs.figures import quickstart

DOMAINS = [(0, 3.375, 3.125), (1024, 3.0, 3.0), (2048, 2.75, 3.25)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    evaluations = [
        {
            "step": tokens // 512,
            "tokens": tokens,
            "domains": {"medical": {"loss": medical, "bits_per_byte": medical / 3}, "general": {"loss": general}},
        }
        for tokens, medical, general in DOMAINS
    ]
    steps = [{"step": step, "tokens": 512 * step, "learning_rate": 1e-4 / step} for step in range(1, 5)]
    for name, records in (("evaluations", evaluations), ("metrics", steps)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return tmp_path


def test_the_table_compares_the_first_and_the_last_evaluation(run: Path) -> None:
    table = quickstart.table(quickstart.read_lines(run / "evaluations.jsonl"))
    assert "after 4 steps, 2,048 tokens" in table
    assert "| medical | 3.375 | 2.750 | -0.625 | 1.125 | 0.917 |" in table
    assert "| general | 3.125 | 3.250 | +0.125 |  |  |" in table


def test_the_picture_is_the_same_every_time_and_has_no_background(run: Path, tmp_path: Path) -> None:
    pictures = []
    for name in ("one.svg", "two.svg"):
        quickstart.draw(run, tmp_path / name)
        pictures.append((tmp_path / name).read_text())
    assert pictures[0] == pictures[1]
    assert "medical -0.62" in pictures[0]
    assert "#ffffff" not in pictures[0]
