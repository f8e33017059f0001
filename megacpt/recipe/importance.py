"""Loss weights as importance weights: what a domain shall count in the objective, over what is sampled of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EFFECTIVE_SHARE = 0.7
"""Below this share of effective samples, weighting costs so much variance that sampling differently is better."""


@dataclass(frozen=True)
class Importance:
    """The weights of the domains in the loss.

    Attributes:
        weights: domain -> factor on the loss of its tokens; their mean over the sampled tokens is 1 unless some were
            clipped.
        masses: domain -> its share of the objective, as the weights make it.
        clipped: domains whose weight was outside the limits.
        effective_share: (sum w)**2 / (n * sum w**2), the effective sample size over the sample size.
    """

    weights: Mapping[str, float]
    masses: Mapping[str, float]
    clipped: tuple[str, ...]
    effective_share: float


def importance(
    shares: Mapping[str, float], targets: Mapping[str, float] | None, limits: tuple[float, float]
) -> Importance:
    """Weights w_d = lambda_d / q_d, clipped, so that the objective is sum_d lambda_d * E_d[loss].

    With q_d the sampled share of a domain and lambda_d its target share, E_q[w * loss] is that objective whatever q is:
    sampling decides the variance and the compute, the target decides what is minimised. At a fixed target the variance
    is least where q is near lambda, so weights are for small corrections.

    Args:
        shares: domain -> q, of the domains that are sampled; they sum to 1.
        targets: domain -> lambda in any unit, at least of those domains; None: as sampled.
        limits: the smallest and the largest weight.
    """
    total = sum(targets[name] for name in shares) if targets else 1.0
    exact = {name: targets[name] / total / share if targets else 1.0 for name, share in shares.items()}
    weights = {name: min(max(weight, limits[0]), limits[1]) for name, weight in exact.items()}
    mean = sum(share * weights[name] for name, share in shares.items())
    square = sum(share * weights[name] ** 2 for name, share in shares.items())
    return Importance(
        weights=weights,
        masses={name: share * weights[name] / mean for name, share in shares.items()},
        clipped=tuple(name for name in shares if weights[name] != exact[name]),
        effective_share=mean**2 / square,
    )
