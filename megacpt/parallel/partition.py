"""Cutting a list of layers into pipeline stages of equal time.

A pipeline runs at the speed of its slowest stage, so stages are balanced by time and not by parameters: an embedding
holds many parameters and takes no time, the head of a 128k vocabulary takes as long as 2.1 layers of an 8B Llama.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise


def partition(costs: Sequence[float], num_stages: int) -> list[int]:
    """Bounds of the contiguous cut of `costs` into `num_stages` whose slowest stage is fastest.

    Returns num_stages + 1 bounds: stage s holds layers bounds[s] <= i < bounds[s + 1]. Every stage gets a layer. Among
    equally good cuts the one with the lighter early stages is taken: early stages hold the most micro-batches in
        flight.

    Raises:
        ValueError: there are fewer layers than stages.
    """
    num_layers = len(costs)
    if num_layers < num_stages:
        raise ValueError(f"{num_layers} layers cannot fill {num_stages} stages")
    before = [0.0, *accumulate(costs)]
    # slowest[s][i]: the least possible slowest stage when layers i.. fill s stages; scanning from the end.
    slowest = [[float("inf")] * (num_layers + 1) for _ in range(num_stages + 1)]
    first_cut = [[num_layers] * (num_layers + 1) for _ in range(num_stages + 1)]
    slowest[0][num_layers] = 0.0
    for stages in range(1, num_stages + 1):
        for start in range(num_layers - stages, -1, -1):
            for stop in range(start + 1, num_layers - stages + 2):
                candidate = max(before[stop] - before[start], slowest[stages - 1][stop])
                if candidate < slowest[stages][start] - 1e-12:
                    slowest[stages][start] = candidate
                    first_cut[stages][start] = stop
    bounds = [0]
    for stages in range(num_stages, 0, -1):
        bounds.append(first_cut[stages][bounds[-1]])
    return bounds


def imbalance(costs: Sequence[float], bounds: Sequence[int]) -> float:
    """The slowest stage's time over the mean stage's: 1.0 is a perfect cut."""
    times = [sum(costs[start:stop]) for start, stop in pairwise(bounds)]
    return max(times) * len(times) / sum(times)
