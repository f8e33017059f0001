"""One tensor-parallel group as its layers see it: my rank, our number, and the collectives between us.

A layer is handed a `TensorGroup` and never looks for one. A group of one does no communication at all, so that a
single process runs the very code of the cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class TensorGroup:
    """The ranks that share each layer's matrices.

    Attributes:
        rank: my place in the group, 0 <= rank < size.
        size: the tensor-parallel degree.
        process_group: torch's handle; None for a group of one.
    """

    rank: int = 0
    size: int = 1
    process_group: dist.ProcessGroup | None = None

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of everybody's `tensor`, written over it where it is contiguous."""
        if self.size == 1:
            return tensor
        tensor = tensor.contiguous()
        dist.all_reduce(tensor, group=self.process_group)
        return tensor

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Everybody's `tensor`, stacked in rank order: [size, *shape]."""
        tensor = tensor.contiguous()
        if self.size == 1:
            return tensor[None]
        gathered = tensor.new_empty(self.size, *tensor.shape)
        dist.all_gather_into_tensor(gathered.flatten(0, 1), tensor, group=self.process_group)
        return gathered

    def reduce_scatter(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """My 1/size of the sum of everybody's `tensor`, cut along `dim`."""
        if self.size == 1:
            return tensor
        pieces = tensor.unflatten(dim, (self.size, -1)).movedim(dim, 0).contiguous()
        mine = torch.empty_like(pieces[0])
        dist.reduce_scatter_tensor(mine, pieces.flatten(0, 1), group=self.process_group)
        return mine
