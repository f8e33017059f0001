"""A base model that is not the known one."""

from __future__ import annotations

import math

import pytest

from megacpt.errors import ModelError
from megacpt.evaluate.base_loss import check_base_loss
from megacpt.observe.record import DomainEvaluation, EvaluationRecord


def evaluation(loss: float, step: int = 0) -> EvaluationRecord:
    domains = {"web": DomainEvaluation(loss, None, 100), "law": DomainEvaluation(9.0, None, 100)}
    return EvaluationRecord(step=step, tokens=0, domains=domains)


def test_the_known_loss_passes_and_later_ones_are_not_its_business() -> None:
    check_base_loss({"web": 2.0}, evaluation(2.019))
    check_base_loss({"web": 2.0}, evaluation(1.981))
    check_base_loss({"web": 2.0}, evaluation(3.0, step=1))
    check_base_loss({}, evaluation(math.nan))


@pytest.mark.parametrize("loss", [2.021, 1.979, math.nan])
def test_another_loss_is_refused(loss: float) -> None:
    with pytest.raises(ModelError, match=rf"evaluation\.base_loss: .*found web {loss:.4f}, expected web 2\.0000, to"):
        check_base_loss({"web": 2.0}, evaluation(loss))
