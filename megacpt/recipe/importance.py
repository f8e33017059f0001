"""Loss weights as importance weights: what a domain shall count in the objective, over what is sampled of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from megacpt.recipe.schema import Recipe

LEAST_EFFECTIVE_SHARE = 0.7
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

    def warnings(self) -> Iterator[str]:
        """What a user should know of these weights, a sentence each."""
        for name in self.clipped:
            yield (
                f"the loss weight of {name} is clipped to {self.weights[name]:g}, so it has {self.masses[name]:.1%} of "
                "the objective: change its weight towards its target_weight"
            )
        if self.effective_share < LEAST_EFFECTIVE_SHARE:
            yield (
                f"the loss weights leave {self.effective_share:.0%} of the samples effective: sample nearer to the "
                "target weights"
            )


def importance(
    shares: Mapping[str, float], targets: Mapping[str, float], limits: tuple[float, float] = (0.2, 5.0)
) -> Importance:
    """Weights w_d = lambda_d / q_d, clipped, so that the objective is sum_d lambda_d * E_d[loss].

    With q_d the sampled share of a domain and lambda_d its target share, E_q[w * loss] is that objective whatever q is:
    sampling decides the variance and the compute, the target decides what is minimised. At a fixed target the variance
    is least where q is near lambda, so weights are for small corrections.

    Args:
        shares: domain -> q, of the domains that are sampled; they sum to 1.
        targets: domain -> lambda in any unit, of those domains and perhaps others, which do not count.
        limits: the smallest and the largest weight.
    """
    total = sum(targets[name] for name in shares)
    exact = {name: targets[name] / total / share for name, share in shares.items()}
    weights = {name: min(max(weight, limits[0]), limits[1]) for name, weight in exact.items()}
    mean = sum(share * weights[name] for name, share in shares.items())
    square = sum(share * weights[name] ** 2 for name, share in shares.items())
    return Importance(
        weights=weights,
        masses={name: share * weights[name] / mean for name, share in shares.items()},
        clipped=tuple(name for name in shares if weights[name] != exact[name]),
        effective_share=mean**2 / square,
    )


def objective(recipe: Recipe, shares: Mapping[str, float]) -> Importance:
    """The loss weights of a recipe where domains are sampled in these shares; 1 for all without target weights."""
    targets = {name: domain.target_weight for name, domain in recipe.data.domains.items()}
    stated = {name: target for name, target in targets.items() if target is not None}
    return importance(shares, stated or shares, recipe.loss.weight_limits)
