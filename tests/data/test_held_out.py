from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacpt.data.batch import IGNORE_INDEX
from megacpt.data.held_out import HeldOut
from megacpt.errors import DataError
from tests.data.memory_corpus import MemoryCorpus

document_lengths = st.lists(st.integers(0, 30), min_size=1).filter(lambda lengths: sum(lengths) >= 2)


def labels_of(held_out: HeldOut, micro_rows: int = 1, dp_size: int = 1) -> list[int]:
    """All labels that all ranks predict."""
    return [
        label
        for rank in range(dp_size)
        for batch in held_out.batches(micro_rows, rank, dp_size)
        for label in batch.labels[batch.labels != IGNORE_INDEX].tolist()
    ]


@given(
    lengths=document_lengths,
    sequence_length=st.integers(1, 40),
    micro_rows=st.integers(1, 4),
    dp_size=st.integers(1, 4),
    document_mask=st.booleans(),
)
def test_every_token_is_predicted_exactly_once(
    lengths: list[int], sequence_length: int, micro_rows: int, dp_size: int, document_mask: bool
) -> None:
    corpus = MemoryCorpus(lengths, first_token=1)
    held_out = HeldOut(corpus, sequence_length, document_mask=document_mask)
    unpredictable = corpus.starts + 1 if document_mask else np.array([1])
    assert sorted(labels_of(held_out, micro_rows, dp_size)) == np.setdiff1d(corpus.tokens, unpredictable).tolist()
    assert held_out.num_tokens == len(corpus.tokens) - len(unpredictable)


@given(lengths=document_lengths, micro_rows=st.integers(1, 4), dp_size=st.integers(1, 4))
def test_ranks_have_equally_many_batches_of_full_size(lengths: list[int], micro_rows: int, dp_size: int) -> None:
    held_out = HeldOut(MemoryCorpus(lengths), sequence_length=8, domain=3)
    ranks = [held_out.batches(micro_rows, rank, dp_size) for rank in range(dp_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert (len(ranks[0]) - 1) * micro_rows * dp_size < len(held_out.rows) <= len(ranks[0]) * micro_rows * dp_size
    for batch in [batch for batches in ranks for batch in batches]:
        assert batch.input_ids.shape == (micro_rows, 8)
        assert (batch.domains == 3).all()
        assert ((batch.labels != IGNORE_INDEX) == (batch.weights == 1)).all()
        assert ((batch.labels == IGNORE_INDEX) == (batch.weights == 0)).all()


def test_batches_are_a_sequence() -> None:
    batches = HeldOut(MemoryCorpus([50]), sequence_length=8).batches(micro_rows=2)
    assert len(batches) == 4
    assert batches[-1].input_ids[0, 0] == 48 and len(batches[1:3]) == 2
    assert [batch.input_ids[0, 0].item() for batch in batches] == [0, 16, 32, 48]


@given(max_tokens=st.integers(1, 300))
def test_a_part_is_spread_over_the_whole(max_tokens: int) -> None:
    corpus = MemoryCorpus([200], text_bytes=1000)
    held_out = HeldOut(corpus, sequence_length=10, max_tokens=max_tokens)
    labels = labels_of(held_out)
    assert len(labels) == len(set(labels)) == held_out.num_tokens <= max(10, max_tokens)
    if max_tokens < 200:
        assert len(held_out.rows) == max(1, max_tokens // 10)
        assert np.ptp(np.diff([*held_out.rows, 20])) <= 1, "the rows are not at equal distances"
    else:
        assert held_out.num_tokens == 199
    assert held_out.num_bytes == pytest.approx(1000 * held_out.num_tokens / 199)


def test_bytes_are_those_of_the_text_where_all_of_it_is_predicted() -> None:
    assert HeldOut(MemoryCorpus([20, 30], text_bytes=123), sequence_length=8).num_bytes == 123
    assert HeldOut(MemoryCorpus([20, 30]), sequence_length=8).num_bytes is None


def test_nothing_to_predict_is_refused() -> None:
    with pytest.raises(DataError, match="two tokens or more"):
        HeldOut(MemoryCorpus([1]), sequence_length=8)
