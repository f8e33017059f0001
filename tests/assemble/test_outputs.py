"""What a run folder holds before the first step, and what a resumed run keeps of its records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megacpt.assemble.outputs import open_sinks
from megacpt.observe.record import DomainEvaluation, EvaluationRecord
from megacpt.observe.sinks import JsonLines, TensorBoard
from megacpt.recipe import load_recipe
from tests.assemble.recipes import resolved
from tests.trainer.records import record_of

DUE = range(0, 99, 2)


def evaluation(step: int) -> EvaluationRecord:
    return EvaluationRecord(step, step * 128, {"law": DomainEvaluation(4.0 - step, None, 100)})


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_the_recipe_is_kept_as_it_was_read(tmp_path: Path) -> None:
    run = resolved(tmp_path, "lr.peak=3e-4", "logging.tensorboard=false")
    open_sinks(run, tmp_path / "run", 0, {}, DUE)
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml"), []) == run.recipe


@pytest.mark.parametrize("tensorboard", [True, False])
def test_sinks_are_those_that_the_recipe_asks_for(tensorboard: bool, tmp_path: Path) -> None:
    run = resolved(tmp_path, f"logging.tensorboard={str(tensorboard).lower()}")
    sinks = open_sinks(run, tmp_path / "run", 0, {}, DUE)
    assert any(isinstance(sink, TensorBoard) for sink in sinks) == tensorboard
    for sink in sinks:
        sink.write_step(record_of(1))
        sink.write_evaluation(evaluation(1))
        sink.close()
    assert steps(tmp_path / "run" / "metrics.jsonl") == steps(tmp_path / "run" / "evaluations.jsonl") == [1]
    assert (tmp_path / "run" / "tensorboard").exists() == tensorboard


@pytest.mark.parametrize(
    "first_step, kept, evaluated", [(2, [1, 2], [0, 1, 2]), (3, [1, 2, 3], [0, 1, 2]), (1, [1], [0]), (0, [], [])]
)
def test_records_after_the_checkpoint_are_dropped(
    first_step: int, kept: list[int], evaluated: list[int], tmp_path: Path
) -> None:
    run = resolved(tmp_path, "logging.tensorboard=false")
    lines = JsonLines(tmp_path / "run")
    for step in range(4):
        lines.write_evaluation(evaluation(step))
        if step:
            lines.write_step(record_of(step))
    lines.close()
    open_sinks(run, tmp_path / "run", first_step, {}, DUE)
    assert steps(tmp_path / "run" / "metrics.jsonl") == kept
    # A run that begins again evaluates its start again, too; where none is due, one was made because the run stopped.
    assert steps(tmp_path / "run" / "evaluations.jsonl") == evaluated


def test_the_plan_is_shown_and_losses_are_compared_with_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = resolved(tmp_path, "logging.tensorboard=false")
    for sink in open_sinks(run, tmp_path / "run", 0, {"layout": "pipeline 2 x data 1"}, DUE):
        sink.write_evaluation(evaluation(0))
        sink.close()
    assert "pipeline 2 x data 1" in capsys.readouterr().out
    for sink in open_sinks(run, tmp_path / "run", 1, {}, DUE):
        sink.write_evaluation(evaluation(1))
        sink.close()
    said = capsys.readouterr().out
    assert "4.0000" in said and "3.0000" in said
