"""Held-out losses from what an engine sums up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
import torch

from megacpt.data.batch import MicroBatch
from megacpt.data.held_out import HeldOut
from megacpt.engine.engine import Engine
from megacpt.evaluate.evaluator import EvaluationInterrupted, Evaluator
from megacpt.observe.record import GradientAlignment
from tests.data.memory_corpus import MemoryCorpus

SEQUENCE_LENGTH = 8
LENGTHS = [9, 5, 14, 2]
TEXT_BYTES = 120


class LabelEngine:
    """A model whose nll of a token is its id: sums are known without a model."""

    def __init__(self) -> None:
        self.seen: list[Sequence[MicroBatch]] = []

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> float:
        self.seen.append(micro_batches)
        return float(sum((batch.weights * batch.labels).sum().item() for batch in micro_batches))

    def alignment(
        self, new: Sequence[MicroBatch], old: Mapping[str, Sequence[MicroBatch]]
    ) -> dict[str, GradientAlignment]:
        """ "Cosines" that are the mean ids of both sides."""
        return {name: GradientAlignment(self.evaluate(new), (self.evaluate(texts),)) for name, texts in old.items()}


def evaluator(held_out: dict[str, HeldOut], **changes: Any) -> tuple[Evaluator, LabelEngine]:
    engine = LabelEngine()
    settings: dict[str, Any] = {"micro_rows": 2, "dp_rank": 0, "dp_size": 1} | changes
    return Evaluator(cast(Engine, engine), held_out, **settings), engine


def predicted_tokens() -> list[int]:
    """The id of every token but the first of each document."""
    tokens: list[int] = []
    start = 0
    for length in LENGTHS:
        tokens += range(start + 1, start + length)
        start += length
    return tokens


def test_the_loss_is_the_mean_over_all_predicted_tokens() -> None:
    text = HeldOut(MemoryCorpus(LENGTHS, text_bytes=TEXT_BYTES), SEQUENCE_LENGTH)
    record = evaluator({"law": text})[0].evaluate(step=3, tokens=300)
    tokens = predicted_tokens()
    assert (record.step, record.tokens) == (3, 300)
    assert record.domains["law"].tokens == len(tokens)
    assert record.domains["law"].loss == pytest.approx(sum(tokens) / len(tokens))
    assert record.domains["law"].bits_per_byte == pytest.approx(sum(tokens) / math.log(2) / TEXT_BYTES)


def test_bits_need_the_size_of_the_text() -> None:
    record = evaluator({"law": HeldOut(MemoryCorpus(LENGTHS), SEQUENCE_LENGTH)})[0].evaluate(0, 0)
    assert record.domains["law"].bits_per_byte is None


def test_domains_are_measured_apart_and_in_order() -> None:
    texts = {
        "web": HeldOut(MemoryCorpus([9], first_token=100), SEQUENCE_LENGTH),
        "law": HeldOut(MemoryCorpus([9]), SEQUENCE_LENGTH),
    }
    record = evaluator(texts)[0].evaluate(0, 0)
    assert list(record.domains) == ["web", "law"]
    assert record.domains["web"].loss == pytest.approx(record.domains["law"].loss + 100)


def test_each_data_rank_evaluates_its_own_rows() -> None:
    text = HeldOut(MemoryCorpus(LENGTHS), SEQUENCE_LENGTH)
    seen = []
    for rank in range(2):
        measuring, engine = evaluator({"law": text}, micro_rows=1, dp_rank=rank, dp_size=2)
        measuring.evaluate(0, 0)
        seen.append(list(engine.seen[0]))
    assert len(seen[0]) == len(seen[1])  # the engine's collectives pair up
    labels = torch.cat([batch.labels.flatten() for batches in seen for batch in batches])
    assert sorted(labels[labels >= 0].tolist()) == predicted_tokens()


def test_nothing_held_out() -> None:
    assert evaluator({})[0].evaluate(1, 2).domains == {}


def test_gradients_are_of_the_mean_over_all_tokens_of_a_side() -> None:
    short, long = (HeldOut(MemoryCorpus([length], first_token=100), SEQUENCE_LENGTH) for length in (3, 30))
    old = HeldOut(MemoryCorpus(LENGTHS), SEQUENCE_LENGTH)
    record = evaluator({}, aligned=([short, long], {"law": old}))[0].evaluate(0, 0)
    new_tokens = [*range(101, 103), *range(101, 130)]
    tokens = predicted_tokens()
    assert record.alignment is not None
    assert record.alignment["law"].whole == pytest.approx(sum(new_tokens) / len(new_tokens))
    assert record.alignment["law"].layers == pytest.approx((sum(tokens) / len(tokens),))


def test_an_evaluation_is_left_before_its_gradients() -> None:
    text = HeldOut(MemoryCorpus(LENGTHS), SEQUENCE_LENGTH)
    answers = iter([False, True])
    with pytest.raises(EvaluationInterrupted):
        evaluator({"law": text}, aligned=([text], {"law": text}))[0].evaluate(0, 0, lambda: next(answers))
