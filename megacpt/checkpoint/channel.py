"""What ranks tell each other about a checkpoint: small values, beside training's own communication.

A save may run in a thread of its own while training goes on, so it must not use the process groups of training, whose
collectives would meet it in another order on every rank.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist

PATIENCE = timedelta(hours=1)
"""How long a rank waits for the slowest disk."""


class Channel:
    """The ranks of a run, rank 0 deciding; without a process group, one rank alone. Making one is collective."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self._group = None
        if dist.is_initialized():
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on rank 0; nothing elsewhere."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, dst=0, group=self._group)
        return values or []

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]
