"""Downstream tasks measured beside a run, by a program that writes as lm-evaluation-harness does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from megacpt.errors import LaunchError
from megacpt.observe.lines import read_json_lines
from megacpt_tools import cli
from megacpt_tools.report.page import render
from megacpt_tools.report.records import RunRecords
from megacpt_tools.tasks import RECORDS, Score, measure, scores_of
from tests.checkpoint.states import save_checkpoint
from tests.tools.report_runs import write_run

RESULTS = {
    "results": {
        "arc_easy": {
            "alias": "arc",
            "acc,none": 0.5,
            "acc_stderr,none": 0.1,
            "acc_norm,none": 0.625,
            "acc_norm_stderr,none": 0.125,
            "sample_len": 9,
        },
        "triviaqa": {"exact_match,strict": 0.25, "exact_match,flexible": 0.5, "exact_match_stderr,strict": "N/A"},
        "group": {"alias": "group"},
    }
}
SCORES = {"arc_easy": Score(0.625, 0.125), "triviaqa": Score(0.25)}
PROGRAM = """
import json, pathlib, sys
model, tasks, output = sys.argv[1:]
assert tasks == "arc_easy,triviaqa" and pathlib.Path(model).is_dir()
folder = pathlib.Path(output, "name of the model")
folder.mkdir(parents=True)
(folder / "results_2026.json").write_text(json.dumps(%r))
"""


def test_scores_are_the_customary_metric_of_each_task() -> None:
    assert scores_of(RESULTS) == SCORES


def test_a_program_measures_a_model(tmp_path: Path) -> None:
    program = tmp_path / "measure it.py"
    program.write_text(PROGRAM % RESULTS)
    command = f"{sys.executable} '{program}' {{model}} {{tasks}} {{output}}"
    assert measure(command, tmp_path, "arc_easy,triviaqa", tmp_path / "out") == SCORES
    with pytest.raises(LaunchError, match=r"not measured .*no tokenizer_config\.json"):
        measure(command, tmp_path / "nothing", "arc_easy,triviaqa", tmp_path / "other")


def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(LaunchError, match=r"not installed .*no-such-program"):
        measure("no-such-program {model}", Path(), "", Path())


def test_what_is_measured_is_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, program = write_run(tmp_path / "run", config={"model_type": "llama"}), tmp_path / "program.py"
    for step in (2, 4):
        save_checkpoint(run, step, dtype="float32")
    program.write_text(
        "import json, pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[3])\n"
        "folder.mkdir()\n"
        "assert pathlib.Path(sys.argv[1], 'config.json').is_file()\n"
        "assert sys.argv[4:] in ([], ['--include', 'my tasks', '{}'])\n"
        "results = {task: {'acc': len(task) / 9, 'acc_stderr': 0.5} for task in sys.argv[2].split(',')}\n"
        "(folder / 'found.json').write_text(json.dumps({'results': results}))\n"
    )
    command = ["tasks", str(run), "--base", str(run / "model"), "--command"]
    command += [f"{sys.executable} {program} {{model}} {{tasks}} {{output}}", "--tasks"]
    options = ["--all", "--options=--include 'my tasks' {}"]
    for arguments in (["arc"], ["arc,triviaqa"], ["arc", *options], ["triviaqa"]):
        assert cli.main([*command, *arguments]) == 0
    found = [(line["tokens"], set(line["scores"])) for line in read_json_lines(run / RECORDS)]
    assert found == [(0, {"arc"}), (400, {"arc"}), (0, {"triviaqa"}), (400, {"triviaqa"}), (200, {"arc"})]
    assert "200 tokens: arc 0.3333 \N{PLUS-MINUS SIGN} 0.5000\n" in (said := capsys.readouterr().out)
    assert said.splitlines()[-1] == "400 tokens: measured before"


def test_the_report_draws_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "plain")
    (run / RECORDS).write_text(
        "".join(json.dumps({"tokens": t, "scores": {"arc": t / 8e3}, "errors": {"arc": 0.1}}) + "\n" for t in (0, 4000))
    )
    html, specs = render([RunRecords.read(run)])
    assert "tasks" in specs
    row = [f"{score} \N{PLUS-MINUS SIGN} 0.100" for score in ("0.000", "0.500")] + ["+0.500"]
    assert "".join(f"<td>{cell}</td>" for cell in ("arc", *row)) in html
