"""DDK: more of the domains in which the model falls behind a reference, by the ratio of their perplexities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from megacpt.continual.controllers.controller import Controller, Numbers, Observation, base_losses, normalised, softmax


@dataclass(frozen=True)
class DDK(Controller):
    """Domain-knowledge-guided sampling, without its distillation loss.

    With l_i the perplexity of domain i, l*_i that of the reference, p_i the planned share of the domain and alpha the
    smoothing,

        first decision:  r_i = p_i * exp(l_i / l*_i) / sum_j p_j * exp(l_j / l*_j)
        later:           r_i <- alpha * r_i * exp(l_i / l*_i) / sum_j r_j * exp(l_j / l*_j) + (1 - alpha) * p_i

    Liu et al. 2024, "DDK: Distilling Domain Knowledge for Efficient Large Language Models", arXiv:2407.16154, there
    with p_i = 1/N: planned weights that are equal give the paper's rule. Their reference is a teacher. Without one it
    is the base model: the ratio then measures forgetting, and what is being learned falls back towards (1 - alpha) of
    its plan. The paper updates every 1000 steps of 30,000; more often was worse.

    Attributes:
        smoothing: alpha, from 0 (always the plan) to 1; the paper's is 0.5.
        reference: domain -> the reference's loss in nats per token; domains not named have the base model's.
    """

    smoothing: float = 0.5
    reference: Mapping[str, float] = field(default_factory=dict)

    def weights(self, observations: Sequence[Observation], planned: Numbers) -> dict[str, float]:
        now, reference = observations[-1], base_losses(observations) | dict(self.reference)
        is_first = len(observations) == 1
        before = planned if is_first else now.weights
        pulls = {name: math.exp(now.losses[name] - reference[name]) for name in planned}
        fresh = softmax({name: _log(before.get(name, 0.0)) + pull for name, pull in pulls.items()})
        smoothing = 1.0 if is_first else self.smoothing
        return normalised({name: smoothing * fresh[name] + (1 - smoothing) * planned[name] for name in planned})


def _log(share: float) -> float:
    return math.log(share) if share else -math.inf
