"""One file of tokens: Megatron-core's IndexedDataset, read without loading it and written without half-files.

A shard is two files with one prefix. `PREFIX.bin` holds nothing but token ids, one document after the other.
`PREFIX.idx` says where they start (little-endian, unaligned):

    magic              9 bytes   b"MMIDIDX\\0\\0"
    version            u64       1
    dtype code         u8        1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 6 f64, 7 f32, 8 u16
    sequence count N   u64
    document entries   u64       number of documents + 1
    lengths            i32[N]    tokens of each sequence
    pointers           i64[N]    byte offset of each sequence in the .bin
    document indices   i64[...]  first sequence of each document, and N at the end

Megatron-LM, NeMo and GPT-NeoX write and read the same bytes, so their corpora work here as they are and ours there.
They may store a document as several sequences (sentences); the document indices decide what a document is.

Opening checks the two files against each other in constant time. Tokens are read by `pread`, not through a map: page
faults fetch a cold row in several waits, one after the other, where one read and a hint given ahead (`will_need`) wait
once or not at all. The index is mapped, so memory does not grow with the corpus. A process keeps at most
`MAX_OPEN_SHARDS` shards open and opens others again when they are read.

Megatron's header of 34 bytes leaves the pointers unaligned, and `np.searchsorted` copies an unaligned array whole;
hence the search of our own, for many places side by side.
"""

from __future__ import annotations

import hashlib
import os
import struct
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from megacpt.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPES: dict[int, np.dtype] = {
    code: np.dtype(name)
    for code, name in {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}.items()
}
_HEADER = struct.Struct("<9sQBQQ")
_SCAN_ENTRIES = 1 << 20
"""Entries looked at together when a whole shard is verified: 8 MiB at most."""

MAX_OPEN_SHARDS = 128
"""Shards that a process keeps open: two file descriptors and a map each. Some file systems allow hundreds of maps."""

_NUM_GUESSES, _MARGINS = 3, (48, 256)
"""Where a document is looked for: guesses by the mean length, then the documents within a margin of the last guess, and
within a wider one. Who is not there is found by bisection."""

_DIGEST_SAMPLES, _DIGEST_BYTES = 5, 1 << 14
"""How much of each file a digest reads: so many samples at equal distances, of so many bytes."""


def dtype_for(vocab_size: int) -> np.dtype:
    """The dtype that Megatron stores ids of such a vocabulary in: uint16 below 65,500 entries, int32 from there."""
    return np.dtype("<u2") if vocab_size < 65_500 else np.dtype("<i4")


class Shard:
    """A shard open for reading; `prefix` is the path without `.bin` or `.idx`.

    Attributes:
        num_tokens, num_documents, dtype: what the index says, checked against the sizes of both files.
        name: the path, for people.

    Raises:
        DataError: a file is missing or cut short, is no IndexedDataset, or the two contradict each other.
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self.prefix = Path(prefix)
        self.name = str(prefix)
        self.bin_path = Path(f"{prefix}.bin")
        self.idx_path = Path(f"{prefix}.idx")
        missing = [path for path in (self.idx_path, self.bin_path) if not path.is_file()]
        if len(missing) == 2:
            expected = "a folder that `megacpt shards build` made, or a shard's path without .bin and .idx"
            raise DataError("there are no shards here", where=str(prefix), expected=expected)
        if missing:
            raise DataError("half of the shard is missing", where=str(missing[0]), hint="Copy it again.")
        index = _map(self.idx_path)
        self.dtype, num_sequences, num_entries = self._header(index)
        parts = _IndexParts.of(num_sequences, num_entries)
        if index.size < parts.size:
            raise self._broken("the index is cut short", f"{index.size:,} bytes", f"{parts.size:,}")
        lengths, pointers, document_indices = parts.views(index)
        if num_entries == 0 or document_indices[0] != 0 or document_indices[-1] != num_sequences:
            raise self._broken("the documents do not cover the sequences", None, f"entries from 0 to {num_sequences}")

        num_bytes = int(pointers[-1]) + int(lengths[-1]) * self.dtype.itemsize if num_sequences else 0
        bin_bytes = self.bin_path.stat().st_size
        if bin_bytes != num_bytes:
            fault = "is cut short" if bin_bytes < num_bytes else "is longer than its index says"
            raise DataError(
                f"the shard {fault}",
                where=str(self.bin_path),
                found=f"{bin_bytes:,} bytes",
                expected=f"{num_bytes:,}",
                hint="Copy the .bin and .idx again, or build the shard anew.",
            )
        self._index_parts = parts
        self.num_tokens = num_bytes // self.dtype.itemsize
        self.num_documents = num_entries - 1

    def read(self, start: int, count: int) -> NDArray:
        """Tokens [start, start + count) in the shard's dtype, as an array of its own."""
        _check_range(start, start + count, self.num_tokens)
        tokens = np.empty(count, self.dtype)
        self._read(_open(self).bin, start, tokens)
        return tokens

    def read_into(self, out: NDArray, places: Sequence[int], starts: Sequence[int]) -> None:
        """Fill `out[place]` with the tokens from `start` on, for each place and start; out: [rows, count], contiguous.

        Rows of the shard's own dtype are read where they belong, others are converted.
        """
        if not starts:
            return
        _check_range(min(starts), max(starts) + out.shape[1], self.num_tokens)
        bin_file = _open(self).bin
        if out.dtype == self.dtype:
            for place, start in zip(places, starts, strict=True):
                self._read(bin_file, start, out[place])
            return
        tokens = np.empty(out.shape[1], self.dtype)
        for place, start in zip(places, starts, strict=True):
            self._read(bin_file, start, tokens)
            out[place] = tokens

    def will_need(self, starts: Iterable[int], count: int) -> None:
        """Let the system fetch `count` tokens from each start on, without waiting for them."""
        bin_file, size = _open(self).bin, self.dtype.itemsize
        for start in starts:
            os.posix_fadvise(bin_file, start * size, count * size, os.POSIX_FADV_WILLNEED)

    def _read(self, bin_file: int, start: int, tokens: NDArray) -> None:
        offset = start * self.dtype.itemsize
        num_bytes = os.preadv(bin_file, [tokens.data], offset)
        while num_bytes < tokens.nbytes:  # a read may be cut short, by a signal or at 2 GiB
            more = os.preadv(bin_file, [tokens.view(np.uint8)[num_bytes:].data], offset + num_bytes)
            if not more:
                raise DataError("the shard became shorter while it was read", where=str(self.bin_path))
            num_bytes += more

    def document_offsets(self, first: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Where documents [first, stop) begin, in tokens, and where the last of them ends: int64 [stop - first + 1]."""
        stop = self.num_documents if stop is None else stop
        _check_range(first, stop, self.num_documents)
        return self._document_offsets(_open(self), np.arange(first, stop + 1))

    def document_starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Token offsets d of document starts with start <= d < stop, ascending, each once; int64.

        A document without tokens starts nothing.
        """
        return self.document_starts_many(np.array([start]), np.array([stop]))[0]

    def document_starts_many(
        self, starts: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The `document_starts` of many ranges, end to end, and how many each range has: [M], [N]."""
        if (starts > stops).any():
            raise IndexError("a range ends before it starts")
        _check_range(int(starts.min(initial=0)), int(stops.max(initial=0)), self.num_tokens)
        if not (starts.size and self.num_tokens):
            return np.empty(0, np.int64), np.zeros(starts.size, np.int64)
        index = _open(self)
        guess = self._guess(index, starts)
        _, begins, first, last, missed = self._nearby(index, guess, starts, stops, _MARGINS[0])
        counts = last - first
        counts[missed] = 0
        near = ranges(np.arange(starts.size) * begins.shape[1] + first, counts)
        offsets = begins.ravel()[near] // self.dtype.itemsize
        if missed.size:
            first, last = self._documents_between(index, guess[missed], starts[missed], stops[missed])
            places = np.repeat((np.cumsum(counts) - counts)[missed], last - first)
            offsets = np.insert(offsets, places, self._document_offsets(index, ranges(first, last - first)))
            counts[missed] = last - first
        repeated = offsets[1:] == offsets[:-1]
        if repeated.any():  # documents without tokens
            numbers = np.repeat(np.arange(starts.size), counts)
            kept = np.concatenate([[True], ~(repeated & (numbers[1:] == numbers[:-1]))])
            offsets, counts = offsets[kept], np.bincount(numbers[kept], minlength=starts.size)
        return offsets, counts

    def digest(self) -> str:
        """32 hexadecimal digits of the sizes of both files and of samples of their bytes, in constant time.

        They tell another shard, another order of documents or another tokenizer from this one. A few changed bytes in
        the middle of a large file can escape; `megacpt shards verify` reads all of it.
        """
        return sampled_digest((self.idx_path, self.bin_path))

    def verify(self, vocab_size: int | None = None) -> None:
        """Read the whole shard and check what opening it cannot.

        Raises:
            DataError: sequences overlap or leave gaps, document indices fall, or an id is outside the vocabulary.
        """
        ends, index = np.int64(0), _open(self)
        for at in range(0, index.pointers.size, _SCAN_ENTRIES):
            lengths = index.lengths[at : at + _SCAN_ENTRIES].astype(np.int64)
            expected = ends + np.cumsum(lengths) * self.dtype.itemsize
            starts = np.concatenate(([ends], expected[:-1]))
            wrong = np.flatnonzero((index.pointers[at : at + _SCAN_ENTRIES] != starts) | (lengths < 0))
            if wrong.size:
                sequence = at + int(wrong[0])
                raise self._broken(
                    f"sequence {sequence} does not begin where the one before it ends",
                    f"byte {index.pointers[sequence]:,}",
                    f"{starts[wrong[0]]:,}",
                )
            ends = expected[-1]
        for at in range(0, self.num_documents, _SCAN_ENTRIES):
            falls = np.flatnonzero(np.diff(index.document_indices[at : at + _SCAN_ENTRIES + 1]) < 0)
            if falls.size:
                raise self._broken(f"document {at + int(falls[0])} ends before it begins", None, "rising indices")
        for at in range(0, self.num_tokens, _SCAN_ENTRIES):
            ids = self.read(at, min(_SCAN_ENTRIES, self.num_tokens - at))
            lowest, highest = int(ids.min()), int(ids.max())
            if lowest < 0 or (vocab_size is not None and highest >= vocab_size):
                raise DataError(
                    "a token id outside the vocabulary",
                    where=f"{self.bin_path}, tokens {at:,} to {at + ids.size:,}",
                    found=lowest if lowest < 0 else highest,
                    expected="0 or more" if vocab_size is None else f"0 to {vocab_size - 1}",
                    hint="The shard is damaged, or was built with another tokenizer.",
                )

    def __reduce__(self) -> tuple[type[Shard], tuple[Path]]:
        """Pickle the path: a worker process maps the file itself instead of receiving a copy of it."""
        return Shard, (self.prefix,)

    def __repr__(self) -> str:
        return f"Shard({str(self.prefix)!r}: {self.num_documents:,} documents, {self.num_tokens:,} {self.dtype} tokens)"

    def _header(self, index: NDArray[np.uint8]) -> tuple[np.dtype, int, int]:
        """dtype, number of sequences and number of document entries."""
        if index.size < _HEADER.size or index[: len(MAGIC)].tobytes() != MAGIC:
            raise self._broken("this is no IndexedDataset index", index[: len(MAGIC)].tobytes(), MAGIC)
        _, version, code, num_sequences, num_entries = _HEADER.unpack(index[: _HEADER.size].tobytes())
        if version != VERSION:
            raise self._broken("the index has another format version", version, VERSION)
        if code not in DTYPES:
            raise self._broken("the index names an unknown dtype code", code, f"one of {', '.join(map(str, DTYPES))}")
        if DTYPES[code].kind == "f":
            raise self._broken("the shard holds no token ids", DTYPES[code], "an integer dtype")
        return DTYPES[code], num_sequences, num_entries

    def _document_offsets(self, index: _OpenShard, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where documents begin, in tokens; the one after the last begins at the end."""
        sequences = index.document_indices[documents]
        if not index.pointers.size:
            return np.zeros_like(documents)
        offsets = index.pointers[np.minimum(sequences, index.pointers.size - 1)] // self.dtype.itemsize
        return np.where(sequences < index.pointers.size, offsets, self.num_tokens)

    def _guess(self, index: _OpenShard, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """About which document begins at each token: [N]."""
        mean, last = max(self.num_tokens / self.num_documents, 1.0), self.num_documents - 1
        is_one_each = index.pointers.size == self.num_documents  # then a document is most likely a sequence
        guess: NDArray[np.float64] = tokens / mean
        for _ in range(_NUM_GUESSES):  # each from where the last one missed by: documents are alike enough on average
            documents = np.maximum(np.minimum(guess, last), 0).astype(np.int64)
            near = (
                index.pointers[documents] / self.dtype.itemsize
                if is_one_each
                else self._document_offsets(index, documents)
            )
            guess = documents + (tokens - near) / mean
        return guess

    def _nearby(
        self,
        index: _OpenShard,
        guess: NDArray[np.float64],
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        margin: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Look for each range's documents around a guess.

        Returns:
            The first document of each neighbourhood, and where its documents begin, in bytes: [N], [N, W]; in it the
            first that starts in the range or later, and the first behind the range: [N], [N]; and the ranges that reach
            beyond their neighbourhood: [missed].
        """
        length = int(2 * (stops - starts).max() * self.num_documents / self.num_tokens)
        width = min(2 * margin + min(length, 1000), self.num_documents)
        left = np.maximum(np.minimum(guess - margin, self.num_documents - width), 0).astype(np.int64)
        begins = self._windows(index, left, width)
        before = begins < (starts * self.dtype.itemsize)[:, None]
        inside = begins < (stops * self.dtype.itemsize)[:, None]
        is_behind, is_ahead = ~before[:, 0] & (left > 0), inside[:, -1] & (left + width < self.num_documents)
        return left, begins, before.sum(axis=1), inside.sum(axis=1), np.flatnonzero(is_behind | is_ahead)

    def _documents_between(
        self, index: _OpenShard, guess: NDArray[np.float64], starts: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each range the first document that starts in it or later, and the first behind it: [N], [N]."""
        left, _, first, last, missed = self._nearby(index, guess, starts, stops, _MARGINS[1])
        first, last = left + first, left + last
        if missed.size:
            first[missed] = self._first_documents(index, starts[missed])
            last[missed] = self._first_documents(index, stops[missed])
        return first, last

    def _windows(self, index: _OpenShard, left: NDArray[np.int64], width: int) -> NDArray[np.int64]:
        """Where the `width` documents from each `left` on begin, in bytes: [N, width].

        Runs of neighbours are copied whole: a tenth of the time of fetching them one by one.
        """
        sequences = sliding_window_view(index.document_indices[:-1], width)[left]
        is_one_each = (sequences == sequences[:, :1] + np.arange(width)).all()
        if is_one_each and sequences[:, -1].max() < index.pointers.size:
            return sliding_window_view(index.pointers, width)[sequences[:, 0]]
        return self._document_offsets(index, left[:, None] + np.arange(width)) * self.dtype.itemsize

    def _first_documents(self, index: _OpenShard, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each token the first document that starts there or later; num_documents if none does."""
        low, high = np.zeros_like(tokens), np.full_like(tokens, self.num_documents)
        for _ in range(self.num_documents.bit_length()):
            middle = (low + high) >> 1
            before = (self._document_offsets(index, middle) < tokens) & (low < high)
            low, high = np.where(before, middle + 1, low), np.where(before, high, middle)
        return low

    def _broken(self, message: str, found: object, expected: object) -> DataError:
        hint = "The file is damaged or of another kind; build or copy it again."
        return DataError(message, where=str(self.idx_path), found=found, expected=expected, hint=hint)


class _IndexParts(NamedTuple):
    """Where the parts of an index end, in bytes."""

    lengths_end: int
    pointers_end: int
    size: int

    @classmethod
    def of(cls, num_sequences: int, num_entries: int) -> _IndexParts:
        lengths_end = _HEADER.size + 4 * num_sequences
        return cls(lengths_end, lengths_end + 8 * num_sequences, lengths_end + 8 * (num_sequences + num_entries))

    def views(self, index: NDArray[np.uint8]) -> tuple[NDArray, NDArray, NDArray]:
        """Lengths, pointers, document indices."""
        lengths, pointers = index[_HEADER.size : self.lengths_end], index[self.lengths_end : self.pointers_end]
        return lengths.view("<i4"), pointers.view("<i8"), index[self.pointers_end : self.size].view("<i8")


class _OpenShard:
    """The files of a shard while they are open: the index as arrays, the tokens as a file descriptor.

    They are closed when nobody reads from them any more, whichever thread that is.
    """

    def __init__(self, shard: Shard) -> None:
        self.lengths, self.pointers, self.document_indices = shard._index_parts.views(_map(shard.idx_path))
        self.bin = os.open(shard.bin_path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.bin)


@lru_cache(maxsize=MAX_OPEN_SHARDS)
def _open(shard: Shard) -> _OpenShard:
    return _OpenShard(shard)


def sampled_digest(paths: Sequence[Path]) -> str:
    """32 hexadecimal digits of the sizes of files and of samples of their bytes, in constant time."""
    content = hashlib.blake2b(digest_size=16)
    for path in paths:
        size = path.stat().st_size
        content.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            for number in range(_DIGEST_SAMPLES):
                file.seek(max(size - _DIGEST_BYTES, 0) * number // (_DIGEST_SAMPLES - 1))
                content.update(file.read(_DIGEST_BYTES))
    return content.hexdigest()


class ShardWriter:
    """Writes a shard document by document; nothing with its final name exists before `close`.

    As a context manager it closes on success and discards on an exception. Memory: 4 bytes a document.

    Attributes:
        num_tokens, num_documents: written so far.
        bin_sha256, idx_sha256: checksums of the two files, known after `close`.
    """

    def __init__(self, prefix: str | os.PathLike[str], dtype: np.dtype | type | str) -> None:
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        codes = [code for code, known in DTYPES.items() if known == self.dtype and known.kind != "f"]
        if not codes:
            raise DataError("a shard cannot store this dtype", found=self.dtype, expected="u1, i1, i2, u2, i4 or i8")
        self._code = codes[0]
        self._bin = AtomicFile(Path(f"{prefix}.bin"))
        self._lengths = array("i")
        self.num_tokens = 0
        self.bin_sha256 = self.idx_sha256 = ""

    @property
    def num_documents(self) -> int:
        return len(self._lengths)

    def add_document(self, ids: ArrayLike) -> None:
        """Append one document, stored as one sequence."""
        ids = np.asarray(ids)
        self.add_documents(ids, [ids.size])

    def add_documents(self, ids: NDArray, lengths: Sequence[int] | NDArray) -> None:
        """Append many documents at once: their ids end to end, and the number of tokens of each.

        Raises:
            DataError: an id does not fit the dtype, or a document has 2**31 tokens or more.
        """
        lengths = np.asarray(lengths, np.int64)
        if lengths.sum() != ids.size:
            raise ValueError(f"{ids.size} ids for documents of {lengths.sum()} tokens")
        if lengths.size and lengths.max() > np.iinfo(np.int32).max:
            raise DataError("a document is too long for a shard", found=f"{lengths.max():,} tokens", expected="< 2**31")
        if ids.size and not np.can_cast(ids.dtype, self.dtype):
            limits = np.iinfo(self.dtype)
            if ids.min() < limits.min or ids.max() > limits.max:
                raise DataError(
                    "a token id does not fit the shard's dtype",
                    where=str(self.prefix),
                    found=f"ids from {ids.min()} to {ids.max()}",
                    expected=f"{limits.min} to {limits.max} ({self.dtype})",
                )
        self._bin.write(np.ascontiguousarray(ids, self.dtype).data)
        self._lengths.frombytes(lengths.astype(np.intc).tobytes())
        self.num_tokens += ids.size

    def close(self) -> None:
        """Make the shard durable under its final name: both files are synced first, and the index appears last."""
        lengths = np.frombuffer(self._lengths, np.intc).astype("<i4")
        pointers = np.zeros(lengths.size, "<i8")
        np.cumsum(lengths[:-1], out=pointers[1:], dtype=np.int64)
        pointers *= self.dtype.itemsize
        with AtomicFile(Path(f"{self.prefix}.idx")) as index:
            index.write(_HEADER.pack(MAGIC, VERSION, self._code, lengths.size, lengths.size + 1))
            for part in (lengths, pointers, np.arange(lengths.size + 1, dtype="<i8")):
                index.write(part.data)
            self.bin_sha256 = self._bin.commit()
        self.idx_sha256 = index.sha256

    def discard(self) -> None:
        """Remove what was written; the shard never existed."""
        self._bin.discard()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


class AtomicFile:
    """A file that appears complete or not at all: temporary name, fsync, rename, fsync of the folder.

    As a context manager it commits on success and discards on an exception.

    Raises:
        OSError: naming the file, of which nothing is left: a full disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._file = self._temporary.open("wb")
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Checksum of what was written so far."""
        return self._hash.hexdigest()

    def write(self, data: bytes | memoryview) -> None:
        with self._named():
            self._file.write(data)
        self._hash.update(data)

    def commit(self) -> str:
        """Give the file its name; returns its sha256."""
        with self._named():
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return self.sha256

    def discard(self) -> None:
        with suppress(OSError):  # what is still buffered has no room either
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.discard()
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def __enter__(self) -> AtomicFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()


def _map(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, mapped read-only."""
    if path.stat().st_size == 0:
        return np.empty(0, np.uint8)
    return np.memmap(path, np.uint8, "r").view(np.ndarray)


def ranges(first: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers [first, first + count) of each pair, end to end."""
    return np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)


def _check_range(start: int, stop: int, size: int) -> None:
    if not 0 <= start <= stop <= size:
        raise IndexError(f"[{start}, {stop}) is not inside [0, {size})")
