"""Token files of other makers, read where they lie.

    OLMo         PART.npy?dtype=uint32&eos_id=100257     raw ids, end to end; a document ends with EOS
    datatrove    PART.ds, with PART.ds.index             raw ids; the index holds where each document ends (uint64)

OLMo's files carry the name of numpy's format but not its header, so the dtype has to be said; a real .npy says it
itself. Only the tokens tell where their documents end, so a file is scanned once, at the speed of the disk, when
their number is asked for; where the documents of a row begin is seen in the row.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from megacpt.data.shard import Shard, sampled_digest
from megacpt.errors import DataError

_NPY_MAGIC = b"\x93NUMPY"
_DTYPES = ("uint8", "uint16", "uint32", "uint64", "int16", "int32", "int64")
_SCAN_TOKENS = 1 << 22


class TokenFile(Protocol):
    """What a corpus needs of a file of tokens; `megacpt.data.shard.Shard` says what each means."""

    name: str
    num_tokens: int

    @property
    def num_documents(self) -> int: ...
    def read(self, start: int, count: int) -> NDArray: ...
    def read_into(self, out: NDArray, places: Sequence[int], starts: Sequence[int]) -> None: ...
    def will_need(self, starts: Iterable[int], count: int) -> None: ...
    def document_starts(self, start: int, stop: int) -> NDArray[np.int64]: ...
    def document_starts_many(
        self, starts: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
    def document_offsets(self) -> NDArray[np.int64]: ...
    def digest(self) -> str: ...


def open_token_file(name: str) -> TokenFile:
    """Open a Megatron shard (prefix, .bin or .idx), an OLMo .npy or a datatrove .ds.

    Raises:
        DataError: nothing there, or not what its name says.
    """
    path, _, parameters = name.partition("?")
    if path.endswith(".npy"):
        return SeparatedTokens(name)
    if parameters:
        raise DataError("only raw .npy files have parameters", where=name)
    if path.endswith(".ds"):
        return DatatroveTokens(path)
    return Shard(Path(path).with_suffix("") if path.endswith((".bin", ".idx")) else path)


class _MappedTokens(ABC):
    """Ids in a mapped file."""

    path: Path
    _tokens: NDArray

    def read(self, start: int, count: int) -> NDArray:
        """Tokens [start, start + count), as a read-only view of the mapped file."""
        return self._tokens[start : start + count]

    def read_into(self, out: NDArray, places: Sequence[int], starts: Sequence[int]) -> None:
        """Fill `out[place]` with the tokens from `start` on, for each place and start; out: [rows, count]."""
        for place, start in zip(places, starts, strict=True):
            out[place] = self.read(start, out.shape[1])

    def will_need(self, starts: Iterable[int], count: int) -> None:
        """Let the system fetch `count` tokens from each start on, without waiting for them."""
        size = self._tokens.itemsize
        with self.path.open("rb") as file:
            for start in starts:
                os.posix_fadvise(file.fileno(), start * size, count * size, os.POSIX_FADV_WILLNEED)

    @abstractmethod
    def document_starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Token offsets d of document starts with start <= d < stop, ascending, each once."""

    def document_starts_many(
        self, starts: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The `document_starts` of many ranges, end to end, and how many each range has: [M], [N]."""
        found = [self.document_starts(*bounds) for bounds in zip(starts.tolist(), stops.tolist(), strict=True)]
        return np.concatenate([np.empty(0, np.int64), *found]), np.array([len(part) for part in found], np.int64)


class SeparatedTokens(_MappedTokens):
    """Raw ids with an EOS after each document; `name` is the path and its parameters, `dtype` and `eos_id`.

    Attributes:
        num_tokens, dtype, eos_id: as the parameters and the file say.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        path, _, parameters = name.partition("?")
        self.path = Path(path)
        given = dict(parse_qsl(parameters, strict_parsing=bool(parameters)))
        if not self.path.is_file():
            raise DataError("there is no such file", where=path)
        with self.path.open("rb") as file:
            has_header = file.read(len(_NPY_MAGIC)) == _NPY_MAGIC
        expected = f"{path}?dtype=uint32&eos_id=100257"
        if set(given) - {"dtype", "eos_id"} or not given.get("eos_id", "").isdigit():
            raise DataError("raw tokens need the id that ends a document", where=name, expected=expected)
        self.eos_id = int(given["eos_id"])
        if has_header:
            tokens = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if tokens.ndim != 1 or tokens.dtype.kind not in "ui":
                raise DataError("the file holds no token ids", where=path, found=f"{tokens.dtype}{list(tokens.shape)}")
            self._tokens: NDArray = tokens.view(np.ndarray)
        elif given.get("dtype") not in _DTYPES:
            found = given.get("dtype", "no dtype")
            raise DataError(
                "the file has no header, so its dtype has to be said", where=name, found=found, expected=expected
            )
        else:
            self._tokens = _mapped(self.path, np.dtype(given["dtype"]).newbyteorder("<"))
        self.dtype = self._tokens.dtype
        self.num_tokens = self._tokens.size

    @cached_property
    def num_documents(self) -> int:
        """Documents; the last needs no EOS."""
        return self.document_offsets().size - 1

    def document_starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Seen in the tokens: what follows an EOS."""
        before = max(start - 1, 0)
        starts = before + 1 + np.flatnonzero(self._tokens[before : max(stop - 1, before)] == self.eos_id)
        return np.concatenate(([0], starts)) if start == 0 < stop else starts

    def document_offsets(self) -> NDArray[np.int64]:
        """Where every document begins, and the end: int64 [documents + 1]."""
        return self._offsets

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        places = range(0, self.num_tokens, _SCAN_TOKENS)
        starts = [self.document_starts(at, min(at + _SCAN_TOKENS, self.num_tokens)) for at in places]
        return np.concatenate([*starts, [self.num_tokens]])

    def digest(self) -> str:
        """Of samples of the content."""
        return f"{sampled_digest((self.path,))}-{self.dtype.name}-{self.eos_id}"

    def __reduce__(self) -> tuple[type[SeparatedTokens], tuple[str]]:
        return SeparatedTokens, (self.name,)


class DatatroveTokens(_MappedTokens):
    """A .ds file with its index.

    Attributes:
        num_tokens, num_documents, dtype: as the index and the size of the file say.
    """

    def __init__(self, name: str) -> None:
        self.name, self.path, self.index_path = name, Path(name), Path(f"{name}.index")
        for path in (self.path, self.index_path):
            if not path.is_file():
                raise DataError("there is no such file", where=str(path))
        if self.index_path.stat().st_size % 8:
            raise DataError("the index is cut short", where=str(self.index_path))
        self._ends = _mapped(self.index_path, np.dtype("<u8"))
        self.num_documents = self._ends.size
        self.num_tokens = int(self._ends[-1]) if self.num_documents else 0
        size_bytes = self.path.stat().st_size
        itemsizes = {2 * self.num_tokens: "<u2", 4 * self.num_tokens: "<u4"}
        if size_bytes not in itemsizes:
            raise DataError(
                "the file is not as long as its index says",
                where=name,
                found=f"{size_bytes:,} bytes",
                expected=f"2 or 4 for each of {self.num_tokens:,} tokens",
            )
        self.dtype = np.dtype(itemsizes[size_bytes])
        self._tokens = _mapped(self.path, self.dtype)

    def document_starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Found in the index by bisection."""
        first, last = np.searchsorted(self._ends, np.array([start, stop], np.uint64))
        starts = np.unique(self._ends[first:last].astype(np.int64))
        return np.concatenate(([0], starts[starts > 0])) if start == 0 < stop else starts

    def document_offsets(self) -> NDArray[np.int64]:
        """Where every document begins, and the end: int64 [documents + 1]."""
        return np.concatenate(([0], self._ends.astype(np.int64)))

    def digest(self) -> str:
        """Of the sizes and samples of both files."""
        return sampled_digest((self.index_path, self.path))

    def __reduce__(self) -> tuple[type[DatatroveTokens], tuple[str]]:
        return DatatroveTokens, (str(self.path),)


def _mapped(path: Path, dtype: np.dtype) -> NDArray:
    if path.stat().st_size % dtype.itemsize:
        raise DataError("the file is no whole number of tokens", where=str(path), expected=f"{dtype.name} ids")
    return np.memmap(path, dtype, "r").view(np.ndarray) if path.stat().st_size else np.empty(0, dtype)
