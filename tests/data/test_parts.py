"""Every label is counted as one of its document's part, whatever a row mixes; and so are labels that nobody reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch

from megacpt.data.batch import IGNORE_INDEX, MicroBatch
from megacpt.data.corpus import Corpus
from megacpt.data.history import History, Settings, Stage
from megacpt.data.insertions import DOMAIN, Insertion, record_of_insertions
from megacpt.data.loader import Loader
from megacpt.data.parts import MAX_PARTS, divide
from megacpt.data.rows import TokenSource
from megacpt.data.stream import Stream, record_of
from megacpt.data.view import Subset, View, select
from megacpt.errors import DataError
from tests.data.memory_corpus import MemoryCorpus
from tests.data.test_view import corpus_of

S, NUM_DOCUMENTS = 16, 60
SOURCES = [[None, "arxiv", "forum", "forum", "books"][number // 2 * 3 % 5] for number in range(NUM_DOCUMENTS)]
CANARY = (60_001, 60_002, 60_003)
WEIGHTS = {"web/arxiv": 3.0, "web/forum": 0.5, "web/none": 0.0, "law": 2.0}


def web(folder: Path) -> Corpus:
    """Three shards; the tokens of document n are n, and some documents have none."""
    random = np.random.default_rng(0)
    documents = [[number] * int(random.integers(0, 30)) for number in range(NUM_DOCUMENTS)]
    third = NUM_DOCUMENTS // 3
    return corpus_of(
        folder,
        [documents[at : at + third] for at in range(0, NUM_DOCUMENTS, third)],
        source=[[*SOURCES[at : at + third]] for at in range(0, NUM_DOCUMENTS, third)],
    )


def part_of(token: int) -> str:
    """What a label is counted as, by the token that it predicts."""
    if token < NUM_DOCUMENTS:
        return f"web/{SOURCES[token] or 'none'}"
    return DOMAIN if token in CANARY else "law"


def whole(corpus: Corpus) -> Corpus:
    return corpus


def without_books(corpus: Corpus) -> View:
    return select(corpus, Subset(where="(source is None or source != 'books') and num_tokens > 3"))


def ordered(corpus: Corpus) -> View:
    return select(corpus, Subset(), "num_tokens", descending=True)


@pytest.mark.parametrize(
    ("kept", "packing", "document_mask"),
    [
        (whole, "concat", True),
        (without_books, "concat", False),
        (ordered, "best_fit", True),
        (without_books, "best_fit", False),
    ],
)
def test_labels_are_of_their_documents_parts(
    tmp_path: Path, kept: Callable[[Corpus], Corpus | View], packing: str, document_mask: bool
) -> None:
    text = kept(web(tmp_path))
    texts: dict[str, TokenSource] = {"web": text, "law": MemoryCorpus([7] * 40, first_token=10_000)}
    insertions = tuple(Insertion("c", CANARY, position) for position in (5, 8 * S + 3, 20 * S + 9))
    records = {name: record_of(each, packing=packing) for name, each in texts.items()}
    records[DOMAIN] = record_of_insertions(insertions)
    plan = [
        Stage(0, Settings({"web": 3, "law": 1}, S, 8)),
        Stage(64 * S, Settings({"web": 3, "law": 1}, 2 * S, 4)),
    ]
    stream = Stream(texts, History.begin(1, plan, records), insertions, {"web": divide(text, "source")})
    num_steps = 20
    assert {report.name: report.epochs for report in stream.report(num_steps)}["web"] > 2

    def weights(shares: Mapping[str, float]) -> dict[str, float]:
        return WEIGHTS

    with (
        Loader(stream, 1, 0, 1, weights, document_mask, prefetch_steps=0) as alone,
        Loader(stream, 1, 0, 2, weights, document_mask, prefetch_steps=0) as first,
        Loader(stream, 1, 1, 2, weights, document_mask, prefetch_steps=0) as second,
    ):
        seen = set()
        for step in range(num_steps):
            batches = alone.step(step)
            counted: list[str] = []
            for batch in batches:
                is_label = batch.labels != IGNORE_INDEX
                expected = [part_of(token) for token in batch.labels[is_label].tolist()]
                assert [stream.counted[number] for number in batch.domains[is_label].tolist()] == expected
                counted += expected
            location = stream.locate(stream.samples(step))
            found = stream.labels_of_domains(step, location, document_mask)
            assert found.tolist() == [counted.count(name) for name in stream.counted]
            total = math.fsum(WEIGHTS.get(name, 1.0) for name in counted)
            assert alone.global_weight(step) == first.global_weight(step) == total
            whole_batch = torch.cat([batch.weights[batch.labels != IGNORE_INDEX] for batch in batches])
            expected_weights = torch.tensor([WEIGHTS.get(name, 1.0) / total for name in counted])
            torch.testing.assert_close(whole_batch, expected_weights, rtol=1e-6, atol=0)
            halves = [each for pair in zip(first.step(step), second.step(step), strict=True) for each in pair]
            assert all(same(*pair) for pair in zip(halves, batches, strict=True))
            seen |= set(counted)
    assert seen >= {"web/arxiv", "web/forum", "web/none", "law", DOMAIN}


def same(one: MicroBatch, other: MicroBatch) -> bool:
    return torch.equal(one.domains, other.domains) and torch.equal(one.weights, other.weights)


def test_parts_are_named_by_their_values(tmp_path: Path) -> None:
    shards = [[[1] * 4, [2] * 3], [[3] * 2, [4] * 5, []]]
    columns: dict[str, list[list[object]]] = {
        "year": [[2015, 2020], [2015, None, 1]],
        "day": [[date(2024, 5, 31), None], [None, None, None]],
        "is_code": [[True, False], [True, True, None]],
        "score": [[0.5, 0.25], [1.0, 0.0, 0.0]],
        "tags": [[["a"], ["b"]], [["a"], ["a"], ["b"]]],
    }
    corpus = corpus_of(tmp_path, shards, **columns)
    for column, expected in (
        ("year", {"2015": 6, "2020": 3, "none": 5}),
        ("day", {"2024-05-31": 4, "none": 10}),
        ("is_code", {"false": 3, "true": 11}),
    ):
        assert divide(corpus, column).num_tokens == expected
    assert [divide(corpus, "year").names[part] for part in divide(corpus, "year").of(np.arange(14))] == (
        ["2015"] * 4 + ["2020"] * 3 + ["2015"] * 2 + ["none"] * 5
    )
    kept = divide(select(corpus, Subset(where="num_tokens > 3"), "num_tokens", descending=True), "year")
    assert kept.num_tokens == {"2015": 4, "none": 5}
    assert kept.of(np.arange(9)).tolist() == [1] * 5 + [0] * 4
    for column in ("score", "tags"):
        with pytest.raises(DataError, match=rf"parts_by {column}: documents are not told apart by such values"):
            divide(corpus, column)
    with pytest.raises(DataError, match=r"parts_by source: the documents have no column 'source'.*--keep-columns"):
        divide(corpus, "source")


def test_too_many_parts_are_refused_with_the_commonest(tmp_path: Path) -> None:
    names: list[object] = [f"site-{number}" for number in range(MAX_PARTS)]
    corpus = corpus_of(tmp_path, [[[1]] * (MAX_PARTS + 3)], url=[[*names, "site-7", None, None]])
    with pytest.raises(DataError, match=rf"found {MAX_PARTS + 1}; the commonest are (site-7, none|none, site-7), "):
        divide(corpus, "url")
    assert len(divide(select(corpus, Subset(where="url is not None")), "url").names) == MAX_PARTS
