"""Topic perplexity: more of what got worse since the last look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megacpt.continual.controllers.controller import Controller, Numbers, Observation


@dataclass(frozen=True)
class TopicPerplexity(Controller):
    """The topic-based mixture of Llama-3-SynE.

    With ppl_i(t) the perplexity of domain i at decision t,

        d_i = ppl_i(t) - ppl_i(t-1),    delta_i = d_i / max_j |d_j|,    r_i <- r_i * (1 + a * delta_i) / sum_j ...

    Chen et al. 2024, "Towards Effective and Efficient Continual Pre-training of Large Language Models",
    arXiv:2407.18743. They normalise d in a way and use an a that we did not find; dividing by the largest |d| and the
    default are our choices. Because perplexities are compared, a domain of high perplexity drives most of it. A slow
    drift is answered as strongly as a jump, since only the largest change of an interval sets the scale.

    Attributes:
        step_size: a, above 0 and below 1: the most that a share may gain or lose at a decision.
    """

    step_size: float = 0.2

    def weights(self, observations: Sequence[Observation], planned: Numbers) -> dict[str, float]:
        if len(observations) == 1:
            return dict(planned)
        before, now = observations[-2:]
        rises = {
            name: math.exp(now.losses[name]) - math.exp(before.losses.get(name, now.losses[name])) for name in planned
        }
        largest = max(map(abs, rises.values())) or 1.0
        return {name: now.weights.get(name, 0.0) * (1 + self.step_size * rises[name] / largest) for name in planned}
