from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacpt.data.batch import IGNORE_INDEX, collate
from megacpt.data.mixture import Mixture
from megacpt.data.stream import Location, Stream
from megacpt.errors import DataError
from tests.data.memory_corpus import MemoryCorpus, UnreadableCorpus

S = 8  # sequence length


def stream_of(weights: dict[str, float], num_rows: dict[str, int], seed: int = 0) -> Stream:
    """A stream whose domains have the given numbers of rows, in documents of five tokens."""
    corpora = {
        name: MemoryCorpus([5] * (num_rows[name] * S // 5) + [1 + num_rows[name] * S % 5], first_token=1000 * i)
        for i, name in enumerate(num_rows)
    }
    return Stream(corpora, Mixture(weights, seed), S, seed)


def of_domain(stream: Stream, name: str, num_samples: int) -> Location:
    location = stream.locate(np.arange(num_samples))
    mine = location.domain == stream.names.index(name)
    return Location(*(values[mine] for values in location))


@given(num_rows=st.integers(1, 40), weight=st.integers(1, 5), seed=st.integers(0, 1000))
def test_every_row_comes_once_an_epoch(num_rows: int, weight: int, seed: int) -> None:
    stream = stream_of({"a": weight, "b": 2}, {"a": num_rows, "b": 7}, seed)
    location = of_domain(stream, "a", num_samples=300)
    num_epochs = len(location.row) // num_rows
    assert num_epochs >= 2
    for epoch, rows in enumerate(location.row[: num_epochs * num_rows].reshape(num_epochs, num_rows)):
        assert sorted(rows) == list(range(num_rows))
        assert (location.epoch[epoch * num_rows : (epoch + 1) * num_rows] == epoch).all()


def test_every_epoch_domain_and_seed_has_its_own_order() -> None:
    def orders(seed: int) -> list[list[int]]:
        stream = stream_of({"a": 1, "b": 1}, {"a": 50, "b": 50}, seed)
        rows = [of_domain(stream, name, 200).row.tolist() for name in "ab"]
        return [rows[0][:50], rows[0][50:], rows[1][:50], rows[1][50:]]

    all_orders = orders(seed=0) + orders(seed=1)
    assert len(set(map(tuple, all_orders))) == len(all_orders)


def test_a_domain_that_joins_moves_no_row_of_another() -> None:
    alone = stream_of({"a": 1}, {"a": 30})
    together = stream_of({"new": 2, "a": 1}, {"new": 9, "a": 30})
    rows = of_domain(together, "a", 200).row
    assert rows.tolist() == alone.locate(np.arange(len(rows))).row.tolist()


@given(change_at=st.integers(0, 200), leaves=st.booleans(), seed=st.integers(0, 100))
def test_a_change_of_the_mixture_repeats_and_skips_nothing(change_at: int, leaves: bool, seed: int) -> None:
    before = stream_of({"a": 3, "b": 1}, {"a": 40, "b": 25, "c": 10}, seed)
    after = before.with_mixture(before.mixture.append(change_at, {"a": 1, "c": 2} | ({} if leaves else {"b": 5})))
    assert np.array_equal(after.locate(np.arange(change_at)), before.locate(np.arange(change_at)))
    for name in after.names:
        location = of_domain(after, name, num_samples=400)
        num_rows = int(after.num_rows[after.names.index(name)])
        assert location.ordinal.tolist() == list(range(len(location.ordinal)))
        for epoch in range(len(location.row) // num_rows):
            assert sorted(location.row[location.epoch == epoch]) == list(range(num_rows))


@given(samples=st.lists(st.integers(0, 500), max_size=30), shape=st.sampled_from([(-1,), (1, -1), (-1, 1)]))
def test_a_sample_does_not_depend_on_what_else_is_asked(samples: list[int], shape: tuple[int, ...]) -> None:
    stream = stream_of({"a": 3, "b": 1}, {"a": 40, "b": 25})
    asked = np.array(samples, dtype=np.int64).reshape(shape)
    for of_all, of_some in zip(stream.locate(np.arange(501)), stream.locate(asked), strict=True):
        assert np.array_equal(of_all[asked], of_some)


def test_rows_tile_the_corpus_and_share_the_token_at_their_border() -> None:
    corpus = MemoryCorpus([3, 5, 1, 0, 11, 4])  # 24 tokens: documents start at 0, 3, 8, 9, 20
    stream = Stream({"a": corpus}, Mixture({"a": 1}), sequence_length=S)
    assert stream.num_rows.tolist() == [2]  # 23 tokens can be predicted; the last 7 are less than a row
    first, second = stream.row(0, 0), stream.row(0, 1)
    assert first.tokens.tolist() == list(range(0, 9)) and second.tokens.tolist() == list(range(8, 17))
    assert first.document_starts.tolist() == [0, 3, 8] and second.document_starts.tolist() == [0, 1]
    assert first.num_tokens == second.num_tokens == S + 1


def test_a_corpus_of_exactly_one_row_is_enough() -> None:
    stream = Stream({"a": MemoryCorpus([S + 1])}, Mixture({"a": 1}), S)
    assert stream.locate([0, 1, 2]).row.tolist() == [0, 0, 0]
    assert stream.locate([0, 1, 2]).epoch.tolist() == [0, 1, 2]


@given(lengths=st.lists(st.integers(0, 20), min_size=1).filter(lambda lengths: sum(lengths) > S))
def test_labels_are_counted_without_reading_tokens(lengths: list[int]) -> None:
    corpus, mixture = MemoryCorpus(lengths), Mixture({"a": 1})
    stream = Stream({"a": corpus}, mixture, S)
    location = stream.locate(np.arange(stream.num_rows[0]))
    batch = collate([stream.row(0, int(row)) for row in location.row], location.domain, np.ones(len(location.row)))
    blind = Stream({"a": UnreadableCorpus(lengths)}, mixture, S)
    assert blind.num_labels(location).tolist() == (batch.labels != IGNORE_INDEX).sum(dim=1).tolist()
    assert (blind.num_labels(location, document_mask=False) == S).all()


def test_the_report_adds_up() -> None:
    stream = stream_of({"a": 3, "b": 1}, {"a": 40, "b": 25})
    a, b = stream.report(200)
    assert (a.name, a.target_share, a.share, a.tokens) == ("a", 0.75, 0.75, 150 * S)
    assert (a.unique_tokens, a.epochs, a.repetitions) == (40 * S, 3.75, 4)
    assert (b.unique_tokens, b.epochs, b.repetitions) == (25 * S, 2.0, 2)
    assert [domain.unique_tokens for domain in stream.report(8)] == [6 * S, 2 * S]


def test_domains_that_are_read_too_often_are_named() -> None:
    stream = stream_of({"a": 3, "b": 1}, {"a": 40, "b": 25})
    assert stream.epoch_excesses(200, {"a": 3.75, "b": 2}) == []
    assert stream.epoch_excesses(200, {"b": 4}) == []
    (excess,) = stream.epoch_excesses(200, {"a": 3, "b": 4})
    assert str(excess) == "domain a is read 3.75 times, more than max_epochs 3"


def test_the_identity_survives_json_and_says_what_changed() -> None:
    stream = stream_of({"a": 3, "b": 1}, {"a": 40, "b": 25})
    stored = json.loads(json.dumps(stream.identity()))
    assert stream.changes_since(stored) == []
    joined = stream_of({"a": 3, "b": 1, "c": 1}, {"a": 40, "b": 25, "c": 3})
    assert joined.changes_since(stored) == [], "domains may join"

    grown = MemoryCorpus([5] * 65 + [4])
    grown.fingerprint = "abc"
    changed = Stream({"a": grown, "c": MemoryCorpus([9])}, Mixture({"a": 3, "c": 1}), S, seed=5)
    assert changed.changes_since(stored) == [
        "seed: 0 before, 5 now",
        "tokens of domain a: 321 before, 329 now",
        "documents of domain a: 65 before, 66 now",
        "tokenizer of domain a: None before, abc now",
        "tokens of domain b: 201 before, None now",
        "documents of domain b: 41 before, None now",
    ]


def test_the_fingerprint_covers_sizes_seed_length_and_mixture() -> None:
    def fingerprint(num_rows: int = 40, seed: int = 0, length: int = S, weight: float = 3) -> str:
        corpora = {"a": MemoryCorpus([num_rows * S + 1]), "b": MemoryCorpus([100])}
        return Stream(corpora, Mixture({"a": weight, "b": 1}), length, seed).fingerprint

    assert fingerprint() == fingerprint()
    others = [fingerprint(num_rows=41), fingerprint(seed=1), fingerprint(length=S + 1), fingerprint(weight=2)]
    assert len({fingerprint(), *others}) == 5


def test_a_domain_smaller_than_a_row_is_refused() -> None:
    with pytest.raises(DataError, match=r"domain b: .* single row \(found 8 tokens, expected .* 9 or more\)"):
        Stream({"a": MemoryCorpus([9]), "b": MemoryCorpus([8])}, Mixture({"a": 1, "b": 1}), S)


def test_a_domain_without_a_corpus_is_refused() -> None:
    with pytest.raises(DataError, match="domain b: the mixture has a domain without tokens"):
        Stream({"a": MemoryCorpus([9])}, Mixture({"a": 1, "b": 1}), S)
