"""The loop: which steps, in which order with the hooks, at which rates, and what a record says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from megacpt.data.loader import Loader
from megacpt.engine.engine import Acceptable, DomainSums, StepResult
from megacpt.observe.events import Events
from megacpt.observe.record import DomainLoss
from megacpt.parallel.agreement import Agreement
from megacpt.trainer.guard import Guard, GuardSettings, Rollback
from megacpt.trainer.loop import Trainer
from megacpt.trainer.stopping import Stopping
from tests.trainer.records import TOKENS_PER_STEP, NotingEngine, NotingHook, NotingLoader, NotingSink
from tests.trainer.records import Events as Noted


def trainer(events: Noted, **settings: Any) -> Trainer:
    guard = Guard(GuardSettings("rollback", 8, 8.0, 1, 0, 3, 1), Events(), cast(Loader, NotingLoader()))

    def roll_back(wanted: Rollback) -> tuple[int, int]:
        events.append(("roll back", wanted))
        return 1, 3

    defaults: dict[str, Any] = {
        "engine": NotingEngine(events),
        "loader": NotingLoader(),
        "learning_rate": float,
        "hooks": [],
        "guard": guard,
        "stopping": Stopping(Agreement(1)),
        "note": lambda activity, patience: None,
        "roll_back": roll_back,
    }
    return Trainer(**defaults | settings)


def test_hooks_run_in_order_around_every_step() -> None:
    events: Noted = []
    trainer(events, hooks=[NotingHook("first", events), NotingHook("second", events)]).fit(2, 4)
    assert events == [
        ("first", "before", 2),
        ("second", "before", 2),
        ("train", 2.0, 192.0),
        ("first", "step", 3),
        ("second", "step", 3),
        ("train", 3.0, 256.0),
        ("first", "step", 4),
        ("second", "step", 4),
        ("first", "after", 4),
        ("second", "after", 4),
    ]


@pytest.mark.parametrize("first, last", [(0, 0), (5, 5), (5, 3)])
def test_nothing_left_to_do(first: int, last: int) -> None:
    events: Noted = []
    trainer(events, hooks=[NotingHook("hook", events)]).fit(first, last)
    assert events == [("hook", "before", first), ("hook", "after", first)]


def test_the_rate_is_that_of_the_tokens_after_the_step() -> None:
    events: Noted = []
    trainer(events, learning_rate=lambda tokens: 1e-6 * tokens).fit(0, 3)
    assert [rate for _, _, rate in events] == pytest.approx([1e-6 * TOKENS_PER_STEP * done for done in (1, 2, 3)])


def test_a_record_says_what_happened() -> None:
    sink = NotingSink()

    class Keep(NotingHook):
        def after_step(self, record: Any) -> None:
            sink.write_step(record)

    trainer([], hooks=[Keep("keep", [])], utilisation=lambda rate: 0.25 if rate > 0 else None).fit(6, 8)
    first, second = sink.steps
    assert (first.step, first.tokens, second.step, second.tokens) == (7, 448, 8, 512)
    assert (second.loss, second.grad_norm, second.learning_rate, second.mfu) == (7.0, 0.5, 512.0, 0.25)
    assert second.tokens_per_second > 0
    # A domain without tokens in the step has no loss, rather than a loss of zero.
    assert second.domains == {"law": DomainLoss(loss=1.5, tokens=4)}


def test_parts_add_up_to_their_domain() -> None:
    class InParts(NotingEngine):
        def train_step(self, *step: Any) -> StepResult:
            nothing, web = DomainSums(0.0, 0.0, 0, 0.0), DomainSums(9.0, 8.0, 2)
            law = [DomainSums(1.0, 1.0, 1, 2.0), nothing, DomainSums(3.0, 6.0, 3, 4.0)]
            return replace(super().train_step(*step), domain_sums=[nothing, web, *law])

    loader = NotingLoader()
    loader.stream = SimpleNamespace(**vars(loader.stream) | {"counted": ("law", "web", "law/a", "law/b", "law/c")})
    done = trainer([], loader=loader)
    record = done.record(3, InParts([]).train_step([3.0], 1.0, lambda loss, norm: True), 1.0, 1.0)
    assert record.parts == {"law/a": DomainLoss(1.0, 1, 2.0), "law/c": DomainLoss(2.0, 3, 4 / 3)}
    assert record.domains == {"web": DomainLoss(4.0, 2), "law": DomainLoss(7 / 4, 4, 6 / 4)}


def test_random_numbers_follow_from_seed_and_step() -> None:
    def numbers(first: int, last: int, seed: int) -> list[float]:
        engine = NotingEngine([])
        torch.rand(3)  # whatever was drawn before
        replace(trainer([], seed=seed), engine=cast(Any, engine)).fit(first, last)
        return engine.random_numbers

    whole = numbers(0, 6, seed=0)
    assert len(set(whole)) == 6
    assert numbers(0, 6, seed=0) == whole
    assert numbers(4, 6, seed=0) == whole[4:]
    assert not set(numbers(0, 6, seed=1)) & set(whole)


def test_a_run_told_to_stop_says_so_to_its_hooks() -> None:
    events: Noted = []
    signals = iter([False, False, True])
    stopping = Stopping(Agreement(1), signalled=lambda: next(signals))
    assert trainer(events, hooks=[NotingHook("hook", events)], stopping=stopping).fit(0, 5) == (2, False)
    assert events[-1] == ("hook", "after", 2, True)


def test_a_run_told_to_stop_before_its_first_step_does_none() -> None:
    events: Noted = []
    stopping = Stopping(Agreement(1), signalled=lambda: True)
    assert trainer(events, hooks=[NotingHook("hook", events)], stopping=stopping).fit(3, 5) == (3, False)
    assert events == [("hook", "before", 3), ("hook", "after", 3, True)]


def test_after_a_rollback_the_steps_are_done_again() -> None:
    events: Noted = []

    class OnceBad(NotingEngine):
        def train_step(
            self, micro_batches: Sequence[float], learning_rate: float, acceptable: Acceptable
        ) -> StepResult:
            result = super().train_step(micro_batches, learning_rate, acceptable)
            is_bad = micro_batches == [2.0] and not any(event[0] == "roll back" for event in events)
            return replace(result, loss=math.nan) if is_bad else result

    # Four steps to do; going back, the run learns that it has three.
    assert trainer(events, engine=OnceBad(events), hooks=[NotingHook("hook", events)]).fit(0, 4) == (3, True)
    assert [event[1] for event in events if event[0] == "train"] == [0.0, 1.0, 2.0, 1.0, 2.0]
    assert ("roll back", Rollback(3, 3, 3)) in events
    assert [event[2] for event in events if event[:2] == ("hook", "step")] == [1, 2, 2, 3]
    assert ("hook", "rewind", 1) in events
    assert events[-1] == ("hook", "after", 3)
