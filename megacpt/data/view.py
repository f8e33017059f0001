"""Some of a domain's documents, or all in another order, without rewriting a shard: by what their columns say.

A view knows the runs of neighbouring documents that are kept, and how many tokens come before each; reading is a binary
search over these and a read of the corpus. It costs 16 bytes a run, and at opening one pass over the columns it needs.
In another order most runs are single documents, and a row is as many reads as it has documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow
import pyarrow.compute
from numpy.typing import NDArray

from megacpt.data.corpus import Corpus
from megacpt.data.hash_split import TEXT_HASH, column_is_held_out, is_text
from megacpt.data.manifest import NUMBER, TokenizerRecord
from megacpt.data.order import mix64
from megacpt.data.shard import ranges
from megacpt.data.where import Where
from megacpt.errors import DataError

NUM_TOKENS = "num_tokens"
"""A column that every corpus has: tokens of the document."""
TEXT_BYTES = "text_bytes"
_SEARCHED_RUNS = 1 << 12
"""Runs whose documents are looked for together: some 8 KiB each at worst."""


@dataclass(frozen=True)
class Subset:
    """Which documents of a domain are meant; `where` first, the others of what it leaves.

    Attributes:
        where: a condition on the columns (`megacpt.data.where`).
        rank_by: the column that `top_tokens` and `quantiles` go by; documents without a value are left out.
        top_tokens: the documents with the highest values, as many as it takes to have this many tokens.
        quantiles: (low, high): the documents between these shares of the tokens, in rising order of the value.
            Quantiles that share an edge share no document.
        held_out_share: the share of the documents that are not meant, by the hash of a column, whatever else is said.
        held_out_by: that column (`megacpt.data.hash_split`).
        is_held_out: these are meant, and no others.
    """

    where: str | None = None
    rank_by: str | None = None
    top_tokens: int | None = None
    quantiles: tuple[float, float] | None = None
    held_out_share: float = 0.0
    held_out_by: str = TEXT_HASH
    is_held_out: bool = False


@dataclass(frozen=True)
class Removed:
    """What one condition of a subset took away."""

    condition: str
    documents: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.condition} removes {self.documents:,} documents, {self.tokens:,} tokens"


class View:
    """Some documents of a corpus in some order, end to end. They can be read as a corpus is.

    Attributes:
        corpus: what it is a view of.
        num_tokens, num_documents, text_bytes, tokenizer: of these, as in `megacpt.data.corpus.Corpus`.
        removed: what each condition took away.
    """

    def __init__(
        self,
        corpus: Corpus,
        documents: NDArray[np.int64],
        *,
        name: str,
        text_bytes: int | None = None,
        removed: tuple[Removed, ...] = (),
    ) -> None:
        """`documents` are their numbers, each once; `name` tells this subset of the corpus from others."""
        offsets = corpus.document_offsets()
        edges = np.flatnonzero(np.diff(documents, prepend=-2, append=-2) != 1)
        starts, stops = offsets[documents[edges[:-1]]], offsets[documents[edges[1:] - 1] + 1]
        has_tokens = stops > starts
        self._starts = starts[has_tokens]
        self._offsets = np.concatenate(([0], np.cumsum((stops - starts)[has_tokens])))
        self._name = name
        self.corpus = corpus
        self.num_tokens = int(self._offsets[-1])
        self.num_documents = documents.size
        self.text_bytes = text_bytes
        self.tokenizer: TokenizerRecord | None = corpus.tokenizer
        self.removed = removed

    @property
    def fingerprint(self) -> str | None:
        """The tokenizer's."""
        return self.corpus.fingerprint

    @property
    def shard_names(self) -> tuple[str, ...]:
        """Those of the corpus."""
        return self.corpus.shard_names

    @property
    def shard_digests(self) -> tuple[str, ...]:
        """Those of the corpus."""
        return self.corpus.shard_digests

    @property
    def subset(self) -> str:
        """A digest of what the view keeps of the corpus, and in which order."""
        kept = hashlib.blake2b(self._name.encode(), digest_size=16)
        kept.update(self._starts.tobytes())
        kept.update(self._offsets.tobytes())
        return kept.hexdigest()

    def documents(self) -> NDArray[np.int64]:
        """The numbers in the corpus of its documents, in their order; empty ones only between others."""
        offsets = self.corpus.document_offsets()
        first = np.searchsorted(offsets, self._starts, side="right") - 1
        counts = np.searchsorted(offsets, self._starts + np.diff(self._offsets)) - first
        return ranges(first, counts)

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Tokens [start, start + count) of what is kept, as a fresh int64 array."""
        tokens = np.empty(count, np.int64)
        for begin, end, at in self._each_piece(start, start + count):
            tokens[begin - start : end - start] = self.corpus.read(at, end - begin)
        return tokens

    def document_starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Offsets d of document starts with start <= d < stop, ascending, each once; int64."""
        found = [np.empty(0, np.int64)]
        begins, ends, at = self._pieces(start, stop)
        for some in np.split(np.arange(begins.size), range(_SEARCHED_RUNS, begins.size, _SEARCHED_RUNS)):
            first = at[some]
            starts, counts = self.corpus.document_starts_many(first, first + ends[some] - begins[some])
            found.append(starts + np.repeat(begins[some] - first, counts))
        return np.concatenate(found)

    def read_into(self, out: NDArray, places: NDArray[np.int64], starts: NDArray[np.int64]) -> None:
        """Fill `out[place]` with the tokens from `start` on, for each place and start; out: [rows, count]."""
        whole, at = self._in_one_run(starts, out.shape[1])
        self.corpus.read_into(out, places[whole], at[whole])
        for place, start in zip(places[~whole].tolist(), starts[~whole].tolist(), strict=True):
            out[place] = self.read(start, out.shape[1])

    def document_starts_many(
        self, starts: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The `document_starts` of many ranges of one length, end to end, and how many each range has: [M], [N]."""
        whole, at = self._in_one_run(starts, int((stops - starts).max(initial=0)))
        if whole.all():
            found, counts = self.corpus.document_starts_many(at, at + stops - starts)
            return found + np.repeat(starts - at, counts), counts
        parts = [self.document_starts(*bounds) for bounds in zip(starts.tolist(), stops.tolist(), strict=True)]
        return np.concatenate(parts), np.array([len(part) for part in parts], np.int64)

    def will_need(self, starts: NDArray[np.int64], count: int) -> None:
        """Let the system fetch `count` tokens from each start on, without waiting for them."""
        for start in starts.tolist():
            for begin, end, at in self._each_piece(start, start + count):
                self.corpus.will_need(np.array([at]), end - begin)

    def _in_one_run(self, starts: NDArray[np.int64], count: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which [start, start + count) lie in one run, and where in the corpus they begin."""
        runs = np.clip(np.searchsorted(self._offsets, starts, side="right") - 1, 0, self._starts.size - 1)
        return starts + count <= self._offsets[runs + 1], self._starts[runs] + starts - self._offsets[runs]

    def _each_piece(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """`_pieces`, one by one."""
        return zip(*(part.tolist() for part in self._pieces(start, stop)), strict=True)

    def _pieces(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Where the runs in [start, stop) begin and end in the view, and begin in the corpus: [N], [N], [N]."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens [{start}, {stop}) are not inside [0, {self.num_tokens})")
        first = int(np.searchsorted(self._offsets, start, side="right")) - 1
        last = int(np.searchsorted(self._offsets, stop))
        begins = np.maximum(self._offsets[first:last], start)
        ends = np.minimum(self._offsets[first + 1 : last + 1], stop)
        return begins, ends, self._starts[first:last] + begins - self._offsets[first:last]

    def __repr__(self) -> str:
        return f"View({self.num_documents:,} documents, {self.num_tokens:,} tokens of {self.corpus!r})"


def select(corpus: Corpus, subset: Subset, order_by: str | None = None, descending: bool = False) -> View:
    """The documents of a corpus that a subset means.

    Args:
        corpus: all documents.
        subset: which of them.
        order_by: the column whose values, numbers or text, they come by; equals in an order without meaning, and
            documents without a value not at all. None: they come as the corpus has them.
        descending: by falling values.

    Raises:
        DataError: a column that is not there or cannot be compared, or nothing is left.
    """
    condition = Where(subset.where) if subset.where is not None else None
    lengths = np.diff(corpus.document_offsets())
    hashed_by = subset.held_out_by if subset.held_out_share else None
    asked_by = {name: f"condition {subset.where!r}" for name in (condition.names if condition else ())}
    named = {"rank_by": subset.rank_by, "order_by": order_by, "held_out_by": hashed_by}
    asked_by |= {name: f"{key} {name}" for key, name in named.items() if name is not None}
    columns = columns_of(corpus, asked_by, lengths)
    kept = np.ones(corpus.num_documents, np.bool_)
    removed: list[Removed] = []

    def keep(mask: NDArray[np.bool_], what: str) -> None:
        nonlocal kept
        falls = kept & ~mask
        removed.append(Removed(what, int(falls.sum()), int(lengths[falls].sum())))
        kept = kept & mask

    if hashed_by is not None:
        held_out = column_is_held_out(columns, hashed_by, subset.held_out_share)
        keep(held_out if subset.is_held_out else ~held_out, f"the split of {subset.held_out_share:g} by {hashed_by}")
    if condition is not None:
        keep(condition.mask(columns), f"where {condition.text}")
    if subset.rank_by is not None:
        ranked = _ranked(columns, subset.rank_by, kept)
        ends = np.cumsum(lengths[ranked])
        chosen = np.zeros(kept.size, np.bool_)
        if subset.top_tokens is not None:
            ends = np.cumsum(lengths[ranked[::-1]])
            num_chosen = int(np.searchsorted(ends, subset.top_tokens)) + 1
            chosen[ranked[::-1][:num_chosen]] = True
            keep(chosen, f"top_tokens {subset.top_tokens:,} by {subset.rank_by}")
        elif subset.quantiles is not None:
            low, high = subset.quantiles
            middles = (ends - lengths[ranked] / 2) / max(int(ends[-1]) if ends.size else 0, 1)
            chosen[ranked[(middles >= low) & (middles < high)]] = True
            keep(chosen, f"quantiles {low:g} to {high:g} of {subset.rank_by}")
    documents = np.flatnonzero(kept)
    if order_by is not None:
        documents = _ordered(columns, order_by, descending, documents)
        if documents.size < kept.sum():
            keep(np.isin(np.arange(kept.size), documents), f"order_by {order_by}")
    if not lengths[kept].sum():
        found = "; ".join(map(str, removed))
        raise DataError("no tokens are left of the domain", found=found, hint="Loosen its conditions.")
    text_bytes = corpus.text_bytes
    if not kept.all():
        has_bytes = TEXT_BYTES in columns.column_names and not columns.column(TEXT_BYTES).null_count
        text_bytes = int(columns.column(TEXT_BYTES).to_numpy()[kept].sum()) if has_bytes else None
    return View(corpus, documents, name=repr(subset), text_bytes=text_bytes, removed=tuple(removed))


def _ranked(columns: pyarrow.Table, name: str, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The numbers of the kept documents that have a value, by rising value; equals in their order."""
    column = columns.column(name)
    if not (pyarrow.types.is_integer(column.type) or pyarrow.types.is_floating(column.type)):
        raise DataError("documents are ranked by numbers", where=f"rank_by {name}", found=column.type)
    values = column.cast(pyarrow.float64()).to_numpy()
    numbers = np.flatnonzero(kept & ~np.isnan(values))
    return numbers[np.argsort(values[numbers], kind="stable")]


def _ordered(columns: pyarrow.Table, name: str, descending: bool, documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the documents that have a value, by it; equals by a hash of their number, for neighbours are alike."""
    values = columns.column(name).take(documents)
    if not any(kind(values.type) for kind in (pyarrow.types.is_integer, pyarrow.types.is_floating, is_text)):
        raise DataError("documents are ordered by numbers or text", where=f"order_by {name}", found=values.type)
    ties = mix64(documents.astype(np.uint64), np.uint64(0))
    table = pyarrow.table({"value": values, "tie": ties, "document": documents})
    known = pyarrow.compute.is_valid(values)
    if pyarrow.types.is_floating(values.type):
        known = pyarrow.compute.and_not(known, pyarrow.compute.is_nan(values).fill_null(False))
    by = [("value", "descending" if descending else "ascending"), ("tie", "ascending")]
    ordered: NDArray[np.int64] = table.filter(known).sort_by(by).column("document").to_numpy()
    return ordered


def columns_of(corpus: Corpus, asked_by: Mapping[str, str], lengths: NDArray[np.int64]) -> pyarrow.Table:
    """The columns that are asked for, and those that every corpus has.

    Args:
        corpus: whose documents.
        asked_by: column -> who asks for it, for messages.
        lengths: tokens of each document.

    Raises:
        DataError: nobody kept such a column.
    """
    kept = [name for name in corpus.column_names if name != NUM_TOKENS]
    for name, where in asked_by.items():
        if name not in (*kept, NUM_TOKENS):
            raise DataError(
                f"the documents have no column {name!r}",
                where=where,
                found=", ".join([*kept, NUM_TOKENS]),
                hint=f"Columns are kept by megacpt shards build --keep-columns {name}.",
            )
    columns = corpus.columns([name for name in kept if name in (*asked_by, TEXT_BYTES)])
    return columns.set_column(columns.column_names.index(NUMBER), NUM_TOKENS, pyarrow.array(lengths))
