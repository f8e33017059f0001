"""Which training documents share n-grams with evaluation sets, and which evaluation documents are found in training.

An n-gram is a run of n tokens inside a document, as in Llama 2's analysis (arXiv:2307.09288, appendix A.6); 13 of them
are about as many as GPT-3 used words (arXiv:2005.14165, appendix C). Tokens are compared as they are: a copy with other
capitals or white space inside is not found, and what shares fewer tokens in a row is not either.

Memory is that of the evaluation sets (20 bytes an n-gram), one window of a shard and its documents' offsets, whatever
the size of the corpus. n-grams are compared by 64-bit hashes: of 10^12 against 10^7, less than one is expected to match
by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import parquet

from megacpt.data.manifest import ColumnsRecord, Manifest, read_manifest
from megacpt.data.shard import AtomicFile, Shard
from megacpt.errors import DataError
from megacpt_tools.inputs import Source, find_inputs, read_blocks
from megacpt_tools.tokenizer import Tokenizer

COLUMN = "overlap"
_WINDOW_TOKENS = 1 << 21
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_TABLE_BITS = 24


@dataclass(frozen=True)
class SetOverlap:
    """What of an evaluation set stands in a corpus.

    Attributes:
        documents: of the set; those shorter than an n-gram cannot be found.
        found_documents: with one n-gram or more in the corpus.
        found_share: mean over documents of the share of their n-grams that are.
    """

    name: str
    documents: int
    found_documents: int
    found_share: float


@dataclass(frozen=True)
class CorpusOverlap:
    """What of a corpus stands in the evaluation sets.

    Attributes:
        documents, tokens: of those with an n-gram of a set or more.
        sets: the sets' side of it.
    """

    folder: str
    documents: int
    tokens: int
    sets: tuple[SetOverlap, ...]


def _texts(source: Source, text_key: str) -> Iterator[list[str]]:
    num_lines = 0
    for block in read_blocks(source, text_key, "file"):
        read = block.documents(text_key)
        for fault in read.faults:
            where = block.where(num_lines, fault.line)
            raise DataError(fault.message, where=where, found=fault.found, hint=fault.hint)
        num_lines += read.num_lines
        yield read.texts


class EvaluationGrams:
    """The n-grams of evaluation sets.

    Args:
        sets: name -> paths of its text (`megacpt_tools.inputs`).
        tokenizer: that of the corpora.
        text_key: key or column of the text.
        num_tokens: of an n-gram, n.
    """

    def __init__(
        self, sets: Mapping[str, Sequence[str]], tokenizer: Tokenizer, text_key: str = "text", num_tokens: int = 13
    ) -> None:
        self.names = tuple(sets)
        self.num_tokens = num_tokens
        hashes: list[NDArray[np.uint64]] = []
        counts: list[NDArray[np.int64]] = []
        set_sizes = []
        for name, paths in sets.items():
            num_documents = 0
            for texts in (texts for source in find_inputs(paths) for texts in _texts(source, text_key)):
                try:
                    ids, lengths = tokenizer.encode(texts)
                except ValueError as error:
                    raise DataError("the tokenizer gives up on a document", where=name, found=error) from None
                grams, documents = _grams(ids, np.concatenate(([0], np.cumsum(lengths))), num_tokens)
                hashes.append(grams)
                counts.append(np.bincount(documents, minlength=lengths.size))
                num_documents += lengths.size
            if not num_documents:
                raise DataError("the evaluation set holds no documents", where=f"{name}={', '.join(paths)}")
            set_sizes.append(num_documents)
        every = np.concatenate([np.empty(0, np.uint64), *hashes])
        if not every.size:
            raise DataError(
                f"no evaluation document has {num_tokens} tokens", hint="Compare shorter n-grams (--ngram)."
            )
        self._counts = np.concatenate(counts)
        self._set_of = np.repeat(np.arange(len(set_sizes)), set_sizes)
        self._hashes, self._places = np.unique(every, return_inverse=True)
        self._table = np.zeros(1 << _TABLE_BITS, np.bool_)
        self._table[self._hashes >> np.uint64(64 - _TABLE_BITS)] = True

    def find(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of these n-grams are of a set: their places, and which they are."""
        candidates = np.flatnonzero(self._table[hashes >> np.uint64(64 - _TABLE_BITS)])
        which = np.searchsorted(self._hashes, hashes[candidates])
        is_equal = self._hashes[np.minimum(which, self._hashes.size - 1)] == hashes[candidates]
        return candidates[is_equal], which[is_equal]

    def report(self, was_found: NDArray[np.bool_]) -> tuple[SetOverlap, ...]:
        """Each set's share of n-grams that were found; `was_found` is bool [different n-grams]."""
        documents = np.repeat(np.arange(self._counts.size), self._counts)
        found = np.bincount(documents, was_found[self._places], minlength=self._counts.size)
        shares = found / np.maximum(self._counts, 1)
        return tuple(
            SetOverlap(name, int(is_its.sum()), int((found[is_its] > 0).sum()), float(shares[is_its].mean()))
            for number, name in enumerate(self.names)
            for is_its in [self._set_of == number]
        )

    @property
    def num_different(self) -> int:
        """Different n-grams of all sets."""
        return self._hashes.size


def decontaminate(folder: Path, evaluation: EvaluationGrams, *, write_column: bool = False) -> CorpusOverlap:
    """Compare a folder of shards with evaluation sets.

    Args:
        folder: with a manifest.
        evaluation: what to look for.
        write_column: give every document a column `overlap`, the share of its n-grams that are of a set, for
            `where: overlap < 0.1`. The manifest then names one more file beside each shard.
    """
    manifest = read_manifest(folder)
    was_found = np.zeros(evaluation.num_different, np.bool_)
    num_documents = num_tokens = 0
    records = []
    for shard, record in zip(manifest.open_shards(folder), manifest.shards, strict=True):
        lengths = np.diff(shard.document_offsets())
        num_found = _num_found(shard, evaluation, was_found)
        num_documents += int((num_found > 0).sum())
        num_tokens += int(lengths[num_found > 0].sum())
        overlap = (num_found / np.maximum(lengths - evaluation.num_tokens + 1, 1)).astype(np.float32)
        if write_column:
            columns = _write(folder / f"{record.file}.{COLUMN}.parquet", overlap, folder)
            others = tuple(other for other in record.columns if other.file != columns.file)
            record = record.model_copy(update={"columns": (*others, columns)})
        records.append(record)
    if write_column:
        Manifest.model_validate(manifest.model_copy(update={"shards": tuple(records)})).write(folder)
    return CorpusOverlap(str(folder), num_documents, num_tokens, evaluation.report(was_found))


def _num_found(shard: Shard, evaluation: EvaluationGrams, was_found: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many n-grams of each document are of a set; marks them in `was_found`."""
    offsets = shard.document_offsets()
    num_found = np.zeros(shard.num_documents, np.int64)
    for begin in range(0, shard.num_tokens, _WINDOW_TOKENS):
        stop = min(begin + _WINDOW_TOKENS + evaluation.num_tokens - 1, shard.num_tokens)
        hashes, documents = _grams(shard.read(begin, stop - begin), offsets - begin, evaluation.num_tokens)
        places, which = evaluation.find(hashes)
        np.add.at(num_found, documents[places], 1)
        was_found[which] = True
    return num_found


def _grams(ids: NDArray, offsets: NDArray[np.int64], num_tokens: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of all n-grams inside documents, and the document of each.

    The documents begin at `offsets` of the ids, or before, and the last of these is their end.
    """
    num_grams = max(ids.size - num_tokens + 1, 0)
    values = ids.astype(np.uint64) + np.uint64(1)
    hashes = np.zeros(num_grams, np.uint64)
    for place in range(num_tokens):
        hashes = hashes * _FACTOR + values[place : place + num_grams]
    hashes = (hashes ^ (hashes >> np.uint64(29))) * _FACTOR
    documents = np.searchsorted(offsets, np.arange(num_grams), side="right") - 1
    is_inside = np.arange(num_tokens, num_grams + num_tokens) <= offsets[documents + 1]
    return hashes[is_inside], documents[is_inside]


def _write(path: Path, overlap: NDArray[np.float32], folder: Path) -> ColumnsRecord:
    content = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({COLUMN: overlap}), content, compression="zstd")
    with AtomicFile(path) as file:
        file.write(memoryview(content.getvalue()))
    return ColumnsRecord(file=path.relative_to(folder).as_posix(), names=(COLUMN,), sha256=file.sha256)
