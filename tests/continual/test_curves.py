"""Curves of a domain, read from a run's evaluations."""

from __future__ import annotations

import math

import pytest

from megacpt.continual.curves import Curve, held_out_curves
from megacpt.observe.record import DomainEvaluation, EvaluationRecord


def test_values_between_points_are_linear_and_constant_outside() -> None:
    curve = Curve((0, 100, 300), (3.0, 2.0, 4.0))
    assert [curve.at(tokens) for tokens in (-5, 0, 50, 100, 150, 300, 900)] == [3, 3, 2.5, 2, 2.5, 4, 4]
    assert curve.rises == (0.0, -1.0, 1.0)


def test_a_loss_that_is_not_a_number_is_infinitely_bad() -> None:
    assert Curve((0, 1), (3.0, math.nan)).last == math.inf
    assert [Curve((0, 1, 2), (3.0, math.nan, 2.5)).at(tokens) for tokens in (1, 1.5, 2)] == [math.inf, math.inf, 2.5]


def test_a_curve_has_points() -> None:
    with pytest.raises(ValueError, match="points"):
        Curve((), ())


def test_domains_without_a_base_are_left_out() -> None:
    def record(tokens: int, **losses: float) -> EvaluationRecord:
        return EvaluationRecord(
            tokens, tokens, {name: DomainEvaluation(loss, None, 9) for name, loss in losses.items()}
        )

    curves = held_out_curves([record(0, web=3.0, law=2.0), record(8, web=2.0), record(16, web=1.0, law=2.5, late=1.0)])
    assert curves == {"web": Curve((0, 8, 16), (3.0, 2.0, 1.0)), "law": Curve((0, 16), (2.0, 2.5))}
    assert held_out_curves([]) == {}
