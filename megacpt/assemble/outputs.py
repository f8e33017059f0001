"""Where a run's records go: JSON lines, the console, TensorBoard, Weights & Biases; and the plan shown at the start."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path

from megacpt.observe.console import Console
from megacpt.observe.sinks import JsonLines, Sink, TensorBoard, Wandb
from megacpt.recipe import Resolved, dump_recipe

BEFORE_EVERYTHING = -1
"""A run that starts at step 0 keeps no records, not even the evaluation of step 0 that it is about to repeat."""


def open_sinks(
    resolved: Resolved,
    folder: Path,
    first_step: int,
    plan: Mapping[str, str],
    due: Container[int],
    origin: Path | None = None,
) -> list[Sink]:
    """Make the run folder, keep the recipe in it, show the plan, open the sinks. For rank 0 only.

    Args:
        resolved: the recipe on the present world.
        folder: the run folder.
        first_step: steps done before; records after it are dropped.
        plan: what to show before the first step.
        due: the steps that are evaluated on the way.
        origin: the run folder that is continued; if it is another one, this run is a branch and takes over its records.
    """
    recipe = resolved.recipe
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    lines = JsonLines(folder)
    if origin is not None and origin.resolve() != folder.resolve():
        lines.take_over(origin)
    if first_step:
        was_due = first_step in due
        lines.resume(first_step, last_evaluation=first_step if was_due else first_step - 1)
    else:
        lines.resume(BEFORE_EVERYTHING)
    before = lines.evaluations()
    console = Console(
        roles={name: domain.role for name, domain in recipe.data.domains.items()},
        num_steps=resolved.last_step,
        num_tokens=resolved.tokens_before(resolved.last_step),
        every_steps=recipe.logging.every_steps,
        baseline=before[0] if before else None,
    )
    console.header(recipe.name, plan)
    sinks: list[Sink] = [lines, console]
    if recipe.logging.tensorboard:
        sinks.append(TensorBoard(folder / "tensorboard", resume_step=first_step or None))
    if recipe.logging.wandb is not None:
        settings = recipe.logging.wandb.model_dump(exclude_none=True)
        sinks.append(Wandb(folder, settings, recipe.model_dump(mode="json")))
    return sinks
