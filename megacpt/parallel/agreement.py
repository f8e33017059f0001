"""What all ranks of the world agree on: the largest number that any of them proposes.

The number travels in an all-reduce of eight bytes of its own: the reductions that a step makes anyway reach only the
ranks of one stage or one column of the grid. It is started before the step and read after it, so its latency is hidden
behind the step, and a rank that asks learns of a proposal at most one step late.
"""

from __future__ import annotations

import torch
import torch.distributed as dist


class Agreement:
    """The largest proposal of all ranks. Making one is collective; so is every method.

    Args:
        world_size: ranks; 1 needs no process group.
    """

    def __init__(self, world_size: int) -> None:
        # Gloo on every device: a GPU's stream would have to be waited for.
        self._group = dist.new_group(backend="gloo") if world_size > 1 else None
        self._value = torch.zeros(1, dtype=torch.long)
        self._pending: dist.Work | None = None

    def propose(self, value: int) -> None:
        """Start to find the largest of all ranks' values; `largest` ends it."""
        self._value.fill_(value)
        if self._group is not None:
            self._pending = dist.all_reduce(self._value, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def largest(self) -> int:
        """The largest of the values proposed."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        return int(self._value.item())
