"""Ranks and their places: the tests compare with DeepSpeed's topology, which makes the process groups."""

from __future__ import annotations

import pytest
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

from megacpt.parallel.grid import Coordinate, Grid

GRIDS = [Grid(pipeline=1, data=1, tensor=1), Grid(pipeline=2, data=3, tensor=4), Grid(pipeline=4, data=1, tensor=2)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_ranks_stand_where_deepspeed_puts_them(grid: Grid) -> None:
    topology = PipeModelDataParallelTopology(num_pp=grid.pipeline, num_mp=grid.tensor, num_dp=grid.data)
    assert grid.world_size == topology.world_size()
    for rank in range(grid.world_size):
        theirs = topology.get_coord(rank)
        coordinate = grid.coordinate(rank)
        assert coordinate == Coordinate(pipeline=theirs.pipe, data=theirs.data, tensor=theirs.model)
        assert grid.rank(coordinate) == rank


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tensor_groups_are_deepspeeds(grid: Grid) -> None:
    topology = PipeModelDataParallelTopology(num_pp=grid.pipeline, num_mp=grid.tensor, num_dp=grid.data)
    # DeepSpeed lists no groups for an axis of one.
    expected = topology.get_axis_comm_lists("model") if grid.tensor > 1 else [[rank] for rank in range(grid.world_size)]
    assert grid.tensor_groups() == expected
