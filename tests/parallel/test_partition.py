"""The cut into stages: the best there is, found by trying all of them where lists are small."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacpt.parallel.partition import partition


def stage_times(costs: Sequence[int], bounds: Sequence[int]) -> list[int]:
    return [sum(costs[start:stop]) for start, stop in pairwise(bounds)]


def all_cuts(num_layers: int, num_stages: int) -> list[list[int]]:
    return [[0, *inner, num_layers] for inner in combinations(range(1, num_layers), num_stages - 1)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_no_cut_is_better(costs: list[int], data: st.DataObject) -> None:
    num_stages = data.draw(st.integers(1, len(costs)))
    bounds = partition(costs, num_stages)
    cuts = all_cuts(len(costs), num_stages)
    assert bounds in cuts
    best = min(max(stage_times(costs, cut)) for cut in cuts)
    assert max(stage_times(costs, bounds)) == best


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_of_equally_fast_cuts_the_evenest_is_taken_and_early_stages_are_light(
    costs: list[int], data: st.DataObject
) -> None:
    num_stages = data.draw(st.integers(1, len(costs)))

    def rank(cut: list[int]) -> tuple[int, int]:
        times = stage_times(costs, cut)
        return max(times), sum(time * time for time in times)

    best = min(map(rank, all_cuts(len(costs), num_stages)))
    equally_good = [cut for cut in all_cuts(len(costs), num_stages) if rank(cut) == best]
    assert partition(costs, num_stages) == min(equally_good)


@pytest.mark.parametrize(
    "num_stages, layers", [(1, [32]), (2, [17, 15]), (4, [8, 9, 9, 6]), (8, [4, 4, 4, 4, 4, 5, 5, 2])]
)
@pytest.mark.parametrize("flops_per_layer", [1.0, 1.4e9 / 3])
def test_the_head_of_an_8b_llama_takes_the_room_of_two_layers(
    num_stages: int, layers: list[int], flops_per_layer: float
) -> None:
    costs = [0.0, *[flops_per_layer] * 32, 2.1 * flops_per_layer]
    bounds = partition(costs, num_stages)
    assert (bounds[0], bounds[-1]) == (0, len(costs))
    held = [stop - start for start, stop in pairwise(bounds)]
    # The embedding lies in the first stage, norm and head in the last.
    assert [held[stage] - (stage == 0) - (stage == num_stages - 1) for stage in range(num_stages)] == layers


def test_a_stage_is_not_left_without_work() -> None:
    assert partition([0.0, *[1.0] * 32, 0.0], 5) == [0, 7, 13, 19, 26, 34]


def test_a_pipeline_as_long_as_the_model() -> None:
    assert partition([5.0, 1.0, 3.0], 3) == [0, 1, 2, 3]


def test_fewer_layers_than_stages() -> None:
    with pytest.raises(ValueError, match="2 layers cannot fill 3 stages"):
        partition([1.0, 1.0], 3)
