"""The grid of ranks: pipeline x data x tensor, tensor innermost.

The order is DeepSpeed's `PipeModelDataParallelTopology`: ranks of one tensor-parallel group are neighbours (they talk
most), pipeline stages are farthest apart (they talk least). Pure numbers; no process group is made here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Coordinate:
    """Where a rank stands on each axis of the grid."""

    pipeline: int
    data: int
    tensor: int


@dataclass(frozen=True)
class Grid:
    """The degrees of the three axes; their product is the world size."""

    pipeline: int
    data: int
    tensor: int

    @property
    def world_size(self) -> int:
        return self.pipeline * self.data * self.tensor

    def coordinate(self, rank: int) -> Coordinate:
        """The place of global rank `rank`."""
        return Coordinate(
            pipeline=rank // (self.data * self.tensor),
            data=rank // self.tensor % self.data,
            tensor=rank % self.tensor,
        )

    def rank(self, coordinate: Coordinate) -> int:
        """The global rank at `coordinate`."""
        return (coordinate.pipeline * self.data + coordinate.data) * self.tensor + coordinate.tensor

    def tensor_groups(self) -> list[list[int]]:
        """The global ranks of every tensor-parallel group, in order."""
        return [list(range(start, start + self.tensor)) for start in range(0, self.world_size, self.tensor)]
