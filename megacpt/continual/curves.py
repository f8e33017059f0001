"""A domain's held-out loss over a run: what the measures of forgetting are functions of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from megacpt.observe.record import EvaluationRecord


@dataclass(frozen=True)
class Curve:
    """A loss at some points of a run, oldest first; the first point is the base model.

    Attributes:
        tokens: trained so far, rising.
        losses: in nats per token, at each of them; what is not finite counts as infinitely bad.
    """

    tokens: tuple[int, ...]
    losses: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.tokens or len(self.tokens) != len(self.losses):
            raise ValueError(f"a curve has points: {len(self.tokens)} tokens, {len(self.losses)} losses")
        object.__setattr__(self, "losses", tuple(loss if math.isfinite(loss) else math.inf for loss in self.losses))

    @property
    def base(self) -> float:
        """The loss before training."""
        return self.losses[0]

    @property
    def last(self) -> float:
        """The loss now."""
        return self.losses[-1]

    @property
    def rises(self) -> tuple[float, ...]:
        """How far each loss is above the base's."""
        return tuple(loss - self.base for loss in self.losses)

    def at(self, tokens: float) -> float:
        """The loss after `tokens`, linear between points; the nearest end's outside of them."""
        if tokens <= self.tokens[0]:
            return self.base
        for (start, before), (end, after) in pairwise(zip(self.tokens, self.losses, strict=True)):
            if tokens == end:
                return after  # 0 times what is not finite before it would be no number
            if tokens < end:
                share = (tokens - start) / (end - start)
                return (1 - share) * before + share * after
        return self.last


def held_out_curves(records: Sequence[EvaluationRecord]) -> dict[str, Curve]:
    """Domain -> its curve, of all domains in the first record, in its order.

    A domain that joins the run later has no base here and is left out.
    """
    domains = records[0].domains if records else {}
    return {
        name: Curve(
            tuple(record.tokens for record in records if name in record.domains),
            tuple(record.domains[name].loss for record in records if name in record.domains),
        )
        for name in domains
    }
