"""Prioritised replay: the replay goes where most has been forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megacpt.continual.controllers.controller import Controller, Numbers, Observation, base_losses, normalised


@dataclass(frozen=True)
class Prioritised(Controller):
    """Shares the planned replay out by the loss increase of the replay domains; new domains keep their plan.

    With R the planned share of all replay, p_d that of domain d, and L_d(0) the base model's loss,

        q_d = R * ((1 - kappa) * max(0, L_d - L_d(0))**tau / sum_e max(0, L_e - L_e(0))**tau + kappa * p_d / R)

    and the plan where nothing is forgotten. After the adaptive feedback of Wei et al. 2023, "Online Prototype Learning
    for Online Continual Learning", arXiv:2308.00301, which samples confused classes more often; for domains of text and
    their losses it is our translation.

    Attributes:
        replay: names of the replay domains.
        exponent: tau; 0 treats all that was forgotten alike, large ones go for the worst only.
        kept_share: kappa, the part of the replay that stays as planned, so that no domain is left alone.
    """

    replay: tuple[str, ...]
    exponent: float = 1.0
    kept_share: float = 0.2

    def weights(self, observations: Sequence[Observation], planned: Numbers) -> dict[str, float]:
        base, now = base_losses(observations), observations[-1].losses
        replay = [name for name in self.replay if name in planned]
        rises = {name: now[name] - base[name] for name in replay if now[name] > base[name]}
        if not rises:
            return dict(planned)
        largest = max(rises.values())  # small rises to a large power would all be 0
        priorities = normalised({name: (rise / largest) ** self.exponent for name, rise in rises.items()})
        total = sum(planned[name] for name in replay)
        return dict(planned) | {
            name: (1 - self.kept_share) * total * priorities.get(name, 0.0) + self.kept_share * planned[name]
            for name in replay
        }
