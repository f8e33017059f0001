"""One domain as one long sequence of tokens, however many shards it lies in.

Offsets are absolute: token 0 is the first of the first shard. A document never crosses a shard's border, so every
shard begins with a document.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow
from numpy.typing import NDArray

from megacpt.data.manifest import NUMBER, UNFINISHED, Manifest, TokenizerRecord, read_manifest, stacked
from megacpt.data.token_files import TokenFile, open_token_file
from megacpt.errors import DataError

PathLike: TypeAlias = str | os.PathLike[str]


class Corpus:
    """The shards of one domain, end to end.

    Attributes:
        num_tokens: of all shards.
        text_bytes: UTF-8 bytes of the text, or None where a shard has no manifest that would say.
        tokenizer: what made the ids, or None where no manifest says.
        folders: where the columns of the documents are, if every shard is of a folder with a manifest.
    """

    def __init__(
        self,
        shards: Sequence[TokenFile],
        *,
        text_bytes: int | None = None,
        tokenizer: TokenizerRecord | None = None,
        folders: Sequence[tuple[Path, Manifest]] = (),
    ) -> None:
        self.shards = tuple(shards)
        self.folders = tuple(folders)
        self.text_bytes = text_bytes
        self.tokenizer = tokenizer
        self._offsets = [0]
        for shard in self.shards:
            self._offsets.append(self._offsets[-1] + shard.num_tokens)
        self.num_tokens = self._offsets[-1]

    @cached_property
    def num_documents(self) -> int:
        """Documents, empty ones included; raw token files are scanned for it."""
        return sum(shard.num_documents for shard in self.shards)

    @property
    def fingerprint(self) -> str | None:
        """The tokenizer's fingerprint, or None where no manifest says."""
        return self.tokenizer.fingerprint if self.tokenizer else None

    @property
    def shard_names(self) -> tuple[str, ...]:
        """What its shards are called, in reading order."""
        return tuple(shard.name for shard in self.shards)

    @cached_property
    def shard_digests(self) -> tuple[str, ...]:
        """`Shard.digest` of each shard, in reading order."""
        return tuple(shard.digest() for shard in self.shards)

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Tokens [start, start + count) as a fresh int64 array, across shard borders."""
        tokens = np.empty(count, np.int64)
        for shard, begin, end, first in self._pieces(start, start + count):
            tokens[first + begin - start : first + end - start] = shard.read(begin, end - begin)
        return tokens

    def read_into(self, out: NDArray, places: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        """Fill `out[place]` with the tokens from `start` on, for each place and start; out: [rows, count]."""
        shards, inside = self._shards_of(starts, out.shape[1])
        for i in np.flatnonzero(shards < 0):
            out[places[i]] = self.read(int(starts[i]), out.shape[1])
        for at in np.unique(shards[shards >= 0]):
            asked = shards == at
            self.shards[at].read_into(out, places[asked].tolist(), inside[asked].tolist())

    def will_need(self, starts: NDArray[np.int64], count: int) -> None:
        """Let the system fetch `count` tokens from each start on, without waiting for them."""
        shards, inside = self._shards_of(starts, count)
        for at in np.unique(shards[shards >= 0]):
            self.shards[at].will_need(inside[shards == at].tolist(), count)

    def document_starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Absolute token offsets d of document starts with start <= d < stop, ascending, each once; int64."""
        pieces = [first + shard.document_starts(begin, end) for shard, begin, end, first in self._pieces(start, stop)]
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def document_starts_many(
        self, starts: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The `document_starts` of many ranges of one length, end to end, and how many each range has: [M], [N]."""
        length = int((stops - starts).max(initial=0))
        shards, inside = self._shards_of(starts, length)
        found: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * starts.size
        for i in np.flatnonzero(shards < 0):
            found[i] = self.document_starts(int(starts[i]), int(stops[i]))
        for at in np.unique(shards[shards >= 0]):
            asked = np.flatnonzero(shards == at)
            offsets, counts = self.shards[at].document_starts_many(inside[asked], stops[asked] - self._offsets[at])
            if asked.size == starts.size:
                return offsets + self._offsets[at], counts
            for i, part in zip(asked, np.split(offsets + self._offsets[at], np.cumsum(counts)[:-1]), strict=True):
                found[i] = part
        return np.concatenate([*found, np.empty(0, np.int64)]), np.array([len(part) for part in found], np.int64)

    def _shards_of(self, starts: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shard that each [start, start + count) lies in, -1 where it crosses a border, and where in it."""
        offsets = np.array(self._offsets)
        shards = np.searchsorted(offsets, starts, side="right") - 1
        shards = np.minimum(shards, len(self.shards) - 1)
        crosses = (starts < 0) | (starts + count > offsets[shards + 1])
        return np.where(crosses, -1, shards), starts - offsets[shards]

    def document_offsets(self) -> NDArray[np.int64]:
        """Absolute token offsets of all documents, and the end: int64 [num_documents + 1]."""
        pairs = zip(self._offsets, self.shards, strict=False)
        pieces = [offset + shard.document_offsets()[:-1] for offset, shard in pairs]
        return np.concatenate([*pieces, [self.num_tokens]])

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """The columns that any of its shards keeps; corpora without manifests keep none."""
        shards = [shard for _, manifest in self.folders for shard in manifest.shards]
        return tuple(dict.fromkeys(name for shard in shards for file in shard.columns for name in file.names))

    def columns(self, names: Sequence[str]) -> pyarrow.Table:
        """The named columns of all documents, in reading order; those that nobody kept are left out.

        Where a shard does not keep a column its values are null. Corpora without manifests keep none.
        """
        if not self.folders:
            return pyarrow.table({NUMBER: np.arange(self.num_documents)})
        return stacked([manifest.read_columns(folder, names) for folder, manifest in self.folders])

    def _pieces(self, start: int, stop: int) -> list[tuple[TokenFile, int, int, int]]:
        """(shard, first and last + 1 token inside it, the shard's absolute offset) of the shards in [start, stop)."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens [{start}, {stop}) are not inside [0, {self.num_tokens})")
        pieces = []
        at = bisect_right(self._offsets, start) - 1
        while start < stop:
            first, last = self._offsets[at], self._offsets[at + 1]
            end = min(stop, last)
            if end > start:
                pieces.append((self.shards[at], start - first, end - first, first))
            start, at = end, at + 1
        return pieces

    def __repr__(self) -> str:
        return f"Corpus({len(self.shards)} shards, {self.num_documents:,} documents, {self.num_tokens:,} tokens)"


def open_corpus(paths: PathLike | Sequence[PathLike]) -> Corpus:
    """Open a domain.

    Args:
        paths: any mixture of folders with a manifest.json, Megatron shards (prefix, .bin or .idx) and the files of
            `megacpt.data.token_files`, in reading order; a * stands for what it matches, sorted.

    Raises:
        DataError: nothing there, a broken shard, a manifest that contradicts its files, or different tokenizers.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    shards: list[TokenFile] = []
    folders: list[tuple[Path, Manifest]] | None = []
    text_bytes: int | None = 0
    tokenizer: TokenizerRecord | None = None
    named_by = ""
    for name in (name for path in paths for name in _matching(os.fspath(path))):
        path = Path(name)
        if path.is_dir():
            manifest = read_manifest(path)
            shards += manifest.open_shards(path)
            text_bytes = None if text_bytes is None else text_bytes + manifest.bytes
            if folders is not None:
                folders.append((path, manifest))
            if tokenizer is not None and tokenizer.fingerprint != manifest.tokenizer.fingerprint:
                raise DataError(
                    "shards of one domain were built with different tokenizers",
                    where=str(path),
                    found=f"{manifest.tokenizer.name}, fingerprint {manifest.tokenizer.fingerprint[:12]}",
                    expected=f"{tokenizer.name}, fingerprint {tokenizer.fingerprint[:12]}, as in {named_by}",
                    hint="Build all of them with the tokenizer of the model.",
                )
            tokenizer, named_by = manifest.tokenizer, str(path)
        else:
            if (path.parent / UNFINISHED).exists():
                hint = "Let the build come to its end, and name its folder."
                raise DataError("this shard is of an unfinished build", where=str(path), hint=hint)
            shards.append(open_token_file(name))
            text_bytes = folders = None
    if not any(shard.num_tokens for shard in shards):
        raise DataError("there are no tokens here", where=", ".join(map(str, paths)) or "no path given")
    return Corpus(shards, text_bytes=text_bytes, tokenizer=tokenizer, folders=folders or ())


def _matching(name: str) -> list[str]:
    """What a name with a * matches, each with the parameters after its question mark; the name itself without a *."""
    pattern, mark, parameters = name.partition("?")
    if "*" not in pattern:
        return [name]
    return [f"{path}{mark}{parameters}" for path in sorted(glob(pattern, recursive=True))]
