"""What all controllers share: one pure function of everything seen so far.

A controller is asked at some batch boundaries, a few hundred times in a run. It gets all observations, the first of the
base model, and returns the weights that hold from here on. It keeps nothing: a run that was killed replays the
observations that its checkpoint holds and goes on exactly, and a controller can be tried on the records of a finished
run. The price is a list of some kilobytes, and a walk along it at every decision.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SMALLEST_SHARE = 2.0**-15
"""A share below this is no share: the stream can serve one sample in 2**16, and rounds what is above it exactly."""

_NEXT_TO_NOTHING = 2.0**-60
"""What a share of 0 counts as where a floor lifts it: it can then grow, where ceilings leave over what others had."""

Numbers = Mapping[str, float]
"""Domain -> a number."""


@dataclass(frozen=True)
class Observation:
    """What is known at a batch boundary.

    Attributes:
        step: steps done.
        tokens: trained so far.
        losses: held-out loss of every domain that is mixed, in nats per token; at a run's first observation also of
            those that join in a later stage.
        weights: each domain's share of the tokens up to here, as it was in force; they sum to 1.
    """

    step: int
    tokens: int
    losses: Numbers
    weights: Numbers

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Observation:
        """What `to_json` wrote."""
        return cls(stored["step"], stored["tokens"], dict(stored["losses"]), dict(stored["weights"]))


class Controller(ABC):
    """A rule for the mixture. Subclasses are frozen dataclasses of its constants."""

    @abstractmethod
    def weights(self, observations: Sequence[Observation], planned: Numbers) -> dict[str, float]:
        """The weights from here on, of the domains in `planned`, in any unit.

        Args:
            observations: one or more, oldest first; the last is the present. Losses are finite.
            planned: domain -> share that the recipe asks for at this point of the run; all above 0, sum 1.
        """

    def decide(
        self,
        observations: Sequence[Observation],
        planned: Numbers,
        floor: float = 0.0,
        ceilings: Numbers | None = None,
    ) -> dict[str, float]:
        """As `weights`, made fit for the stream: shares that sum to 1, none between 0 and what can be served.

        Args:
            floor: the least share of any domain.
            ceilings: domain -> its largest share; absent: 1.
        """
        return bounded(normalised(self.weights(observations, planned)), floor, ceilings or {})


def normalised(weights: Numbers) -> dict[str, float]:
    """Weights as shares that sum to 1."""
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def softmax(logits: Numbers) -> dict[str, float]:
    """Shares in proportion to e**logit, without overflow; a logit of -inf is a share of 0."""
    highest = max(logits.values())
    return normalised({name: math.exp(logit - highest) for name, logit in logits.items()})


def bounded(shares: Numbers, floor: float, ceilings: Numbers) -> dict[str, float]:
    """Shares within bounds: those outside are set to the bound, the others keep their proportions.

    Shares and bounds below `SMALLEST_SHARE` count as 0. A ceiling wins over the floor, and where ceilings leave less
    than 1 in all, what they leave is shared out in proportion to them.

    Raises:
        ValueError: if so many floors do not fit into 1.
    """
    if floor * len(shares) > 1:
        raise ValueError(f"{len(shares)} shares of at least {floor} are more than 1")
    floor = _servable(floor)
    if floor:
        shares = {name: max(share, _NEXT_TO_NOTHING) for name, share in shares.items()}
    else:
        shares = normalised({name: _servable(share) for name, share in shares.items()})
    highest = {name: _servable(ceilings.get(name, 1.0)) if share or floor else 0.0 for name, share in shares.items()}
    lowest = {name: min(floor, ceiling) for name, ceiling in highest.items()}
    if all(lowest[name] <= share <= highest[name] for name, share in shares.items()):
        return dict(shares)
    if math.fsum(highest.values()) <= 1:
        if not any(highest.values()):
            highest = {name: _servable(share) for name, share in shares.items()}
        return normalised(highest)

    def scaled(logarithm: float) -> dict[str, float]:
        scale = math.exp(logarithm)
        return {name: min(max(share * scale, lowest[name]), highest[name]) for name, share in shares.items()}

    low, high = -64.0, 64.0  # the sum grows with the scale
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if math.fsum(scaled(middle).values()) < 1 else (low, middle)
    return normalised(scaled(high))


def _servable(share: float) -> float:
    return share if share >= SMALLEST_SHARE else 0.0


def base_losses(observations: Sequence[Observation]) -> dict[str, float]:
    """Domain -> the first loss seen of it: the base model's, or for one that an edited recipe added its loss then."""
    losses: dict[str, float] = {}
    for observation in observations:
        losses = dict(observation.losses) | losses
    return losses
