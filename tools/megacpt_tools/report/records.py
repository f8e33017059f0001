"""A run as its folder tells it: what a report is made of.

Records are read as plain values, so that the run of an older version, or one that is still going on, has a report too:
what is missing is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from megacpt.checkpoint.folder import CheckpointFolder, read_state
from megacpt.continual.curves import Curve, held_out_curves
from megacpt.continual.gap import StabilityGap, stability_gap
from megacpt.continual.transfer import StageMatrix, forgetting
from megacpt.data.history import History
from megacpt.errors import CheckpointError, DataError, MegacptError
from megacpt.observe.lines import read_json_lines
from megacpt.observe.record import EvaluationRecord
from megacpt.recipe import Architecture
from megacpt.units import parse_tokens


@dataclass(frozen=True)
class RunStage:
    """A stage of a run's plan: after how many trained tokens it begins, and the shares of its domains."""

    from_tokens: int
    weights: Mapping[str, float]


@dataclass(frozen=True)
class RunRecords:
    """What a run folder holds.

    Attributes:
        folder: the run folder.
        name: to tell it from other runs.
        recipe: recipe.yaml as plain values.
        steps: the lines of metrics.jsonl, in order.
        evaluations: of the held-out text, in order; the first is the base model's.
        tasks: the lines of tasks.jsonl: downstream results, the base model's among them.
        drift: the lines of drift.jsonl: relative changes of the layers.
        probes: the lines of probes.jsonl: what was learned by heart.
        stages: of the plan; one, unless the recipe has more.
        flops_per_token: of training; None where the model's shape is not known.
    """

    folder: Path
    name: str
    recipe: Mapping[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[EvaluationRecord]
    tasks: list[dict[str, Any]]
    drift: list[dict[str, Any]]
    probes: list[dict[str, Any]]
    stages: tuple[RunStage, ...]
    flops_per_token: float | None

    @classmethod
    def read(cls, folder: Path) -> RunRecords:
        """Read a run folder.

        Raises:
            CheckpointError: it is none, or nothing is recorded in it yet.
        """
        recipe_file = folder / "recipe.yaml"
        if not recipe_file.is_file():
            raise CheckpointError(
                "this is no run folder", where=str(folder), expected="a folder with recipe.yaml and metrics.jsonl"
            )
        recipe = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
        lines = {
            name: read_json_lines(folder / f"{name}.jsonl")
            for name in ("metrics", "evaluations", "tasks", "drift", "probes")
        }
        if not lines["metrics"] and not lines["evaluations"]:
            raise CheckpointError("nothing is recorded in this run yet", where=str(folder))
        return cls(
            folder=folder,
            name=str(recipe["name"]),
            recipe=recipe,
            steps=lines["metrics"],
            evaluations=[EvaluationRecord.from_dict(line) for line in lines["evaluations"]],
            tasks=lines["tasks"],
            drift=lines["drift"],
            probes=lines["probes"],
            stages=_stages(folder, recipe),
            flops_per_token=_flops_per_token(folder, recipe),
        )

    @property
    def roles(self) -> dict[str, str]:
        """Domain -> new, replay or anchor."""
        return {name: domain.get("role", "new") for name, domain in self.recipe["data"]["domains"].items()}

    @property
    def parts(self) -> list[str]:
        """What the documents of divided domains are counted as, such as "web/arxiv"."""
        return sorted({name for step in self.steps for name in step.get("parts", {})})

    @property
    def budgets(self) -> Mapping[str, float]:
        """Domain -> how far its loss may rise, in nats per token."""
        return dict(self.recipe.get("forgetting") or {})

    @property
    def tokens(self) -> int:
        """Trained so far."""
        last_step = self.steps[-1]["tokens"] if self.steps else 0
        return max(last_step, self.evaluations[-1].tokens if self.evaluations else 0)

    @property
    def planned_tokens(self) -> int:
        """Of the whole run."""
        return parse_tokens(self.recipe["training"]["tokens"])

    @property
    def is_finished(self) -> bool:
        """The run has reached its last token."""
        return self.tokens >= self.planned_tokens

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Domain -> its held-out loss over the run."""
        return held_out_curves(self.evaluations)

    @cached_property
    def gaps(self) -> dict[str, StabilityGap]:
        """Domain -> how its loss rose above the base model's, and came back."""
        return {name: stability_gap(curve, is_finished=self.is_finished) for name, curve in self.curves.items()}

    @cached_property
    def matrix(self) -> StageMatrix:
        """The loss of every domain after every stage."""
        ends = [*(stage.from_tokens for stage in self.stages[1:]), max(self.planned_tokens, self.tokens)]
        learned_in = {
            name: next((number for number, stage in enumerate(self.stages, 1) if stage.weights.get(name)), 0)
            for name, role in self.roles.items()
            if role == "new"
        }
        return StageMatrix.from_curves(self.curves, ends, learned_in)

    def learned_and_forgotten(self, tokens: float) -> tuple[float, float] | None:
        """(mean fall of the new domains, mean rise of the others) after so many tokens; None without either."""
        changes = {name: curve.at(tokens) - curve.base for name, curve in self.curves.items()}
        new = [-change for name, change in changes.items() if self.roles.get(name) == "new"]
        old = [change for name, change in changes.items() if self.roles.get(name) != "new"]
        return (math.fsum(new) / len(new), math.fsum(old) / len(old)) if new and old else None

    def headline(self) -> str:
        """What became of the domains, in a sentence."""
        phrases = []
        for name, curve in self.curves.items():
            change = forgetting(curve)
            amount = f"{abs(change):.3f} nats"
            if self.roles.get(name) == "new":
                phrases.append(f"{name} was learned by {amount}" if change < 0 else f"{name} got worse by {amount}")
            else:
                phrases.append(f"{name} lost {amount}" if change > 0 else f"{name} was kept, and gained {amount}")
        return "; ".join(phrases)


def told_apart(runs: Sequence[RunRecords]) -> list[RunRecords]:
    """The same runs; those that share a name go by their folders."""
    names = [run.name for run in runs]
    return [replace(run, name=str(run.folder)) if names.count(run.name) > 1 else run for run in runs]


def _stages(folder: Path, recipe: Mapping[str, Any]) -> tuple[RunStage, ...]:
    """The stages of the plan in the newest checkpoint; without one that can be read, the whole run is one stage."""
    newest = CheckpointFolder(folder / "checkpoints").newest()
    with suppress(CheckpointError, DataError):
        if newest is not None:
            history = History.from_json(read_state(newest)["data"])  # stages begin with whole steps
            return tuple(
                RunStage(history.tokens(history.num_steps(stage.from_tokens)), stage.settings.weights)
                for stage in history.plan
            )
    weights = {name: domain.get("weight") or 0.0 for name, domain in recipe["data"]["domains"].items()}
    return (RunStage(0, weights),)


def _flops_per_token(folder: Path, recipe: Mapping[str, Any]) -> float | None:
    """Of training, from the run folder's copy of the model's config."""
    file = folder / "model" / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return Architecture.from_config(config, str(file)).flops_per_token(int(recipe["data"]["sequence_length"]))
    except (OSError, ValueError, MegacptError):
        return None
