"""Steering the mixture: at batch boundaries a controller looks at the held-out losses and sets the shares.

Rank 0 decides, and all ranks get its numbers: a share that differed in its last bit between machines would let ranks
read different samples. What was observed is kept in the checkpoint, so a resumed run decides as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from megacpt.continual.controllers.controller import Controller, Numbers, Observation
from megacpt.data.loader import Loader
from megacpt.observe.log import logger
from megacpt.observe.record import EvaluationRecord


class Steering:
    """Called with every evaluation, on every rank; changes the mixture at those that are decisions.

    Args:
        controller: decides.
        loader: gets the shares, from the next step on.
        every_steps: a decision is made at multiples of this, the start of the run among them.
        floor: the least share of a domain.
        broadcast: rank 0's numbers; every rank hands in as many.
        ceilings: steps done -> domain -> the largest share that its text allows; absent: 1.
        observations: those before the first step, oldest first.
    """

    def __init__(
        self,
        controller: Controller,
        loader: Loader,
        *,
        every_steps: int,
        floor: float,
        broadcast: Callable[[Sequence[float]], list[float]],
        ceilings: Callable[[int], Numbers] = lambda step: {},
        observations: Sequence[Observation] = (),
    ) -> None:
        self.controller = controller
        self.loader = loader
        self.every_steps, self.floor = every_steps, floor
        self.broadcast, self.ceilings = broadcast, ceilings
        self._observations = list(observations)

    def __call__(self, record: EvaluationRecord) -> None:
        """Decide, if it is time, and once: a resume at step 0 evaluates again.

        Losses that are not finite change nothing and are not remembered.
        """
        step, history = record.step, self.loader.stream.history
        if step % self.every_steps or step in (observation.step for observation in self._observations):
            return
        planned, in_force = history.planned_shares(step), history.shares(step)
        names = list(planned)
        if not self._observations:  # what joins in a later stage is compared with the base model too
            names = list(dict.fromkeys([*names, *(name for stage in history.plan for name in stage.settings.weights)]))
        losses = dict(zip(names, self.broadcast([record.domains[name].loss for name in names]), strict=True))
        if not all(map(math.isfinite, losses.values())):
            logger().warning("step %d: the mixture stays, for a held-out loss is not finite", step)
            return
        self._observations.append(Observation(step, record.tokens, losses, in_force))
        self._decide()

    def rewind(self, step: int) -> None:
        """The run was taken back to `step`, and its data's history to what it was there.

        What was observed later is forgotten. A decision of `step` itself, which a checkpoint written before the
        evaluation lacks, is taken again.
        """
        self._observations = self._until(step)
        if self._observations and self._observations[-1].step == step:
            self._decide()

    def _decide(self) -> None:
        """Set the shares that follow from the observations, from the step of the last one on."""
        step, history = self._observations[-1].step, self.loader.stream.history
        planned = history.planned_shares(step)
        decided = self.controller.decide(self._observations, planned, self.floor, self.ceilings(step))
        shares = dict(zip(planned, self.broadcast([decided[name] for name in planned]), strict=True))
        if shares != history.shares(step):
            self.loader.set_weights(step, shares)
            logger().info("mixture after step %d: %s", step, ", ".join(f"{k} {v:.1%}" for k, v in shares.items()))

    def state(self, step: int) -> list[dict[str, Any]]:
        """What a checkpoint of a step keeps."""
        return [observation.to_json() for observation in self._until(step)]

    def _until(self, step: int) -> list[Observation]:
        return [observation for observation in self._observations if observation.step <= step]
