"""A simulated learner: losses of domains that rise and fall with the shares of the text, in closed form and no time.

Domain i has a skill k_i and the loss floor + amplitude_i * e**-k_i. In an interval with shares w

    k_i <- k_i + rate * sum_j w_j * teaches[j][i] - forgets_i * w_new * k_i

so text raises what it teaches, and new text wears away old skills.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from megacpt.continual.controllers.controller import Controller, Observation

FLOOR_NATS = 1.0


@dataclass
class Learner:
    """The state of the simulation; `forgets` names the old domains, all others are new."""

    skills: dict[str, float]
    forgets: Mapping[str, float] = field(default_factory=dict)
    teaches: Mapping[tuple[str, str], float] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    rate: float = 0.2
    amplitude: float = 2.0

    def losses(self) -> dict[str, float]:
        return {name: FLOOR_NATS + self.amplitude * math.exp(-skill) for name, skill in self.skills.items()}

    def train(self, shares: Mapping[str, float]) -> None:
        new_share = sum(share for name, share in shares.items() if name not in self.forgets)
        gains = {}
        for name in self.skills:
            taught = sum(share * self.teaches.get((by, name), float(by == name)) for by, share in shares.items())
            if name in self.needs:
                taught *= min(1.0, self.skills[self.needs[name]])
            gains[name] = self.rate * taught - self.forgets.get(name, 0.0) * new_share * self.skills[name]
        for name, gain in gains.items():
            self.skills[name] += gain


def simulate(
    learner: Learner, controller: Controller | None, planned: Mapping[str, float], num_decisions: int = 60
) -> list[Observation]:
    """A run under a controller, or under the plan; all observations, the last after the last interval."""
    shares, observations = dict(planned), []
    for step in range(num_decisions + 1):
        observations.append(Observation(step, step * 100, learner.losses(), shares))
        if controller is not None:
            shares = controller.decide(observations, planned)
        learner.train(shares)
    return observations


def observe(*losses: Mapping[str, float], weights: Mapping[str, float]) -> list[Observation]:
    """Observations with these losses, all under the same weights."""
    return [Observation(step, step * 100, loss, weights) for step, loss in enumerate(losses)]
