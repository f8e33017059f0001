"""The training loop.

Everything that happens at a step besides the step itself (reporting, evaluating, checkpointing) is a `Hook`; hooks run
in the order given, on every rank. A run is a pure function of its first step number: the loader, the schedule and
dropout's random numbers all follow from the step, so resuming is starting later, and rolling back is starting earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from megacpt.data.loader import Loader
from megacpt.data.parts import domain_of
from megacpt.engine.engine import DomainSums, Engine, StepResult
from megacpt.observe.record import DomainLoss, StepRecord
from megacpt.observe.throughput import Throughput
from megacpt.trainer.guard import Guard, Rollback
from megacpt.trainer.stopping import Stopping
from megacpt.trainer.watchdog import SLOW


class Hook(Protocol):
    """Something done between steps. Collective where it uses the engine."""

    def before_training(self, step: int) -> None:
        """Called once, with the number of steps done so far."""

    def after_step(self, record: StepRecord) -> None:
        """Called after every step."""

    def rewind(self, step: int) -> None:
        """Called when the run was taken back to the state after `step` steps."""

    def after_training(self, step: int, stopped: bool) -> None:
        """Called once, with the number of steps done in all, and whether the run was stopped before its last one."""


@dataclass(frozen=True)
class Trainer:
    """Trains from one step to another.

    Attributes:
        engine: computes steps.
        loader: the micro-batches of each step.
        learning_rate: tokens seen after a step -> the step's learning rate.
        hooks: what is done between steps.
        guard: judges every step.
        stopping: whether to stop early.
        note: told what is done now, and how many times as long as a step it may take.
        roll_back: takes engine and loader back; returns the number of steps done there, and the run's last step.
        seed: of dropout.
        utilisation: tokens per second -> MFU, where the device's peak is known.
    """

    engine: Engine
    loader: Loader
    learning_rate: Callable[[int], float]
    hooks: Sequence[Hook]
    guard: Guard
    stopping: Stopping
    roll_back: Callable[[Rollback], tuple[int, int]]
    note: Callable[[str, float], None]
    seed: int = 0
    utilisation: Callable[[float], float | None] = lambda tokens_per_second: None

    def fit(self, first_step: int, last_step: int) -> tuple[int, bool]:
        """Do the steps first_step + 1 ... last_step, where `first_step` have been done before.

        Returns:
            The steps done in all, and whether there are none left: the run was not told to stop before.
        """
        throughput = Throughput()
        step = first_step
        for hook in self._noted(step):
            hook.before_training(step)
        self.stopping.now()
        while step < last_step and not self.stopping.agreed:
            # The first step allocates and compiles.
            self.note(f"step {step + 1}", SLOW if step == first_step else 1.0)
            self.stopping.begin_step()
            with throughput.step(self.loader.tokens(step + 1) - self.loader.tokens(step)):
                result, rate = self.step(step)
            self.stopping.end_step()
            if rollback := self.guard.after_step(step + 1, result):
                self.note("roll back", SLOW)
                step, last_step = self.roll_back(rollback)
                for hook in self._noted(step):
                    hook.rewind(step)
                continue
            record = self.record(step, result, rate, throughput.tokens_per_second)
            step += 1
            for hook in self._noted(step):
                hook.after_step(record)
        for hook in self._noted(step):
            hook.after_training(step, stopped=step < last_step)
        return step, step >= last_step

    def _noted(self, step: int) -> Iterator[Hook]:
        """The hooks, each noted while it works."""
        for hook in self.hooks:
            self.note(f"{type(hook).__name__} after step {step}", SLOW)
            yield hook

    def step(self, step: int) -> tuple[StepResult, float]:
        """Do step number `step` (from 0); returns what it gave, and its learning rate."""
        torch.manual_seed(self.seed * 1_000_003 + step)
        rate = self.learning_rate(self.loader.tokens(step + 1))
        return self.engine.train_step(self.loader.step(step), rate, self.guard.is_acceptable), rate

    def record(self, step: int, result: StepResult, rate: float, tokens_per_second: float) -> StepRecord:
        """What is reported of step number `step` (from 0)."""
        counted = zip(self.loader.stream.counted, result.domain_sums, strict=True)
        found = {name: sums for name, sums in counted if sums.tokens}
        of_domains: dict[str, list[DomainSums]] = {}
        for name, sums in found.items():
            of_domains.setdefault(domain_of(name), []).append(sums)
        return StepRecord(
            step=step + 1,
            tokens=self.loader.tokens(step + 1),
            loss=result.loss,
            grad_norm=result.grad_norm,
            learning_rate=rate,
            tokens_per_second=tokens_per_second,
            domains={name: _mean(*parts) for name, parts in of_domains.items()},
            data_wait_seconds=round(self.loader.last_wait_seconds, 6),
            mfu=self.utilisation(tokens_per_second),
            skipped=result.skipped or None,
            mixture=self.loader.new_shares(step),
            parts={name: _mean(sums) for name, sums in found.items() if name != domain_of(name)} or None,
        )


def _mean(*counted: DomainSums) -> DomainLoss:
    tokens = sum(each.tokens for each in counted)
    divergences = [each.divergence for each in counted if each.divergence is not None]
    return DomainLoss(
        loss=sum(each.nll for each in counted) / tokens,
        tokens=tokens,
        divergence=sum(divergences) / tokens if divergences else None,
    )
