"""Cutting a list of layers into pipeline stages of equal time.

A pipeline runs at the speed of its slowest stage, so stages are balanced by time and not by parameters: an embedding
holds many parameters and takes no time, the head of a 128k vocabulary takes as long as 2.1 layers of an 8B Llama.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

ROUNDING = 1e-9
"""Sums of costs that differ by less, relatively, are equal."""


def partition(costs: Sequence[float], num_stages: int) -> list[int]:
    """Bounds of the contiguous cut of `costs` into `num_stages` whose slowest stage is fastest.

    Returns num_stages + 1 bounds: stage s holds layers bounds[s] <= i < bounds[s + 1]. Every stage gets a layer. Among
    the cuts with the same slowest stage the evenest is taken (the least sum of squares), so that no stage idles while
    others hold its layers; among those the one with the lighter early stages, which hold the most micro-batches in
    flight.

    Raises:
        ValueError: there are fewer layers than stages.
    """
    if len(costs) < num_stages:
        raise ValueError(f"{len(costs)} layers cannot fill {num_stages} stages")
    slowest, _ = _best_cut(costs, num_stages, lambda time: time, max)
    limit = slowest * (1 + ROUNDING)
    _, bounds = _best_cut(
        costs,
        num_stages,
        lambda time: time * time if time <= limit else float("inf"),
        lambda first, rest: first + rest,
    )
    return bounds


def _best_cut(
    costs: Sequence[float],
    num_stages: int,
    price: Callable[[float], float],
    join: Callable[[float, float], float],
) -> tuple[float, list[int]]:
    """The least price of a cut, and its bounds: join(price of the first stage, join(of the second, ...)).

    Dynamic programming from the end: best[s][i] is the least price of cutting layers i.. into s stages.
    """
    num_layers = len(costs)
    before = [0.0, *accumulate(costs)]
    best = [[float("inf")] * (num_layers + 1) for _ in range(num_stages + 1)]
    first_cut = [[num_layers] * (num_layers + 1) for _ in range(num_stages + 1)]
    best[0][num_layers] = 0.0
    for stages in range(1, num_stages + 1):
        for start in range(num_layers - stages, -1, -1):
            for stop in range(start + 1, num_layers - stages + 2):
                candidate = join(price(before[stop] - before[start]), best[stages - 1][stop])
                if candidate < best[stages][start] * (1 - ROUNDING):
                    best[stages][start] = candidate
                    first_cut[stages][start] = stop
    bounds = [0]
    for stages in range(num_stages, 0, -1):
        bounds.append(first_cut[stages][bounds[-1]])
    return best[num_stages][0], bounds
