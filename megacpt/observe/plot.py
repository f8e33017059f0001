"""Curves in a terminal, for plans and for watching a run. Characters are coarse: the report has the real charts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.text import Text

from megacpt.observe.console import compact

COLOURS = ("bright_blue", "bright_green", "bright_red", "bright_cyan", "bright_magenta", "bright_yellow")
"""Of the curves, in their order, as rich calls them; the plotting library's theme "simple" has the same."""

NUM_TICKS = 5


def terminal_plot(curves: Sequence[tuple[Sequence[float], Sequence[float]]], width: int, height: int) -> Text:
    """Lines over tokens. Values that are not finite are left out.

    Args:
        curves: (tokens, values) each.
        width, height: in characters.
    """
    from plotext import figure

    figure.clear()
    figure.plot_size(width, height)
    figure.theme("simple")
    figure.legend(False)
    finite = [[point for point in zip(*curve, strict=True) if math.isfinite(point[1])] for curve in curves]
    if not any(finite):
        return Text()
    for points in finite:
        figure.draw(figure.signal([x for x, _ in points], [y for _, y in points], marker="braille").lines())
    for axis, sequence, form in (("x", 0, compact), ("y", 1, "{:.3g}".format)):
        numbers = [point[sequence] for points in finite for point in points]
        low, high = min(numbers), max(numbers)
        ticks = [low + (high - low) * i / (NUM_TICKS - 1) for i in range(NUM_TICKS)] if high > low else [low]
        figure.ruler(axis).ticks(ticks, [form(tick) for tick in ticks])
    return Text.from_ansi(figure.build().string())
