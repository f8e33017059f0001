"""An engine, a loader and hooks that only note what is asked of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from megacpt.engine.engine import Acceptable, DomainSums, StepResult
from megacpt.evaluate.evaluator import EvaluationInterrupted
from megacpt.observe.record import EvaluationRecord, StepRecord
from megacpt.parallel.fragments import Held
from tests.checkpoint.states import held_of

TOKENS_PER_STEP = 64
Events = list[tuple[Any, ...]]


class NotingEngine:
    """The loss of a step is the number that its batch is."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.random_numbers: list[float] = []

    def train_step(self, micro_batches: Sequence[float], learning_rate: float, acceptable: Acceptable) -> StepResult:
        self.events.append(("train", *micro_batches, learning_rate))
        self.random_numbers.append(torch.rand(()).item())
        return StepResult(
            loss=micro_batches[0],
            grad_norm=0.5,
            skipped=False,
            domain_sums=[DomainSums(3.0, 6.0, 4), DomainSums(0.0, 0.0, 0)],
        )

    def counters(self) -> dict[str, int]:
        return {"optimizer_updates": 0}

    def held(self) -> list[Held]:
        return held_of({"w": torch.zeros(3)})


class NotingLoader:
    stream = SimpleNamespace(
        counted=("law", "web"),
        history=SimpleNamespace(
            first_sample=lambda step: 8 * step, settings=lambda step: SimpleNamespace(global_rows=8)
        ),
    )

    last_wait_seconds = 0.25

    def step(self, step: int) -> list[float]:
        return [float(step)]

    def tokens(self, step: int) -> int:
        return step * TOKENS_PER_STEP

    def new_shares(self, step: int) -> dict[str, float] | None:
        return None if step else {"law": 1.0}


class NotingHook:
    def __init__(self, name: str, events: Events) -> None:
        self.name, self.events = name, events

    def before_training(self, step: int) -> None:
        self.events.append((self.name, "before", step))

    def after_step(self, record: StepRecord) -> None:
        self.events.append((self.name, "step", record.step))

    def rewind(self, step: int) -> None:
        self.events.append((self.name, "rewind", step))

    def after_training(self, step: int, stopped: bool) -> None:
        self.events.append((self.name, "after", step, stopped) if stopped else (self.name, "after", step))


class NotingEvaluator:
    def __init__(self, events: Events) -> None:
        self.events = events

    def evaluate(self, step: int, tokens: int, interrupted: Callable[[], bool]) -> EvaluationRecord:
        if interrupted():
            raise EvaluationInterrupted
        self.events.append(("evaluate", step, tokens))
        return EvaluationRecord(step, tokens, {})


class NotingSink:
    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.evaluations: list[EvaluationRecord] = []

    def write_step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def write_evaluation(self, record: EvaluationRecord) -> None:
        self.evaluations.append(record)

    def rewind(self, step: int) -> None:
        del self.steps[step:], self.evaluations[step:]

    def close(self, *, failed: bool = False) -> None:
        raise AssertionError("the sinks are closed by who opened them")


def record_of(step: int) -> StepRecord:
    """The record of a step; only its number matters."""
    return StepRecord(step, step * TOKENS_PER_STEP, 1.0, 1.0, 1e-3, 10.0, {})
