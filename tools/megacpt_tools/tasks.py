"""`megacpt tasks`: downstream tasks beside a run, by lm-evaluation-harness or another program, for its report.

A job of its own, on any machine that has the program: it exports the newest checkpoint, lets the program measure it,
and adds the scores to `tasks.jsonl` of the run folder. Called again and again it measures what is new; the training
does not notice.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megacpt.errors import LaunchError

COMMAND = "lm_eval --model hf --model_args pretrained={model},dtype=auto --tasks {tasks} --output_path {output}"
RECORDS = "tasks.jsonl"
_METRICS = ("acc_norm", "acc", "exact_match", "f1", "pass@1")
"""Of a task that has several metrics, the first of these counts; else the first that there is."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder; its newest checkpoint is measured")
    parser.add_argument("--tasks", required=True, metavar="NAMES", help="as the program takes them: arc_easy,hellaswag")
    parser.add_argument("--base", type=Path, metavar="MODEL", help="measure the base model too, once: its folder")
    parser.add_argument("--command", default=COMMAND, metavar="TEMPLATE", help=f"what to run ({COMMAND})")


def run(arguments: argparse.Namespace) -> int:
    """Measure what is not measured yet, and say what came out."""
    from megacpt.checkpoint.export import export
    from megacpt.checkpoint.folder import find_checkpoint, read_state
    from megacpt.observe.sinks import read_json_lines

    records = arguments.run_folder / RECORDS
    done = {(line["tokens"], task) for line in read_json_lines(records) for task in line.get("asked", line["scores"])}
    checkpoint = find_checkpoint(arguments.run_folder)
    tokens = int(read_state(checkpoint)["tokens"])
    with tempfile.TemporaryDirectory(dir=arguments.run_folder, prefix="tasks-") as temporary:
        exported = Path(temporary) / "model"
        for position, model in (*([(0, arguments.base)] if arguments.base else []), (tokens, exported)):
            asked = [task for task in arguments.tasks.split(",") if (position, task) not in done]
            if not asked:
                print(f"{position:,} tokens: measured before")
                continue
            if model is exported:
                export(checkpoint, exported)
            scores = measure(arguments.command, model, ",".join(asked), Path(temporary) / f"results-{position}")
            with records.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"tokens": position, "asked": asked, "scores": scores}) + "\n")
            print(f"{position:,} tokens: " + ", ".join(f"{task} {score:.4f}" for task, score in scores.items()))
    return 0


def measure(command: str, model: Path, tasks: str, output: Path) -> dict[str, float]:
    """Task -> score of a model, as a program says.

    Args:
        command: its command line, with {model}, {tasks} and {output}; no shell reads it.
        model: a Hugging Face folder.
        tasks: names for the program.
        output: the folder that it shall write a JSON file of results into, somewhere below.

    Raises:
        LaunchError: it is not there, it fails, or it leaves no results.
    """
    places = {"model": str(model), "tasks": tasks, "output": str(output)}
    words = [word.format(**places) for word in shlex.split(command)]
    if shutil.which(words[0]) is None:
        raise LaunchError(
            "the program that measures tasks is not installed",
            where="--command",
            found=words[0],
            hint="pip install lm-eval, or name another program.",
        )
    exit_code = subprocess.run(words).returncode
    found = sorted(output.rglob("*.json"))
    if exit_code or not found:
        raise LaunchError("the tasks were not measured", found=f"exit code {exit_code}, {len(found)} files of results")
    return scores_of(json.loads(found[-1].read_text(encoding="utf-8")))


def scores_of(results: Mapping[str, Any]) -> dict[str, float]:
    """Task -> score in results as lm-evaluation-harness writes them, {"results": {task: {"acc,none": 0.5, ...}}}."""
    scores = {}
    for task, values in results["results"].items():
        numbers = {
            key.partition(",")[0]: float(value)
            for key, value in values.items()
            if isinstance(value, int | float) and "stderr" not in key and key != "sample_len"
        }
        best = next((name for name in (*_METRICS, *numbers) if name in numbers), None)
        if best is not None:
            scores[task] = numbers[best]
    return scores
