"""Random walk: mixtures to learn from, for the pilot runs that an agent is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megacpt.continual.controllers.controller import Controller, Numbers, Observation


@dataclass(frozen=True)
class RandomWalk(Controller):
    """Multiplies every share by e**(step_size * z), z a standard normal number, at every decision.

    The random trajectories of "Data Mixing Agent: Learning to Re-weight Domains for Continual Pre-training",
    arXiv:2507.15640. The numbers follow from the seed and the step, so a resumed pilot walks on as it would have.

    Attributes:
        seed: of the walk; pilots need different ones.
        step_size: standard deviation of a step, in nats of share.
    """

    seed: int
    step_size: float = 0.5

    def weights(self, observations: Sequence[Observation], planned: Numbers) -> dict[str, float]:
        now = observations[-1]
        steps = np.random.default_rng([self.seed, now.step]).standard_normal(len(planned))
        return {
            name: now.weights.get(name, planned[name]) * float(np.exp(self.step_size * step))
            for name, step in zip(sorted(planned), steps, strict=True)
        }
