"""The whole plan of a run."""

from __future__ import annotations

from megacpt.recipe.resolve import Resolved


def explain(resolved: Resolved) -> str:
    """The plan as text."""
    return f"{resolved.recipe.name}: {resolved.num_steps} steps"


def show(resolved: Resolved, console: object) -> None:
    """The plan on a console."""
