"""Constrained: learn the new domains subject to a budget of forgetting for each old one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megacpt.continual.controllers.controller import Controller, Numbers, Observation, base_losses


@dataclass(frozen=True)
class Constrained(Controller):
    """Primal-dual: minimise the loss of the new text subject to L_d <= L_d(0) + eps_d for every old domain d.

    Each old domain has a multiplier, raised while it is over its budget and lowered while it is under. The multipliers
    are the mixture, since the gradient of the Lagrangian L_new + sum_d lambda_d L_d is that of the mixed text:

        lambda_d <- clip(lambda_d + rho * (L_d - L_d(0) - eps_d), 0, lambda_max)        at every decision
        q_d = lambda_d / (1 + sum_e lambda_e),    q_new = 1 / (1 + sum_e lambda_e)

    Abstraction I of S. Sarkar, "Efficient Continual Pre-training of LLMs": replay for continual pre-training as
    constrained optimisation. It is also the Lagrangian behind the critical mixture ratio (Gu et al. 2024,
    arXiv:2407.17467), solved on the way instead of fitted before. Multipliers start at the plan's ratios, so a good
    plan is kept; an infinite budget ends replay at the first decision after training began. A domain without a budget
    keeps its planned ratio to the new text. The loss answers late to a change of the mixture, so a large rho
    overshoots. Where a stage has no new text, its plan holds.

    Attributes:
        budgets: old domain -> eps, in nats per token.
        replay: names of the old domains that can be replayed.
        step_size: rho, per nat.
        max_replay: the largest share of all replay together; it also bounds each multiplier (lambda_max).
    """

    budgets: Mapping[str, float]
    replay: tuple[str, ...]
    step_size: float = 1.0
    max_replay: float = 0.5

    def weights(self, observations: Sequence[Observation], planned: Numbers) -> dict[str, float]:
        new_share = sum(share for name, share in planned.items() if name not in self.replay)
        if not new_share:
            return dict(planned)
        ratios = {name: share / new_share for name, share in planned.items()}
        multipliers = self.multipliers(observations, ratios)
        most = self.max_replay / (1 - self.max_replay)
        scale = min(1.0, most / (sum(multipliers.values()) or 1.0))
        return ratios | {name: multiplier * scale for name, multiplier in multipliers.items()}

    def multipliers(self, observations: Sequence[Observation], start: Numbers) -> dict[str, float]:
        """The multiplier of every old domain after all observations, those of the base model included.

        Args:
            observations: as for `weights`.
            start: domain -> multiplier before the first observation.
        """
        base, highest = base_losses(observations), self.max_replay / (1 - self.max_replay)
        multipliers = {name: start[name] for name in self.replay if name in start}
        for observation in observations[1:]:
            for name in multipliers.keys() & self.budgets.keys() & observation.losses.keys():
                excess = observation.losses[name] - base[name] - self.budgets[name]
                multipliers[name] = min(max(multipliers[name] + self.step_size * excess, 0.0), highest)
        return multipliers
