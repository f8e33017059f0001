"""A view is the corpus of the kept documents: whatever is read of it, a rewritten corpus would say too."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyarrow import parquet

from megacpt.data import view
from megacpt.data.corpus import Corpus, open_corpus
from megacpt.data.manifest import FILE_NAME, ColumnsRecord, read_manifest
from megacpt.data.view import Removed, Subset, View, select
from megacpt.errors import DataError
from tests.data.test_manifest import write_folder


def corpus_of(folder: Path, shards: list[list[list[int]]], **columns: list[list[object]]) -> Corpus:
    """A folder of shards with columns, given per shard."""
    manifest = write_folder(folder, shards)
    records = []
    for number, record in enumerate(manifest.shards):
        table = pyarrow.table({name: values[number] for name, values in columns.items()})
        parquet.write_table(table, folder / f"{record.file}.parquet")
        kept = ColumnsRecord(file=f"{record.file}.parquet", names=tuple(columns), sha256="")
        records.append(record.model_copy(update={"columns": (kept,)}))
    manifest.model_copy(update={"shards": tuple(records)}).write(folder)
    return open_corpus(folder)


def documents_of(source: Corpus | View) -> list[list[int]]:
    bounds = [*source.document_starts(0, source.num_tokens).tolist(), source.num_tokens]
    return [source.read(start, stop - start).tolist() for start, stop in pairwise(bounds)]


@settings(max_examples=30)
@given(
    shards=st.lists(
        st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=7), min_size=1, max_size=4
    ),
    data=st.data(),
)
def test_a_view_reads_as_a_corpus_of_the_kept_documents(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[tuple[int, bool]]], data: st.DataObject
) -> None:
    token = iter(range(1, 1000))
    shards = [*shards, [(2, True)]]
    tokens = [[[next(token) % 100 for _ in range(length)] for length, _ in shard] for shard in shards]
    write_folder(folder := tmp_path_factory.mktemp("view"), tokens)
    kept = np.array([is_kept for shard in shards for _, is_kept in shard])
    view = View(open_corpus(folder), np.flatnonzero(kept), name="")
    documents = [document for document, is_kept in zip((d for s in tokens for d in s), kept, strict=True) if is_kept]
    flat = [token for document in documents for token in document]
    starts = [sum(map(len, documents[:at])) for at, document in enumerate(documents) if document]
    first = data.draw(st.integers(0, len(flat)))
    stop = data.draw(st.integers(first, len(flat)))

    assert (view.num_tokens, view.num_documents) == (len(flat), len(documents))
    assert view.read(first, stop - first).tolist() == flat[first:stop]
    assert view.document_starts(first, stop).tolist() == [start for start in starts if first <= start < stop]

    begins = np.arange(len(flat) - 1)
    out = np.zeros((begins.size, 2), np.int64)
    view.read_into(out, begins[::-1], begins)
    assert out[::-1].tolist() == [[*pair] for pair in pairwise(flat)]
    found, counts = view.document_starts_many(begins, begins + 2)
    each = [[start for start in starts if begin <= start < begin + 2] for begin in begins]
    assert [part.tolist() for part in np.split(found, np.cumsum(counts))[:-1]] == each
    view.will_need(begins, 2)


SHARDS = [[[1, 1], [2], [3, 3, 3]], [[4], [5, 5], [6]]]
SCORES: list[list[object]] = [[0.2, 0.9, 0.5], [None, 0.1, 0.9]]
BYTES: list[list[object]] = [[10, 20, 30], [40, 50, 60]]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return corpus_of(tmp_path, SHARDS, score=SCORES, text_bytes=BYTES)


@pytest.mark.parametrize(
    ("subset", "documents"),
    [
        (Subset(where="score >= 0.5"), [2, 3, 6]),
        (Subset(where="num_tokens == 1 and text_bytes < 50"), [2, 4]),
        (Subset(rank_by="score", top_tokens=1), [6]),
        (Subset(rank_by="score", top_tokens=3), [2, 3, 6]),
        (Subset(rank_by="score", top_tokens=10**9), [1, 2, 3, 5, 6]),
        (Subset(where="num_tokens > 1", rank_by="score", top_tokens=4), [1, 3]),
        (Subset(rank_by="score", quantiles=(0, 0.5)), [1, 5]),
        (Subset(rank_by="score", quantiles=(0.5, 1)), [2, 3, 6]),
    ],
)
def test_a_subset_is_what_it_says(corpus: Corpus, subset: Subset, documents: list[int]) -> None:
    view = select(corpus, subset)
    assert [document[0] for document in documents_of(view)] == documents
    assert view.text_bytes == sum(10 * document for document in documents)
    assert view.tokenizer == corpus.tokenizer


def test_starts_of_many_runs_are_found_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out documents lie far apart, and all of them are counted for bits per byte."""
    whole = corpus_of(tmp_path, [[[1] * (1 + number % 3) for number in range(200)]])
    part = View(whole, np.arange(0, 200, 2), name="")
    searched: list[int] = []
    found = whole.document_starts_many

    def counted(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        searched.append(starts.size)
        return found(starts, stops)

    monkeypatch.setattr(whole, "document_starts_many", counted)
    monkeypatch.setattr(whole, "document_starts", lambda *one: pytest.fail("one run at a time"))
    lengths = 1 + np.arange(0, 200, 2) % 3
    assert part.document_starts(0, part.num_tokens).tolist() == (np.cumsum(lengths) - lengths).tolist()
    assert searched == [100]
    monkeypatch.setattr(view, "_SEARCHED_RUNS", 30)
    assert part.document_starts(1, part.num_tokens).size == 99 and searched == [100, 30, 30, 30, 9]


def test_quantiles_divide_the_documents(corpus: Corpus) -> None:
    edges = [0, 0.1, 0.35, 0.6, 0.61, 1]
    parts = []
    for low, high in pairwise(edges):
        try:
            parts += documents_of(select(corpus, Subset(rank_by="score", quantiles=(low, high))))
        except DataError as error:
            assert "no tokens are left" in str(error)
    assert sorted(parts) == sorted(document for shard in SHARDS for document in shard if document != [4])


def test_what_is_removed_is_counted(corpus: Corpus) -> None:
    view = select(corpus, Subset(where="num_tokens > 1", rank_by="score", top_tokens=4))
    assert view.removed == (Removed("where num_tokens > 1", 3, 3), Removed("top_tokens 4 by score", 1, 2))


@pytest.mark.parametrize(
    ("order_by", "descending", "documents"),
    [
        ("score", False, [5, 1, 3, {2, 6}]),
        ("score", True, [{2, 6}, 3, 1, 5]),
        ("num_tokens", True, [3, {1, 5}, {2, 4, 6}]),
        ("day", False, [6, 2, 1, 3]),
    ],
)
def test_documents_come_in_the_order_of_a_column(
    tmp_path: Path, order_by: str, descending: bool, documents: list[int | set[int]]
) -> None:
    days: list[list[object]] = [["2024-11-02", "2024-05-31", "2025-01-01"], [None, None, "2019-12-31"]]
    view = select(corpus_of(tmp_path, SHARDS, score=SCORES, day=days), Subset(), order_by, descending)
    found = [document[0] for document in documents_of(view)]
    groups = [group if isinstance(group, set) else {group} for group in documents]
    ends = np.cumsum([len(group) for group in groups])
    assert [{*part.tolist()} for part in np.split(np.array(found), ends[:-1])] == groups
    lost = 6 - len(found)
    assert [removed.documents for removed in view.removed] == [lost] * (lost > 0)
    assert select(view.corpus, Subset(), order_by, not descending).subset != view.subset


def test_the_better_half_may_come_in_order(corpus: Corpus) -> None:
    view = select(corpus, Subset(rank_by="score", quantiles=(0.3, 1)), "num_tokens")
    assert [len(document) for document in documents_of(view)] == [1, 1, 2, 3]
    assert view.read(0, 7).tolist()[-3:] == [3, 3, 3]


def test_another_subset_has_another_identity(corpus: Corpus) -> None:
    assert len({select(corpus, Subset(where=f"score > {limit}")).subset for limit in (0.1, 0.3, 0.6)}) == 3


@pytest.mark.parametrize(
    ("subset", "fault"),
    [
        (Subset(where="score > 1"), "no tokens are left.*where score > 1 removes 6 documents"),
        (Subset(where="year > 1"), r"no column 'year' \(found score, text_bytes, num_tokens\).*--keep-columns year"),
        (Subset(rank_by="year", top_tokens=1), "no column 'year'"),
    ],
)
def test_what_cannot_be_chosen_is_named(corpus: Corpus, subset: Subset, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        select(corpus, subset)


def test_what_cannot_be_ordered_is_named(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, SHARDS[:1], flags=[[[1], [2], [3]]])
    with pytest.raises(DataError, match=r"order_by year: the documents have no column 'year'.*--keep-columns"):
        select(corpus, Subset(), "year")
    with pytest.raises(DataError, match=r"order_by flags: documents are ordered by numbers or text \(found list"):
        select(corpus, Subset(), "flags")


def test_a_shard_without_columns_has_no_values(tmp_path: Path) -> None:
    corpus_of(tmp_path / "a", SHARDS[:1], score=SCORES[:1])
    write_folder(tmp_path / "b", SHARDS[1:])
    both = open_corpus([tmp_path / "b", tmp_path / "a"])
    assert documents_of(select(both, Subset(where="score is None"))) == SHARDS[1]
    assert documents_of(select(both, Subset(where="score > 0.4"))) == [[2], [3, 3, 3]]
    (tmp_path / "b" / FILE_NAME).unlink()
    plain = open_corpus(tmp_path / "b/shard_0.bin")
    assert documents_of(select(plain, Subset(where="num_tokens > 1"))) == [[5, 5]]


def test_columns_of_another_length_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"score": [0.5]}), tmp_path / "shard_0.parquet")
    with pytest.raises(DataError, match=r"shard_0.parquet: rows: .*found 1 in the shards, expected 3"):
        read_manifest(tmp_path).read_columns(tmp_path, ["score"])
