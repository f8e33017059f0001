from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacpt.data.batch import IGNORE_INDEX, collate
from megacpt.data.history import History, Settings, Stage
from megacpt.data.rows import read_rows
from megacpt.data.stream import Location, Stream, exhausted_at, record_of
from megacpt.errors import DataError
from tests.data.memory_corpus import MemoryCorpus, UnreadableCorpus, stream_of

S = 8  # sequence length


def sized_stream(weights: dict[str, float], num_rows: dict[str, int], seed: int = 0) -> Stream:
    """A stream, one row a step, whose domains have the given numbers of rows, in documents of five tokens."""
    corpora = {
        name: MemoryCorpus([5] * (num_rows[name] * S // 5) + [1 + num_rows[name] * S % 5], first_token=1000 * i)
        for i, name in enumerate(num_rows)
    }
    return stream_of(corpora, weights, S, seed=seed)


def of_domain(stream: Stream, name: str, num_samples: int) -> Location:
    location = stream.locate(np.arange(num_samples))
    mine = location.domain == stream.names.index(name)
    return Location(*(values[mine] for values in location))


@given(num_rows=st.integers(1, 40), weight=st.integers(1, 5), seed=st.integers(0, 1000))
def test_every_row_comes_once_an_epoch(num_rows: int, weight: int, seed: int) -> None:
    stream = sized_stream({"a": weight, "b": 2}, {"a": num_rows, "b": 7}, seed)
    location = of_domain(stream, "a", num_samples=300)
    num_epochs = len(location.row) // num_rows
    assert num_epochs >= 2
    for epoch, rows in enumerate(location.row[: num_epochs * num_rows].reshape(num_epochs, num_rows)):
        assert sorted(rows) == list(range(num_rows))
        assert (location.epoch[epoch * num_rows : (epoch + 1) * num_rows] == epoch).all()


def test_every_epoch_domain_and_seed_has_its_own_order() -> None:
    def orders(seed: int) -> list[list[int]]:
        stream = sized_stream({"a": 1, "b": 1}, {"a": 50, "b": 50}, seed)
        rows = [of_domain(stream, name, 200).row.tolist() for name in "ab"]
        return [rows[0][:50], rows[0][50:], rows[1][:50], rows[1][50:]]

    all_orders = orders(seed=0) + orders(seed=1)
    assert len(set(map(tuple, all_orders))) == len(all_orders)


def test_a_domain_that_joins_moves_no_row_of_another() -> None:
    alone = sized_stream({"a": 1}, {"a": 30})
    together = sized_stream({"new": 2, "a": 1}, {"new": 9, "a": 30})
    rows = of_domain(together, "a", 200).row
    assert rows.tolist() == alone.locate(np.arange(len(rows))).row.tolist()


@given(change_at=st.integers(0, 200), leaves=st.booleans(), seed=st.integers(0, 100))
def test_a_change_of_the_mixture_repeats_and_skips_nothing(change_at: int, leaves: bool, seed: int) -> None:
    before = sized_stream({"a": 3, "b": 1}, {"a": 40, "b": 25, "c": 10}, seed)
    changed = before.history.set_weights(change_at, {"a": 1, "c": 2} | ({} if leaves else {"b": 5}))
    after = before.with_history(changed)
    assert np.array_equal(after.locate(np.arange(change_at)), before.locate(np.arange(change_at)))
    for name in after.names:
        location = of_domain(after, name, num_samples=400)
        num_rows = {"a": 40, "b": 25, "c": 10}[name]
        assert location.ordinal.tolist() == list(range(len(location.ordinal)))
        for epoch in range(len(location.row) // num_rows):
            assert sorted(location.row[location.epoch == epoch]) == list(range(num_rows))


@given(samples=st.lists(st.integers(0, 500), max_size=30), shape=st.sampled_from([(-1,), (1, -1), (-1, 1)]))
def test_a_sample_does_not_depend_on_what_else_is_asked(samples: list[int], shape: tuple[int, ...]) -> None:
    stream = sized_stream({"a": 3, "b": 1}, {"a": 40, "b": 25})
    asked = np.array(samples, dtype=np.int64).reshape(shape)
    for of_all, of_some in zip(stream.locate(np.arange(501)), stream.locate(asked), strict=True):
        assert np.array_equal(of_all[asked], of_some)


def test_rows_tile_the_corpus_and_share_the_token_at_their_border() -> None:
    corpus = MemoryCorpus([3, 5, 1, 0, 11, 4])  # 24 tokens: documents start at 0, 3, 8, 9, 20
    stream = stream_of({"a": corpus}, {"a": 1}, S)
    assert stream.cuts[0][0].num_rows == 2  # 23 tokens can be predicted; the last 7 are less than a row
    rows = read_rows(corpus, np.array([0, 1]), S)
    assert rows.tokens.tolist() == [list(range(0, 9)), list(range(8, 17))]
    assert rows.document_starts.tolist() == [0, 3, 8, 9, 10]
    assert rows.num_tokens.tolist() == [S + 1, S + 1]


def test_a_corpus_of_exactly_one_row_is_enough() -> None:
    stream = stream_of({"a": MemoryCorpus([S + 1])}, {"a": 1}, S)
    assert stream.locate([0, 1, 2]).row.tolist() == [0, 0, 0]
    assert stream.locate([0, 1, 2]).epoch.tolist() == [0, 1, 2]


@given(
    lengths=st.lists(st.integers(0, 20), min_size=1).filter(lambda lengths: sum(lengths) > S),
    packing=st.sampled_from(["concat", "best_fit"]),
)
def test_labels_are_counted_without_reading_tokens(lengths: list[int], packing: str) -> None:
    stream = stream_of({"a": MemoryCorpus(lengths)}, {"a": 1}, S, packing=packing)
    location = stream.locate(np.arange(stream.cuts[0][0].num_rows))
    batch = collate(stream.rows(location), location.domain, np.ones(len(location.row)))
    blind = stream_of({"a": UnreadableCorpus(lengths)}, {"a": 1}, S, packing=packing)
    assert blind.num_labels(location).tolist() == (batch.labels != IGNORE_INDEX).sum(dim=1).tolist()
    assert (blind.num_labels(location, document_mask=False) == S).all()


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=20, max_size=200), added=st.integers(0, 60), read=st.integers(1, 50)
)
def test_packed_rows_hold_every_token_once(lengths: list[int], added: int, read: int) -> None:
    """Over an epoch, and where shards join while some of its rows are read already; documents are marked as such."""
    texts = [MemoryCorpus([S + 1, *lengths]), MemoryCorpus([S + 1, *lengths, *[7] * added])]
    for number, text in enumerate(texts):
        text.shard_digests = tuple(map(str, range(number + 1)))
    plan = [Stage(0, Settings({"a": 1}, S, 1))]
    history = History.begin(0, plan, {"a": record_of(texts[0], packing="best_fit")})
    history = history.replan(read, plan, {"a": record_of(texts[1], packing="best_fit")})
    num_rows, num_old = texts[1].num_tokens // (S + 1), texts[0].num_tokens // (S + 1)
    begun = read // num_old * num_old if read % num_old else read
    rows = Stream({"a": texts[1]}, history).rows(Stream({}, history).locate(np.arange(begun, begun + num_rows)))
    assert sorted(rows.tokens.ravel().tolist()) == [*range(num_rows * (S + 1))]
    flat = rows.tokens.ravel()
    begins = np.diff(flat, prepend=-9) != 1
    marked = np.isin(np.arange(flat.size), rows.document_starts)
    assert marked[begins].all() and marked[np.isin(flat, texts[1].starts)].all()


def test_the_report_adds_up() -> None:
    stream = sized_stream({"a": 3, "b": 1}, {"a": 40, "b": 25})
    a, b = stream.report(200)
    assert (a.name, a.target_share, a.share, a.tokens) == ("a", 0.75, 0.75, 150 * S)
    assert (a.unique_tokens, a.epochs) == (40 * S, 3.75)
    assert (b.unique_tokens, b.epochs) == (25 * S, 2.0)
    assert [domain.unique_tokens for domain in stream.report(8)] == [6 * S, 2 * S]


def test_no_steps_take_nothing() -> None:
    assert sized_stream({"a": 1}, {"a": 40}).report(0) == ()


def test_a_domain_smaller_than_a_row_is_refused() -> None:
    with pytest.raises(DataError, match=r"domain b: .* single row \(found 8 tokens, expected .* 9 or more\)"):
        stream_of({"a": MemoryCorpus([9]), "b": MemoryCorpus([8])}, {"a": 1, "b": 1}, S)


def test_a_domain_may_be_too_small_for_rows_that_it_does_not_give() -> None:
    long_rows = Stage(16 * S, Settings({"a": 1}, 2 * S, 1))
    again = Stage(32 * S, Settings({"a": 1, "b": 1}, S, 1))
    texts = {"a": MemoryCorpus([100]), "b": MemoryCorpus([2 * S]), "never": MemoryCorpus([1])}
    plan = [Stage(0, Settings({"a": 1, "b": 1, "never": 0}, S, 1)), long_rows, again]
    stream = Stream(texts, History.begin(0, plan, {name: record_of(text) for name, text in texts.items()}))
    assert [len(cuts) for cuts in stream.cuts] == [3, 1, 0] and [each.name for each in stream.report(30)] == ["a", "b"]
    assert exhausted_at(stream, {"b": 8.0, "never": 1.0}, 40) == (24, "b")


def test_samples_that_are_left_out_at_the_first_step_are_located() -> None:
    stream = sized_stream({"a": 3, "b": 1}, {"a": 40, "b": 25})
    jumped = stream.with_history(stream.history.jump(0, 10))
    assert np.array_equal(jumped.locate(np.arange(100)), stream.locate(np.arange(100)))


def test_a_domain_without_a_corpus_is_refused() -> None:
    with pytest.raises(DataError, match="domain b: the mixture has a domain without tokens"):
        stream_of({"a": MemoryCorpus([9])}, {"a": 1, "b": 1}, S)
