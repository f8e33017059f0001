"""Downstream tasks measured beside a run, by a program that writes as lm-evaluation-harness does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from megacpt.errors import LaunchError
from megacpt_tools.report.records import RunRecords
from megacpt_tools.tasks import RECORDS, measure, scores_of
from tests.tools.report_runs import write_run

RESULTS = {
    "results": {
        "arc_easy": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.625, "sample_len": 9},
        "triviaqa": {"exact_match,strict": 0.25},
        "group": {"alias": "group"},
    }
}
PROGRAM = """
import json, pathlib, sys
model, tasks, output = sys.argv[1:]
assert tasks == "arc_easy,triviaqa" and pathlib.Path(model).is_dir()
folder = pathlib.Path(output, "name of the model")
folder.mkdir(parents=True)
(folder / "results_2026.json").write_text(json.dumps(%r))
"""


def test_scores_are_the_customary_metric_of_each_task() -> None:
    assert scores_of(RESULTS) == {"arc_easy": 0.625, "triviaqa": 0.25}


def test_a_program_measures_a_model(tmp_path: Path) -> None:
    program = tmp_path / "measure it.py"
    program.write_text(PROGRAM % RESULTS)
    command = f"{sys.executable} '{program}' {{model}} {{tasks}} {{output}}"
    assert measure(command, tmp_path, "arc_easy,triviaqa", tmp_path / "out") == {"arc_easy": 0.625, "triviaqa": 0.25}
    with pytest.raises(LaunchError, match="not measured"):
        measure(command, tmp_path / "nothing", "arc_easy,triviaqa", tmp_path / "other")


def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(LaunchError, match=r"not installed .*no-such-program"):
        measure("no-such-program {model}", Path(), "", Path())


def test_the_report_draws_them(tmp_path: Path) -> None:
    from megacpt_tools.report.page import render

    run = write_run(tmp_path / "plain")
    (run / RECORDS).write_text("".join(json.dumps({"tokens": t, "scores": {"arc": t / 9e3}}) + "\n" for t in (0, 4000)))
    html, specs = render([RunRecords.read(run)])
    assert "tasks" in specs
    assert "<h2>Tasks</h2>" in html
