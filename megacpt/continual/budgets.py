"""Budgets of forgetting: how far a domain's held-out loss may rise above the base model's before somebody is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from megacpt.observe.record import DomainEvaluation, EvaluationRecord


@dataclass(frozen=True)
class Overrun:
    """A domain that was forgotten more than its budget allows, in nats per token."""

    domain: str
    rise: float
    budget: float

    def __str__(self) -> str:
        return f"{self.domain} is {self.rise:+.4f} nats above the base model, its budget is {self.budget:g}"


def overruns(
    record: EvaluationRecord, base: Mapping[str, DomainEvaluation], budgets: Mapping[str, float]
) -> list[Overrun]:
    """The domains over their budget; a loss that is not finite is over any.

    Args:
        record: the present evaluation.
        base: domain -> that of the base model.
        budgets: domain -> the rise it may have.
    """
    found = []
    for name, budget in budgets.items():
        if name in record.domains and name in base:
            rise = record.domains[name].loss - base[name].loss
            if not math.isfinite(rise) or rise > budget:
                found.append(Overrun(name, rise, budget))
    return found
