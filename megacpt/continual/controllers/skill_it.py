"""Skill-It: more of the domains that teach what is still badly known, by a graph of what helps what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megacpt.continual.controllers.controller import Controller, Numbers, Observation, softmax
from megacpt.continual.skills_graph import SkillsGraph


@dataclass(frozen=True)
class SkillIt(Controller):
    """Multiplicative weights over a skills graph.

    With A_ij how much training on i lowers the loss of j, L_j(t) the loss of j at decision t, and w the window,

        p_i = p_i(plan) * exp(eta * sum_j A_ij * sum_{t in the last w} L_j(t)) / sum ...

    Chen et al. 2023, "Skill-it! A Data-Driven Skills Framework for Understanding and Training Language Models",
    arXiv:2307.14430, algorithm 1 as their code runs it: every decision starts from the plan again, so nothing adds up
    without bound. With A = 1 (the identity) shares follow the losses; with A = 0 they stay as planned. By the authors'
    own word a graph that is nearly empty or nearly complete gains nothing.

    Attributes:
        graph: A.
        step_size: eta; 0.2 to 0.8 in the paper.
        window: w, in decisions; 3 in the paper.
    """

    graph: SkillsGraph
    step_size: float = 0.2
    window: int = 3

    def weights(self, observations: Sequence[Observation], planned: Numbers) -> dict[str, float]:
        recent = observations[-self.window :]
        summed = {name: sum(o.losses[name] for o in recent if name in o.losses) for name in planned}
        return softmax(
            {
                i: math.log(planned[i]) + self.step_size * sum(self.graph.effect(i, j) * summed[j] for j in planned)
                for i in planned
            }
        )
