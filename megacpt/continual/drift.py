"""How far the weights are from the base model's, layer by layer.

The relative change of a layer is |theta - theta_0| / |theta_0| over all its tensors. During a stability gap the bottom
layers move more than the top ones: in arXiv:2406.14833 the ratio of the mean changes of the bottom 5 and the top 5
layers is above 1.35 at first, and near 1 with their remedies. Tensors are read one at a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence

import torch

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
NUM_END_LAYERS = 5
"""Layers that count as the bottom and as the top, as in the paper; of models with fewer than 10, half of them."""


def layer_of(name: str) -> int | None:
    """The decoder layer of a parameter with this Hugging Face name; None: it is outside of all."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def layer_drift(
    names: Iterable[str], base: Callable[[str], torch.Tensor], model: Callable[[str], torch.Tensor]
) -> list[float]:
    """The relative change of every decoder layer, from the bottom to the top.

    Args:
        names: of the tensors; those outside decoder layers are passed over.
        base, model: name -> tensor. Sums are in float64: the change is small beside the weights.
    """
    changed: dict[int, float] = {}
    squares: dict[int, float] = {}
    for name in names:
        if (layer := layer_of(name)) is not None:
            before = base(name).double()
            changed[layer] = changed.get(layer, 0.0) + float((model(name).double() - before).square().sum())
            squares[layer] = squares.get(layer, 0.0) + float(before.square().sum())
    return [math.sqrt(changed[layer] / squares[layer]) if squares[layer] else math.nan for layer in sorted(changed)]


def bottom_to_top(drift: Sequence[float]) -> float:
    """The mean change of the bottom layers over that of the top layers; NaN where the top has not moved."""
    num_layers = min(NUM_END_LAYERS, max(1, len(drift) // 2))
    bottom, top = sum(drift[:num_layers]), sum(drift[-num_layers:])
    return bottom / top if top else math.nan
