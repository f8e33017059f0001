"""Budgets of forgetting."""

from __future__ import annotations

import math

from megacpt.continual.budgets import overruns
from megacpt.observe.record import DomainEvaluation, EvaluationRecord


def record(step: int, **losses: float) -> EvaluationRecord:
    return EvaluationRecord(step, step, {name: DomainEvaluation(loss, None, 9) for name, loss in losses.items()})


def test_domains_over_their_budget_are_found() -> None:
    base = record(0, web=3.0, law=2.0, code=1.0)
    now = record(8, web=3.125, law=2.125, code=math.nan, late=9.0)
    found = overruns(now, base.domains, {"web": 0.0625, "law": 0.125, "code": 5.0, "late": 0.0})
    assert [(overrun.domain, overrun.rise) for overrun in found[:1]] == [("web", 0.125)]
    assert [overrun.domain for overrun in found] == ["web", "code"]
    assert str(found[0]) == "web is +0.1250 nats above the base model, its budget is 0.0625"
