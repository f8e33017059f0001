"""When a run is evaluated: densely where training on something new begins, then at equal distances.

What is forgotten first is forgotten within a few steps, and much of it comes back (`megacpt.continual.gap`). An
evaluation every tenth of a run sees neither; one after 1, 2, 4, 8, ... steps sees both, for a handful of evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Occasions:
    """The steps after which a run is evaluated, beside its start and its end.

    Attributes:
        every_steps: the distance; None: not on the way at all.
        dense_start: also 1, 2, 4, 8, ... steps after each beginning, as long as that is less than the distance.
        beginnings: the steps after which training on something new begins: the run's, and each stage's. What a stage
            did is read off an evaluation at its end, so each is an occasion too.
        decisions_every_steps: the distance of a mixture controller's decisions, which need an evaluation each; None:
            there is no controller.
    """

    every_steps: int | None
    dense_start: bool = True
    beginnings: Sequence[int] = (0,)
    decisions_every_steps: int | None = None

    def __contains__(self, step: object) -> bool:
        if not isinstance(step, int):
            return False
        if self.decisions_every_steps is not None and step % self.decisions_every_steps == 0:
            return True
        if self.every_steps is None:
            return False
        since = step - max((begin for begin in self.beginnings if begin <= step), default=0)
        is_dense = self.dense_start and since < self.every_steps and since & (since - 1) == 0
        return step % self.every_steps == 0 or since == 0 or is_dense
