"""`megacpt tasks`: downstream tasks beside a run, by lm-evaluation-harness or another program, for its report.

A job of its own, on any machine that has the program: it exports a checkpoint, lets the program measure it, and adds
the scores, with their standard errors, to `tasks.jsonl` of the run folder. Called again and again it measures what is
new; the training does not notice.
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
from typing import Any, NamedTuple

from megacpt.errors import LaunchError

COMMAND = "lm_eval --model hf --model_args pretrained={model},dtype=auto --tasks {tasks} --output_path {output}"
RECORDS = "tasks.jsonl"
_METRICS = ("acc_norm", "acc", "exact_match", "f1", "pass@1")
"""Of a task that has several metrics, the first of these counts; else the first that there is."""

_NO_TOKENIZER = (
    "The model has no tokenizer_config.json: name a tokenizer's folder as the recipe's model.tokenizer; for a run that"
    " has begun, copy its files into RUN/model."
)


class Score(NamedTuple):
    """A task's result, and its standard error where the program states one."""

    value: float
    error: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.4f}" + ("" if self.error is None else f" \N{PLUS-MINUS SIGN} {self.error:.4f}")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder; its newest checkpoint is measured")
    parser.add_argument("--all", action="store_true", help="measure every checkpoint that is there, oldest first")
    parser.add_argument("--tasks", required=True, metavar="NAMES", help="as the program takes them: arc_easy,hellaswag")
    parser.add_argument("--base", type=Path, metavar="MODEL", help="measure the base model too, once: its folder")
    parser.add_argument("--command", default=COMMAND, metavar="TEMPLATE", help=f"what to run ({COMMAND})")
    parser.add_argument(
        "--options",
        default="",
        metavar="WORDS",
        help="added to the command: --options='--include_path my-tasks --num_fewshot 5'",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure what is not measured yet, and say what came out."""
    from megacpt.checkpoint.export import export
    from megacpt.checkpoint.folder import CheckpointFolder, find_checkpoint, read_state
    from megacpt.observe.lines import read_json_lines

    records = arguments.run_folder / RECORDS
    done = {(line["tokens"], task) for line in read_json_lines(records) for task in line.get("asked", line["scores"])}
    newest = find_checkpoint(arguments.run_folder)
    checkpoints = CheckpointFolder(newest.parent).complete() if arguments.all else [newest]
    models: list[tuple[int, Path | None]] = [(0, None)] if arguments.base else []
    models += [(int(read_state(checkpoint)["tokens"]), checkpoint) for checkpoint in checkpoints]
    for position, checkpoint in models:
        asked = [task for task in arguments.tasks.split(",") if (position, task) not in done]
        if not asked:
            print(f"{position:,} tokens: measured before")
            continue
        with tempfile.TemporaryDirectory(dir=arguments.run_folder, prefix="tasks-") as temporary:
            model, output = Path(temporary) / "model", Path(temporary) / "results"
            if checkpoint is None:
                model = arguments.base
            else:
                export(checkpoint, model)
            scores = measure(f"{arguments.command} {arguments.options}", model, ",".join(asked), output)
        line = {
            "tokens": position,
            "asked": asked,
            "scores": {task: score.value for task, score in scores.items()},
            "errors": {task: score.error for task, score in scores.items() if score.error is not None},
        }
        with records.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{position:,} tokens: " + ", ".join(f"{task} {score}" for task, score in scores.items()))
    return 0


def measure(command: str, model: Path, tasks: str, output: Path) -> dict[str, Score]:
    """Task -> score of a model, as a program says.

    Args:
        command: its command line, with {model}, {tasks} and {output}; no shell reads it.
        model: a Hugging Face folder.
        tasks: names for the program.
        output: the folder that it shall write a JSON file of results into, somewhere below.

    Raises:
        LaunchError: it is not there, it fails, or it leaves no results.
    """
    words = shlex.split(command)
    for name, place in {"model": str(model), "tasks": tasks, "output": str(output)}.items():
        words = [word.replace(f"{{{name}}}", place) for word in words]
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
        raise LaunchError(
            "the tasks were not measured",
            found=f"exit code {exit_code}, {len(found)} files of results",
            hint=None if (model / "tokenizer_config.json").is_file() else _NO_TOKENIZER,
        )
    return scores_of(json.loads(found[-1].read_text(encoding="utf-8")))


def scores_of(results: Mapping[str, Any]) -> dict[str, Score]:
    """Task -> score in results as lm-evaluation-harness writes them, {"results": {task: {"acc,none": 0.5, ...}}}."""
    scores = {}
    for task, values in results["results"].items():
        numbers = {
            key: float(value)
            for key, value in values.items()
            if isinstance(value, int | float) and "_stderr" not in key and key != "sample_len"
        }
        names = {key.partition(",")[0]: key for key in reversed(numbers)}  # of several filters, the first
        best = next((names[name] for name in _METRICS if name in names), next(iter(numbers), None))
        if best is not None:
            metric, comma, filtered = best.partition(",")
            error = values.get(f"{metric}_stderr{comma}{filtered}")
            scores[task] = Score(numbers[best], float(error) if isinstance(error, int | float) else None)
    return scores
