"""The loop: which steps, in which order with the hooks, at which rates, and what a record says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from megacpt.data.loader import Loader
from megacpt.engine.engine import StepResult
from megacpt.observe.record import DomainLoss
from megacpt.trainer.loop import Trainer
from tests.trainer.records import TOKENS_PER_STEP, Events, NotingEngine, NotingHook, NotingLoader, NotingSink


def trainer(events: Events, **settings: Any) -> Trainer:
    return Trainer(
        engine=cast(Any, NotingEngine(events)),
        loader=cast(Loader, NotingLoader()),
        learning_rate=settings.pop("learning_rate", float),
        **{"hooks": [], **settings},
    )


def test_hooks_run_in_order_around_every_step() -> None:
    events: Events = []
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
    events: Events = []
    trainer(events, hooks=[NotingHook("hook", events)]).fit(first, last)
    assert events == [("hook", "before", first), ("hook", "after", first)]


def test_the_rate_is_that_of_the_tokens_after_the_step() -> None:
    events: Events = []
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


def test_random_numbers_follow_from_seed_and_step() -> None:
    def numbers(first: int, last: int, seed: int) -> list[float]:
        engine = NotingEngine([])
        torch.rand(3)  # whatever was drawn before
        Trainer(cast(Any, engine), cast(Loader, NotingLoader()), float, [], seed=seed).fit(first, last)
        return engine.random_numbers

    whole = numbers(0, 6, seed=0)
    assert len(set(whole)) == 6
    assert numbers(0, 6, seed=0) == whole
    assert numbers(4, 6, seed=0) == whole[4:]
    assert not set(numbers(0, 6, seed=1)) & set(whole)


def test_a_skipped_step_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    class Skipping(NotingEngine):
        def train_step(self, micro_batches: Sequence[float], learning_rate: float) -> StepResult:
            return replace(super().train_step(micro_batches, learning_rate), skipped=micro_batches[0] == 4.0)

    Trainer(cast(Any, Skipping([])), cast(Loader, NotingLoader()), float, []).fit(3, 6)
    assert capsys.readouterr().err.splitlines() == ["step 5 is skipped: its gradient norm is not finite"]
