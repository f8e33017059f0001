"""A domain as one sequence of tokens, across shards and folders."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacpt.data.corpus import open_corpus
from megacpt.data.shard import ShardWriter
from megacpt.errors import DataError
from tests.data.test_manifest import write_folder


def write_shard(prefix: Path, documents: list[list[int]]) -> Path:
    with ShardWriter(prefix, "i4") as writer:
        for document in documents:
            writer.add_document(document)
    return prefix


@given(st.lists(st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=6), min_size=1, max_size=6), st.data())
def test_shards_lie_end_to_end(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[list[int]]], data: st.DataObject
) -> None:
    shards = [*shards, [[7]]]
    folder = tmp_path_factory.mktemp("corpus")
    corpus = open_corpus([write_shard(folder / str(number), shard) for number, shard in enumerate(shards)])
    documents = [document for shard in shards for document in shard]
    tokens = [token for document in documents for token in document]
    starts = [sum(map(len, documents[:at])) for at, document in enumerate(documents) if document]
    first = data.draw(st.integers(0, len(tokens)))
    stop = data.draw(st.integers(first, len(tokens)))

    assert (corpus.num_tokens, corpus.num_documents) == (len(tokens), len(documents))
    read = corpus.read(first, stop - first)
    assert read.dtype == np.int64
    assert read.tolist() == tokens[first:stop]
    assert corpus.document_starts(first, stop).tolist() == [start for start in starts if first <= start < stop]


def test_reads_are_the_callers_own(tmp_path: Path) -> None:
    corpus = open_corpus(write_shard(tmp_path / "a", [[1, 2, 3]]))
    corpus.read(0, 3)[:] = 0
    assert corpus.read(0, 3).tolist() == [1, 2, 3]


def test_reads_outside_the_corpus_are_refused(tmp_path: Path) -> None:
    corpus = open_corpus(write_shard(tmp_path / "a", [[1, 2, 3]]))
    for start, count in ((-1, 2), (2, 2), (4, 0)):
        with pytest.raises(IndexError):
            corpus.read(start, count)


def test_folders_prefixes_and_files_open_alike(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", [[[1, 2]], [[3]]])
    prefix = write_shard(tmp_path / "megatron.v1_document", [[4, 5]])
    corpus = open_corpus([tmp_path / "folder", str(prefix), f"{prefix}.bin", f"{prefix}.idx"])
    assert corpus.read(0, corpus.num_tokens).tolist() == [1, 2, 3, 4, 5, 4, 5, 4, 5]


def test_text_bytes_are_known_only_when_every_manifest_says(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", [[[1, 2]], [[3]]])
    write_folder(tmp_path / "b", [[[4]]])
    shard = write_shard(tmp_path / "plain", [[5]])
    assert open_corpus([tmp_path / "a", tmp_path / "b"]).text_bytes == 12
    assert open_corpus([shard, tmp_path / "a"]).text_bytes is None


def test_the_tokenizer_is_the_manifests(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", [[[1]]], fingerprint="abc")
    shard = write_shard(tmp_path / "plain", [[5]])
    assert open_corpus(tmp_path / "a").fingerprint == "abc"
    assert open_corpus([shard, tmp_path / "a"]).fingerprint == "abc"
    assert open_corpus(shard).fingerprint is None


def test_tokenizers_must_not_mix(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", [[[1]]], fingerprint="abc", name="one")
    write_folder(tmp_path / "b", [[[1]]], fingerprint="abd", name="other")
    with pytest.raises(DataError, match=r"different tokenizers .found other, fingerprint abd, expected one, .*in .*a"):
        open_corpus([tmp_path / "a", tmp_path / "b"])


def test_what_holds_no_tokens_is_refused(tmp_path: Path) -> None:
    empty = write_shard(tmp_path / "empty", [])
    for paths in ([], [empty]):
        with pytest.raises(DataError, match="no tokens"):
            open_corpus(paths)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: there are no shards here"):
        open_corpus(tmp_path / "nowhere")


def test_a_corpus_goes_to_another_process_as_paths(tmp_path: Path) -> None:
    corpus = open_corpus(write_shard(tmp_path / "a", [[1] * 10_000]))
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 2000
    assert pickle.loads(pickled).read(9_999, 1).tolist() == [1]
