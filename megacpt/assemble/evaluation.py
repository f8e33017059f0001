"""What a recipe says about measuring: when a run is evaluated, and what follows from a budget that is overrun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megacpt.data.history import History
from megacpt.evaluate.occasions import Occasions
from megacpt.observe.record import DomainEvaluation
from megacpt.observe.sinks import JsonLines
from megacpt.recipe import Recipe, Resolved
from megacpt.trainer.budgets import BudgetWatch


def occasions(resolved: Resolved, history: History) -> Occasions:
    """The steps after which the run is evaluated on its way; each stage of its plan is a beginning."""
    return Occasions(
        resolved.evaluation_every_steps,
        resolved.recipe.evaluation.dense_start,
        beginnings=[history.num_steps(stage.from_tokens) for stage in history.plan],
        decisions_every_steps=None if resolved.recipe.mixture.controller == "static" else resolved.mixture_every_steps,
    )


def budget_watch(
    recipe: Recipe, origin: Path | None, first_step: int, save: Callable[[int], None], is_main: bool
) -> BudgetWatch:
    """What looks at every evaluation.

    Args:
        recipe: states budgets and what to do.
        origin: the run folder that is continued, which holds the base model's evaluation; None: a fresh start.
        first_step: steps done before; evaluations from there on are made again.
        save: writes a checkpoint of a step, unless there is one.
        is_main: this is rank 0.
    """
    base: dict[str, DomainEvaluation] = {}
    for record in JsonLines(origin).evaluations() if origin else ():
        if record.step < first_step:
            base = {**record.domains, **base}  # of a domain that joined on the way, the first
    action = recipe.evaluation.over_budget
    return BudgetWatch(
        recipe.forgetting,
        base=base,
        save=save if action in ("checkpoint", "stop") else None,
        stops=action == "stop",
        is_main=is_main,
    )
