"""The stability gap against curves whose numbers are known by hand, and its area against a fine sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacpt.continual.curves import Curve
from megacpt.continual.gap import Verdict, stability_gap

TOKENS = (0, 1, 2, 4, 8, 16)


@pytest.mark.parametrize(
    "losses, verdict, at_the_end",
    [
        ((2.0, 1.9, 1.9, 1.8, 1.8, 1.7), Verdict.NONE, Verdict.NONE),
        ((2.0, 2.005, 2.0, 2.0, 2.0, 2.009), Verdict.NONE, Verdict.NONE),  # within the tolerance
        ((2.0, 2.4, 2.2, 2.1, 2.0, 1.9), Verdict.RECOVERED, Verdict.RECOVERED),
        ((2.0, 2.4, 2.6, 2.4, 2.3, 2.2), Verdict.RECOVERING, Verdict.DAMAGE),
        ((2.0, 2.2, 2.4, 2.5, 2.6, 2.6), Verdict.DAMAGE, Verdict.DAMAGE),  # no way back
        ((2.0, 2.6, 2.3, 2.1, 2.3, 2.4), Verdict.DAMAGE, Verdict.DAMAGE),  # back, and lost again
        ((2.0, 2.6, 2.59, 2.59, 2.58, 2.58), Verdict.DAMAGE, Verdict.DAMAGE),  # flat: no recovery to speak of
        ((2.0, 2.1, 2.0, 2.0, 2.0, math.nan), Verdict.DAMAGE, Verdict.DAMAGE),
    ],
)
def test_verdicts(losses: tuple[float, ...], verdict: Verdict, at_the_end: Verdict) -> None:
    curve = Curve(TOKENS, losses)
    assert stability_gap(curve).verdict is verdict
    assert stability_gap(curve, is_finished=True).verdict is at_the_end


def test_numbers_of_a_known_curve() -> None:
    gap = stability_gap(Curve((0, 10, 20, 40), (2.0, 3.0, 2.5, 1.5)))
    assert (gap.depth, gap.peak_tokens, gap.recovery_tokens, gap.residual) == (1.0, 10, 40, -0.5)
    assert gap.area == pytest.approx(5 + 7.5 + 0.5 * 10 / 2)


def test_a_loss_that_is_not_finite_is_an_infinite_gap() -> None:
    assert stability_gap(Curve((0, 10, 20), (2.0, 1.5, math.nan))).area == math.inf


def test_a_loss_that_only_falls_has_no_gap() -> None:
    gap = stability_gap(Curve((0, 10), (2.0, 1.0)))
    assert (gap.depth, gap.peak_tokens, gap.recovery_tokens, gap.area) == (0.0, 0, math.inf, 0.0)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=6))
def test_the_area_is_that_above_the_base(rises: list[float]) -> None:
    points = np.arange(len(rises) + 1)
    curve = Curve(tuple(points.tolist()), (3.0, *(3.0 + rise for rise in rises)))
    grid = np.linspace(0, len(rises), 20_000 * len(rises) + 1)
    above = np.interp(grid, points, np.asarray(curve.rises)).clip(0)
    assert stability_gap(curve).area == pytest.approx(np.trapezoid(above, grid), abs=1e-4)
