"""The stability gap: a loss that rises when training on new text begins, and what becomes of the rise.

At first the gradient of the new text outweighs what keeps the old knowledge; later most of the loss comes back, or it
does not. Only an evaluation that is dense at the start sees it. Guo et al. 2024, "Efficient Continual Pre-training by
Mitigating the Stability Gap", arXiv:2406.14833; De Lange et al. 2023, arXiv:2205.13452.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from megacpt.continual.curves import Curve

TOLERANCE_NATS = 0.01
"""A rise below this is called none: twice and more the noise of a difference over 1M of the same tokens."""

RETURNING_SHARE = 0.1
"""A loss is on its way back once a tenth of the rise is gone and it has not been lower since the peak."""


class Verdict(StrEnum):
    """What a rise amounts to."""

    NONE = "none"
    RECOVERING = "expected dip, recovering"
    RECOVERED = "recovered"
    DAMAGE = "damage"


@dataclass(frozen=True)
class StabilityGap:
    """A rise of the loss above the base model's.

    Attributes:
        depth: the largest rise, max_t g(t) - g(0), in nats per token; 0 where the loss never rises.
        peak_tokens: where it is.
        recovery_tokens: the first point after the peak within the tolerance of the base; inf if there is none.
        area: integral of (g(t) - g(0))+ over tokens, linear between points, in nats.
        residual: what is left at the last point, g(T) - g(0); below 0 where the domain got better.
        verdict: what to make of it.
    """

    depth: float
    peak_tokens: int
    recovery_tokens: float
    area: float
    residual: float
    verdict: Verdict


def stability_gap(curve: Curve, *, tolerance: float = TOLERANCE_NATS, is_finished: bool = False) -> StabilityGap:
    """Measure the gap of one domain.

    Args:
        curve: its held-out loss.
        tolerance: a rise in nats that does not count.
        is_finished: the run is over, so what has not come back will not: nothing is "recovering" any more.
    """
    rises = curve.rises
    peak = max(range(len(rises)), key=rises.__getitem__)
    depth, residual = max(0.0, rises[peak]), rises[-1]
    back = (
        tokens
        for tokens, rise in zip(curve.tokens[peak + 1 :], rises[peak + 1 :], strict=True)
        if depth > tolerance and rise <= tolerance
    )
    if depth <= tolerance:
        verdict = Verdict.NONE
    elif residual <= tolerance:
        verdict = Verdict.RECOVERED
    elif not is_finished and depth - residual >= RETURNING_SHARE * depth and residual <= min(rises[peak:]) + tolerance:
        verdict = Verdict.RECOVERING
    else:
        verdict = Verdict.DAMAGE
    return StabilityGap(
        depth=depth,
        peak_tokens=curve.tokens[peak],
        recovery_tokens=next(back, math.inf),
        area=sum(_positive_area(left, right) for left, right in pairwise(zip(curve.tokens, rises, strict=True))),
        residual=residual,
        verdict=verdict,
    )


def _positive_area(left: tuple[int, float], right: tuple[int, float]) -> float:
    """The area above 0 of the line between two points."""
    width, low, high = right[0] - left[0], *sorted((left[1], right[1]))
    if high <= 0:
        return 0.0
    if low >= 0:
        return width * (low + high) / 2
    return width * high / 2 / (1 - low / high)
