"""Token files of other makers give the documents that were put into them."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacpt.data.corpus import open_corpus
from megacpt.data.token_files import open_token_file
from megacpt.errors import DataError

EOS = 9
Documents = list[list[int]]


def write_raw(path: Path, documents: Documents, dtype: str = "u4") -> str:
    np.array([token for document in documents for token in document], dtype).tofile(path)
    return f"{path}?dtype={np.dtype(dtype).name}&eos_id={EOS}"


def write_npy(path: Path, documents: Documents) -> str:
    np.save(path, np.array([token for document in documents for token in document], "u2"))
    return f"{path}?eos_id={EOS}"


def write_datatrove(path: Path, documents: Documents) -> str:
    write_raw(path, documents, "u2")
    np.cumsum([len(document) for document in documents], dtype="<u8").tofile(f"{path}.index")
    return str(path)


WRITERS = {"a.npy": write_raw, "b.npy": write_npy, "c.ds": write_datatrove}


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=20)
@given(documents=st.lists(st.lists(st.integers(0, 8), max_size=4), min_size=1, max_size=8), data=st.data())
def test_documents_are_those_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, name: str, documents: Documents, data: st.DataObject
) -> None:
    documents = [[*document, EOS] for document in documents]
    written = WRITERS[name](tmp_path_factory.mktemp("tokens") / name, documents)
    corpus = open_corpus([written, written])
    documents = documents * 2
    flat = [token for document in documents for token in document]
    starts = [sum(map(len, documents[:at])) for at in range(len(documents))]
    first = data.draw(st.integers(0, len(flat)))
    stop = data.draw(st.integers(first, len(flat)))

    assert (corpus.num_tokens, corpus.num_documents) == (len(flat), len(documents))
    assert corpus.read(first, stop - first).tolist() == flat[first:stop]
    assert corpus.document_starts(first, stop).tolist() == [start for start in starts if first <= start < stop]
    assert corpus.document_offsets().tolist() == [*starts, len(flat)]
    out = np.zeros((len(flat), 1), np.int64)
    corpus.read_into(out, np.arange(len(flat)), np.arange(len(flat)))
    assert out[:, 0].tolist() == flat
    corpus.will_need(np.array([first]), 1)
    assert corpus.document_starts_many(np.array([first]), np.array([stop]))[1].tolist() == [
        len([start for start in starts if first <= start < stop])
    ]
    assert (corpus.text_bytes, corpus.tokenizer) == (None, None)


def test_the_last_document_needs_no_eos(tmp_path: Path) -> None:
    tokens = open_token_file(write_raw(tmp_path / "a.npy", [[1, EOS], [2, 3]]))
    assert tokens.num_documents == 2
    assert [tokens.read(a, b - a).tolist() for a, b in pairwise(tokens.document_offsets())] == [[1, EOS], [2, 3]]


def test_patterns_stand_for_files_and_keep_their_parameters(tmp_path: Path) -> None:
    for number in (2, 1):
        write_raw(tmp_path / f"part-{number}.npy", [[number, EOS]], "u2")
    corpus = open_corpus(f"{tmp_path}/part-*.npy?dtype=uint16&eos_id={EOS}")
    assert corpus.read(0, 4).tolist() == [1, EOS, 2, EOS]
    assert pickle.loads(pickle.dumps(corpus)).read(2, 2).tolist() == [2, EOS]


def test_another_content_has_another_digest(tmp_path: Path) -> None:
    name = write_raw(tmp_path / "a.npy", [[1, EOS]])
    digests = {open_token_file(name).digest(), open_token_file(name.replace("eos_id=9", "eos_id=1")).digest()}
    write_raw(tmp_path / "a.npy", [[2, EOS]])
    assert len(digests | {open_token_file(name).digest()}) == 3


@pytest.mark.parametrize(
    ("parameters", "fault"),
    [
        ("", "need the id that ends a document"),
        ("?eos_id=9", "its dtype has to be said .found no dtype, expected .*dtype=uint32&eos_id="),
        ("?dtype=float32&eos_id=9", "found float32"),
        ("?dtype=uint64&eos_id=9", "no whole number of tokens"),
        ("?dtype=uint16&eos_id=9&x=1", "need the id"),
    ],
)
def test_a_raw_file_needs_its_parameters(parameters: str, fault: str, tmp_path: Path) -> None:
    write_raw(tmp_path / "a.npy", [[1, 2, EOS]])
    with pytest.raises(DataError, match=fault):
        open_token_file(f"{tmp_path}/a.npy{parameters}")


def test_a_datatrove_file_is_held_against_its_index(tmp_path: Path) -> None:
    name = write_datatrove(tmp_path / "c.ds", [[1, 2, EOS]])
    (tmp_path / "c.ds").write_bytes(b"\0" * 7)
    with pytest.raises(DataError, match=r"not as long as its index says .found 7 bytes"):
        open_token_file(name)
    (tmp_path / "c.ds.index").unlink()
    with pytest.raises(DataError, match=r"c\.ds\.index: there is no such file"):
        open_token_file(name)
