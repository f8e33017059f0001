"""The training loop.

Everything that happens at a step besides the step itself (reporting, evaluating, checkpointing) is a `Hook`; hooks run
in the order given, on every rank. A run is a pure function of its first step number: the loader, the schedule and
dropout's random numbers all follow from the step, so resuming is starting later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from megacpt.data.loader import Loader
from megacpt.engine.engine import Engine
from megacpt.observe.log import logger
from megacpt.observe.record import DomainLoss, StepRecord
from megacpt.observe.throughput import Throughput


class Hook(Protocol):
    """Something done between steps. Collective where it uses the engine."""

    def before_training(self, step: int) -> None:
        """Called once, with the number of steps done so far."""

    def after_step(self, record: StepRecord) -> None:
        """Called after every step."""

    def after_training(self, step: int) -> None:
        """Called once, with the number of steps done in all."""


@dataclass(frozen=True)
class Trainer:
    """Trains from one step to another.

    Attributes:
        engine: computes steps.
        loader: the micro-batches of each step.
        learning_rate: tokens seen after a step -> the step's learning rate.
        hooks: what is done between steps.
        seed: of dropout.
        utilisation: tokens per second -> MFU, where the device's peak is known.
    """

    engine: Engine
    loader: Loader
    learning_rate: Callable[[int], float]
    hooks: Sequence[Hook]
    seed: int = 0
    utilisation: Callable[[float], float | None] = lambda tokens_per_second: None

    def fit(self, first_step: int, last_step: int) -> None:
        """Do the steps first_step + 1 ... last_step, where `first_step` have been done before."""
        throughput = Throughput()
        for hook in self.hooks:
            hook.before_training(first_step)
        for step in range(first_step, last_step):
            with throughput.step(self.loader.tokens(step + 1) - self.loader.tokens(step)):
                record = self.step(step)
            rate = throughput.tokens_per_second
            timed = record(rate, self.utilisation(rate))
            for hook in self.hooks:
                hook.after_step(timed)
        for hook in self.hooks:
            hook.after_training(max(first_step, last_step))

    def step(self, step: int) -> Callable[[float, float | None], StepRecord]:
        """Do step number `step` (from 0); returns its record, but for the speed, which is known only afterwards."""
        torch.manual_seed(self.seed * 1_000_003 + step)
        tokens = self.loader.tokens(step + 1)
        rate = self.learning_rate(tokens)
        result = self.engine.train_step(self.loader.step(step), rate)
        if result.skipped:
            logger().info("step %d is skipped: its gradient norm is not finite", step + 1)  # rank 0 says it for all
        domains = {
            name: DomainLoss(loss=nll / num_tokens, tokens=num_tokens)
            for name, (_, nll, num_tokens) in zip(self.loader.stream.names, result.domain_sums, strict=True)
            if num_tokens
        }
        return lambda tokens_per_second, mfu: StepRecord(
            step=step + 1,
            tokens=tokens,
            loss=result.loss,
            grad_norm=result.grad_norm,
            learning_rate=rate,
            tokens_per_second=tokens_per_second,
            domains=domains,
            mfu=mfu,
        )
