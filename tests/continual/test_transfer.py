"""Transfer between stages, against an R worked out by hand."""

from __future__ import annotations

import pytest

from megacpt.continual.curves import Curve
from megacpt.continual.transfer import StageMatrix, forgetting, forgetting_from_best, pareto, prequential_loss

LEARNED_IN = {"general": 0, "medical": 1, "legal": 2}
MATRIX = StageMatrix(
    domains=("general", "medical", "legal"),
    tokens=(0, 100, 200),
    losses=((2.0, 4.0, 5.0), (2.5, 3.0, 4.5), (2.25, 3.5, 3.0)),
    learned_in=LEARNED_IN,
)


def test_measures_of_a_known_matrix() -> None:
    assert MATRIX.backward_transfer() == pytest.approx(((2.0 - 2.25) + (3.0 - 3.5)) / 2)
    assert MATRIX.forward_transfer() == pytest.approx(5.0 - 4.5)
    assert MATRIX.retained_loss() == pytest.approx((2.25 + 3.5 + 3.0) / 3)
    assert MATRIX.learned_loss() == pytest.approx((3.0 + 3.0) / 2)


def test_what_does_not_exist_is_none() -> None:
    only_base = StageMatrix(("medical",), (0,), ((4.0,),), {"medical": 1})
    assert (only_base.backward_transfer(), only_base.forward_transfer(), only_base.learned_loss()) == (None, None, None)


def test_the_matrix_is_read_off_the_curves() -> None:
    curves = {
        "general": Curve((0, 50, 100, 200), (2.0, 2.7, 2.5, 2.25)),
        "medical": Curve((0, 100, 200), (4.0, 3.0, 3.5)),
        "legal": Curve((0, 100, 200), (5.0, 4.5, 3.0)),
    }
    assert StageMatrix.from_curves(curves, (100, 200), LEARNED_IN) == MATRIX
    under_way = StageMatrix.from_curves(curves, (100, 400, 800), LEARNED_IN)
    assert under_way.tokens == (0, 100, 200)  # the second stage as far as it is; the third has not begun
    assert under_way.losses == MATRIX.losses


def test_forgetting_above_the_base_and_above_the_best() -> None:
    curve = Curve((0, 1, 2), (3.0, 2.5, 2.75))
    assert forgetting(curve) == -0.25
    assert forgetting_from_best(curve) == 0.25


def test_prequential_loss_is_the_mean_of_all_tokens_so_far() -> None:
    assert prequential_loss([4.0, 2.0, 1.0], [10, 30, 0]) == [4.0, 2.5, 2.5]
    assert prequential_loss([4.0, float("nan"), 2.0], [10, 9, 30]) == [4.0, 4.0, 2.5], "a step that was not applied"


def test_pareto_keeps_what_nothing_beats() -> None:
    assert pareto([(0.5, 0.2), (0.4, 0.1), (0.3, 0.15), (0.5, 0.3), (0.4, 0.1)]) == [0, 1, 4]
