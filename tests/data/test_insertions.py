"""Sequences stand where they were asked to, on every layout, and their labels are counted apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megacpt.data.history import History, Settings, Stage
from megacpt.data.insertions import (
    DOMAIN,
    Insertion,
    place,
    read_insertions,
    read_places,
    record_of_insertions,
    write_places,
)
from megacpt.data.loader import Loader
from megacpt.data.stream import Stream, record_of
from megacpt.errors import DataError
from tests.data.memory_corpus import MemoryCorpus

S = 8
CANARY = (901, 902, 903)


def read(folder: Path, *lines: dict[str, Any] | str, **changes: Any) -> tuple[Insertion, ...]:
    """What a file of these lines asks for, in a run of 1,000 tokens."""
    path = folder / "canaries.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    run: dict[str, Any] = {"seed": 0, "total_tokens": 1000, "sequence_length": S, "vocab_size": 1000, "encode": None}
    return read_insertions([path], **(run | changes))


def stream_with(insertions: tuple[Insertion, ...], **reading: Any) -> Stream:
    """Four rows of 8 a step, from step 3 on two rows of 16; documents of 5 tokens."""
    corpora = {"a": MemoryCorpus([5] * 100), "b": MemoryCorpus([5] * 90, first_token=5000)}
    plan = [Stage(0, Settings({"a": 1, "b": 1}, S, 4)), Stage(96, Settings({"a": 1, "b": 1}, 2 * S, 2))]
    records = {name: record_of(corpus, **reading) for name, corpus in corpora.items()}
    records[DOMAIN] = record_of_insertions(insertions)
    return Stream(corpora, History.begin(3, plan, records), insertions)


@pytest.mark.parametrize("document_mask", [True, False])
def test_they_take_the_place_of_tokens(document_mask: bool) -> None:
    """In the second row of step 0, at the end of its last, and across the rows' edge of step 3, so before it."""
    insertions = tuple(Insertion("c", CANARY, position) for position in (8 + 2, 24 + 6, 96 + 16 + 15))
    plain = stream_with(())
    stream = stream_with(insertions)
    with (
        Loader(plain, document_mask=document_mask, prefetch_steps=0) as before,
        Loader(stream, document_mask=document_mask, prefetch_steps=0) as after,
    ):
        for step, there in ((0, [(1, 2), (3, 6)]), (1, []), (3, [(1, 14)])):
            assert [(each.row, each.column) for each in stream.places.get(step, [])] == there
            was, now = (
                [torch.cat(part) for part in zip(*map(tuple_of, loader.step(step)), strict=True)]
                for loader in (before, after)
            )
            wanted = was[0].clone()
            for row, column in there:
                wanted[row, column : column + 3] = torch.tensor(CANARY)[: wanted.shape[1] - column]
            assert now[0].tolist() == wanted.tolist()
            domain = stream.names.index(DOMAIN)
            is_own = now[3] == domain
            assert [(*each,) for each in (is_own & (now[1] != -100)).nonzero().tolist()] == [
                (row, label) for row, column in there for label in range(column - (not document_mask), column + 2)
            ]
            assert (now[1][is_own & (now[1] != -100)] >= 901).all()
            if document_mask:
                for row, column in there:
                    assert now[2][row, column].item() == 0, "a document of its own"
                    assert now[1][row, column - 1].item() == -100
            untouched = [row for row in range(len(wanted)) if row not in {row for row, _ in there}]
            assert all(torch.equal(a[untouched], b[untouched]) for a, b in zip(was[:4], now[:4], strict=True))
            assert now[4].sum().item() == pytest.approx(1, rel=1e-6)
            assert after.global_weight(step) == (now[1] != -100).sum().item()


def tuple_of(batch: Any) -> tuple[torch.Tensor, ...]:
    return batch.input_ids, batch.labels, batch.positions, batch.domains, batch.weights


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_ranks_insert_what_one_does(packing: str) -> None:
    insertions = tuple(Insertion(f"c{i}", CANARY, 5 + 29 * i) for i in range(6))
    stream = stream_with(insertions, packing=packing)
    for step in range(5):
        with Loader(stream, prefetch_steps=0) as alone:
            whole = torch.cat([torch.stack(tuple_of(each)[:4]) for each in alone.step(step)], 1)
            weight = alone.global_weight(step)
        ranks = []
        for rank in range(2):
            with Loader(stream, dp_rank=rank, dp_size=2, prefetch_steps=0) as loader:
                ranks.append([torch.stack(tuple_of(each)[:4]) for each in loader.step(step)])
                assert loader.global_weight(step) == weight
        assert torch.equal(torch.cat([each for pair in zip(*ranks, strict=True) for each in pair], 1), whole)


def test_a_jump_and_other_weights_move_no_insertion() -> None:
    stream = stream_with((Insertion("c", CANARY, 70),))
    changed = stream.with_history(stream.history.jump(1, 12).set_weights(2, {"a": 1}))
    assert changed.places == stream.places
    tokens = changed.read(2, changed.locate(changed.samples(2)), np.arange(4))[0].tokens
    assert tokens[0, 6:].tolist() == [*CANARY]


def test_what_stands_in_the_way_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"insertion c: the sequence is longer than a row .found 10 tokens, expected at m"
    ):
        stream_with((Insertion("c", tuple(range(10)), 3),))
    with pytest.raises(DataError, match=r"insertions c and d: two insertions .* tokens 14 and 15"):
        stream_with((Insertion("d", CANARY, 15), Insertion("c", CANARY, 14)))
    stream_with((Insertion("d", CANARY, 8), Insertion("c", CANARY, 11), Insertion("e", CANARY, 2)))


def test_a_file_says_what_and_where(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"name": "a", "tokens": [1, 2], "at": [0, "50%", "0.9K"]},
        {"name": "b", "text": "x y z", "at": [7], "probe": {"siblings": 9}},
    ]
    found = read(tmp_path, lines[0], "", lines[1], encode=lambda text: [len(word) for word in text.split()])
    assert found == (
        *(Insertion("a", (1, 2), position) for position in (0, 500, 900)),
        Insertion("b", (1, 1, 1), 7),
    )
    assert found[-1].probe == {"siblings": 9}


def test_copies_are_spread_over_the_run(tmp_path: Path) -> None:
    line: dict[str, Any] = {"name": "a", "tokens": [1, 2, 3], "copies": 10}
    found = read(
        tmp_path, line, {"name": "b", "tokens": [4] * 9, "copies": 60}, {"name": "c", "tokens": [5, 6], "at": [3]}
    )
    rows = [each.position // S for each in found]
    assert len(set(rows)) == len(rows) == 71, "one a row"
    # Each tenth of the run has one, or its neighbour has where the row was taken.
    assert [each.position // 100 for each in read(tmp_path, line)] == [*range(10)]
    assert read(tmp_path, line) != read(tmp_path, line, seed=1)
    columns = {each.position % S for each in found if each.name == "a"}
    assert len(columns) > 1 and all(each.position % S == 0 for each in found if each.name == "b")
    with pytest.raises(DataError, match=r"canaries.jsonl:1: there are more insertions than rows .expected at most 125"):
        read(tmp_path, {"name": "a", "tokens": [1, 2], "copies": 126})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"canaries.jsonl:1: this is no insertion"),
        ({"name": "a", "tokens": [1, 2]}, r"canaries.jsonl:1: this is no insertion .*one of at and copies"),
        ({"name": "a", "at": [1]}, r"one of text and tokens"),
        ({"name": "a", "tokens": [1, 2], "time": 3}, r"canaries.jsonl:1: time: this is no insertion"),
        ({"name": "a", "tokens": [1, 1000], "at": [1]}, r"found 2 tokens, ids up to 1000, expected two .* below 1000"),
        ({"name": "a", "text": "x", "at": [1]}, r"no tokenizer.json"),
        ({"name": "a", "tokens": [1, 2], "at": ["1 mile"]}, r"canaries.jsonl:1: at: this is no token of a run"),
        (
            {"name": "a", "tokens": [1, 2], "at": [1000]},
            r"the run has ended there .found 1000, expected less than 1,000",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: dict[str, Any] | str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path, line)
    good = {"name": "a", "tokens": [1, 2], "at": [1]}
    with pytest.raises(DataError, match=r"canaries.jsonl:2: two sequences have one name"):
        read(tmp_path, good, good)


def test_places_are_written_and_those_done_are_kept(tmp_path: Path) -> None:
    stream = stream_with(
        (Insertion("c", CANARY, 8 + 7, {"siblings": 5}), Insertion("c", CANARY, 96), Insertion("d", CANARY, 100))
    )
    path = tmp_path / "insertions.jsonl"
    write_places(path, [each for there in stream.places.values() for each in there], stream.history)
    first = {"position": 14, "step": 1, "row": 1, "column": 6}
    assert read_places(path, 1) == [{"name": "c", "tokens": [*CANARY], "siblings": 5, "places": [first]}]
    moved = place((Insertion("c", CANARY, 128),), stream.history)
    write_places(path, moved[4], stream.history, read_places(path, 1))
    (line,) = map(json.loads, path.read_text().splitlines())
    assert line["places"] == [first, {"position": 128, "step": 5, "row": 0, "column": 0}]
    assert read_places(tmp_path / "other", 9) == []


def test_other_insertions_are_another_identity() -> None:
    record = record_of_insertions((Insertion("c", CANARY, 3), Insertion("d", CANARY, 8)))
    assert record == record_of_insertions((Insertion("d", CANARY, 8), Insertion("c", CANARY, 3)))
    for other in (Insertion("c", CANARY, 4), Insertion("c", (1, 2, 3), 3), Insertion("e", CANARY, 3)):
        assert record_of_insertions((other, Insertion("d", CANARY, 8))).shards != record.shards
