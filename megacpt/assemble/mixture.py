"""The mixture controller of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megacpt.continual.controllers.agent import Agent
from megacpt.continual.controllers.constrained import Constrained
from megacpt.continual.controllers.controller import Controller, Observation
from megacpt.continual.controllers.ddk import DDK
from megacpt.continual.controllers.prioritised import Prioritised
from megacpt.continual.controllers.random_walk import RandomWalk
from megacpt.continual.controllers.skill_it import SkillIt
from megacpt.continual.controllers.topic_perplexity import TopicPerplexity
from megacpt.continual.skills_graph import SkillsGraph
from megacpt.data.loader import Loader
from megacpt.errors import RecipeError
from megacpt.recipe import Recipe, Resolved
from megacpt.trainer.steering import Steering


def controller(recipe: Recipe) -> Controller | None:
    """The controller that the recipe names; None for a static mixture.

    Raises:
        DataError: its graph or agent cannot be read.
        RecipeError: the graph does not know a domain.
    """
    mixture = recipe.mixture
    replay = tuple(name for name, domain in recipe.data.domains.items() if domain.role == "replay")
    keys = ("step_size", "max_replay", "smoothing", "exponent", "kept_share", "window")
    stated = {key: getattr(mixture, key) for key in keys if getattr(mixture, key) is not None}
    match mixture.controller:
        case "static":
            return None
        case "ddk":
            return DDK(reference=mixture.reference, **stated)
        case "topic_perplexity":
            return TopicPerplexity(**stated)
        case "skill_it":
            return SkillIt(_graph(recipe), **stated)
        case "prioritised":
            return Prioritised(replay, **stated)
        case "constrained":
            return Constrained(recipe.forgetting, replay, **stated)
        case "agent":
            return Agent.load(Path(str(mixture.agent)))
        case "random_walk":
            return RandomWalk(recipe.seed, **stated)


def _graph(recipe: Recipe) -> SkillsGraph:
    graph = SkillsGraph.load(Path(str(recipe.mixture.graph)))
    trained = [name for name, domain in recipe.data.domains.items() if domain.role != "anchor"]
    if missing := [name for name in trained if name not in graph.skills]:
        raise RecipeError(
            "the skills graph does not know every trained domain",
            where=recipe.where("mixture.graph"),
            found=f"no {', '.join(missing)} among {', '.join(graph.skills)}",
        )
    return graph


def ceilings(resolved: Resolved, loader: Loader, step: int) -> dict[str, float]:
    """Domain -> its largest share of the remaining tokens that reads it no more than `max_epochs` times in all."""
    rows = loader.stream
    remaining_tokens = max(resolved.total_tokens - rows.history.tokens(step), 1)
    epochs = {domain.name: domain.epochs for domain in rows.report(step)}
    return {
        name: max(domain.max_epochs - epochs.get(name, 0.0), 0.0) * rows.corpora[name].num_tokens / remaining_tokens
        for name, domain in resolved.recipe.data.domains.items()
        if name in rows.names
    }


def steering(
    resolved: Resolved,
    chosen: Controller | None,
    loader: Loader,
    broadcast: Callable[[Sequence[float]], list[float]],
    saved: Mapping[str, Any] | None,
) -> Steering | None:
    """What applies the controller; None for a static mixture.

    Args:
        resolved: the recipe on the present world.
        chosen: the recipe's controller.
        loader: whose mixture is steered.
        broadcast: rank 0's numbers.
        saved: the state of the checkpoint that the run continues.
    """
    if chosen is None:
        return None
    return Steering(
        chosen,
        loader,
        every_steps=resolved.mixture_every_steps,
        floor=resolved.recipe.mixture.floor,
        broadcast=broadcast,
        ceilings=partial(ceilings, resolved, loader),
        observations=[Observation.from_json(observation) for observation in saved["mixture"]] if saved else (),
    )
