"""Curves in a terminal."""

from __future__ import annotations

import pytest

from megacpt.observe.plot import terminal_plot


def test_a_curve_spans_its_axes() -> None:
    lines = terminal_plot([([0, 1_000_000], [0.0, 2e-5])], width=60, height=10).plain.splitlines()
    assert len(lines) == 10
    assert lines[1].startswith("  2e-05")
    assert lines[-1].split() == ["0", "250K", "500K", "750K", "1M"]


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0]])
def test_a_flat_curve_and_a_point(values: list[float]) -> None:
    assert "1" in terminal_plot([(range(len(values)), values)], width=60, height=10).plain


def test_values_that_are_not_finite_are_left_out() -> None:
    curves = [([0, 1, 2, 3], [0.0, float("inf"), float("nan"), 1.0]), ([0, 1], [float("nan")] * 2)]
    assert terminal_plot(curves, width=60, height=10) == terminal_plot([([0, 3], [0.0, 1.0])], width=60, height=10)
    assert terminal_plot(curves[1:], width=60, height=10).plain == ""
