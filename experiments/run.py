"""Runs studies: `python -m experiments.run NAME ...`, or `base` for the model that all of them continue from.

A study is a folder here: recipe.yaml; arms.yaml, which says what each arm changes in it; README.md with what came out.
Each arm is trained once for every seed by the training command itself, one after the other, each in a process of its
own that is forked with the libraries loaded. What is there already, with the same complete recipe, is not run again;
remove runs/experiments to begin anew.

Written are the folder's results.json (curves of held-out loss, and where, when and with what they were measured),
figure.svg, and the table in README.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from docs.marked import write_part
from experiments import corpora
from experiments.outcome import Outcome, draw, table
from megacpt import cli
from megacpt.errors import LaunchError
from megacpt.recipe import Recipe, load_recipe
from megacpt_tools.report.records import RunRecords

STUDIES = Path(__file__).parent
BASE_MODEL = corpora.FOLDER / "base-model"
SEEDS = (1, 2)


@dataclass(frozen=True)
class Arm:
    """One way to train in a study.

    Attributes:
        name: for table and picture.
        recipe: the recipe's file.
        overrides: what `--set` changes in it.
    """

    name: str
    recipe: Path
    overrides: tuple[str, ...]

    def arguments(self, seed: int) -> list[str]:
        """What the training command is given for one run."""
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.recipe.parent.name} {self.name} {seed}")
        settings = [f"name={name}", f"seed={seed}", *self.overrides]
        return ["--recipe", str(self.recipe), *(word for setting in settings for word in ("--set", setting))]


def arms(study: Path) -> list[Arm]:
    """The arms of a study, in order, from its arms.yaml: name -> {recipe: a file beside it, set: [overrides]}."""
    entries = yaml.safe_load((study / "arms.yaml").read_text(encoding="utf-8"))
    return [
        Arm(name, study / entry.get("recipe", "recipe.yaml"), tuple(entry.get("set", ())))
        for name, entry in entries.items()
    ]


def fresh_processes() -> ProcessPoolExecutor:
    """A process for each run, one at a time, forked from one that has imported everything."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.preload"])
    return ProcessPoolExecutor(1, context, max_tasks_per_child=1)


def train(processes: Executor, arguments: list[str]) -> Path:
    """Have the training command make a run; nothing is done if it is there, finished and with the same recipe.

    Returns:
        The run folder.
    """
    recipe = load_recipe(arguments[1], arguments[3::2])
    folder = Path(recipe.logging.folder, recipe.name)
    if is_there(folder, recipe):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    exit_code = processes.submit(cli.main, arguments).result()
    if exit_code != 0:
        raise LaunchError("the run failed", where=str(folder), found=f"exit code {exit_code}")
    return folder


def is_there(folder: Path, recipe: Recipe) -> bool:
    """Whether a run folder holds this run, to its last evaluation."""
    written = folder / "recipe.yaml"
    if not written.exists() or load_recipe(written) != recipe:
        return False
    run = RunRecords.read(folder)
    return bool(run.evaluations) and run.evaluations[-1].tokens >= run.planned_tokens


def make_base(processes: Executor) -> None:
    """Text, tokenizer, shards and the base model, as far as they are not there."""
    corpora.prepare()
    if not BASE_MODEL.exists():
        from megacpt.checkpoint.export import export

        export(train(processes, ["--recipe", str(STUDIES / "base.yaml")]), BASE_MODEL)


def run_study(study: Path, processes: Executor, seeds: Sequence[int]) -> dict[str, Any]:
    """Every arm with every seed; the results as they are written."""
    outcomes = [
        Outcome.read(train(processes, arm.arguments(seed)), arm.name, seed) for seed in seeds for arm in arms(study)
    ]
    return {
        "date": date.today().isoformat(),
        "command": f"python -m experiments.run {study.name}",
        "hardware": _hardware(),
        "versions": {name: version(name) for name in ("megacpt", "torch", "transformers", "deepspeed")}
        | {"python": platform.python_version()},
        "runs": [outcome.to_json() for outcome in outcomes],
    }


def write(study: Path, results: dict[str, Any]) -> None:
    """results.json, figure.svg and the table of README.md in the study's folder."""
    (study / "results.json").write_text(json.dumps(results, indent=None, separators=(",", ":")) + "\n")
    outcomes = [Outcome.from_json(run) for run in results["runs"]]
    draw(outcomes, study / "figure.svg")
    write_part(study / "README.md", "results", f"{table(outcomes)}\n\n{fact_line(results)}")


def fact_line(results: dict[str, Any]) -> str:
    """Where the numbers come from, as a sentence."""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return f"{results['date']}, {results['hardware']}; {versions}. `{results['command']}`"


def _hardware() -> str:
    import torch

    return f"{torch.cpu.get_capabilities()['cpu_name']}, {torch.get_num_threads()} thread"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(path.parent.name for path in STUDIES.glob("*/arms.yaml"))
    parser.add_argument("names", nargs="+", choices=["base", *names], metavar="NAME", help=f"base, {', '.join(names)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    with fresh_processes() as processes:
        make_base(processes)
        for study in (STUDIES / name for name in arguments.names if name != "base"):
            write(study, run_study(study, processes, arguments.seeds))


if __name__ == "__main__":
    main()
