"""Which layers each pipeline stage holds. Without torch, so that a dry run can say it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from megacpt.parallel.partition import partition
from megacpt.recipe import Architecture, Recipe


def layer_costs(architecture: Architecture, sequence_length: int) -> list[float]:
    """Training time, in FLOPs per token, of what stages are cut from: embedding, decoder layers, norm and head."""
    return [0.0, *architecture.layer_flops_per_token(sequence_length), architecture.head_flops_per_token()]


def stage_bounds(recipe: Recipe, architecture: Architecture) -> list[int]:
    """The cut of (embedding, decoder layers, norm with head): stage s holds bounds[s] <= i < bounds[s + 1]."""
    cut, num_stages = recipe.parallel.partition, recipe.parallel.pipeline
    if isinstance(cut, tuple):
        return [0, *(1 + sum(cut[:stage]) for stage in range(1, num_stages)), architecture.num_layers + 2]
    if cut == "uniform":
        return partition([0.0, *[1.0] * architecture.num_layers, 0.0], num_stages)
    return partition(layer_costs(architecture, recipe.data.sequence_length), num_stages)


def layers_per_stage(bounds: Sequence[int], num_layers: int) -> list[int]:
    """Decoder layers of each stage."""
    return [sum(1 <= i <= num_layers for i in range(start, stop)) for start, stop in pairwise(bounds)]
