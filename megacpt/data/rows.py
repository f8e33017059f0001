"""A text as rows of equal length: where a row's tokens lie, where documents start in it, how many labels that leaves.

Two ways to cut it. `Concat` lays documents end to end and cuts wherever a row's edge falls: row k reads the tokens
[k*S, k*S + S], so nothing is lost, and where a row lies is a product. `BestFit` keeps documents whole where they fit
(`megacpt.data.packing`). Either answers for any row at once and alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from megacpt.data.mixture import Int64s
from megacpt.data.packing import WINDOW_ROWS, best_fit, window_of

Tokens: TypeAlias = npt.NDArray[np.int32]
"""Ids as shards of large vocabularies store them, so that rows are read without a conversion."""

KEPT_WINDOWS = 4096
"""Packed windows that are kept, of all texts together: those of a global batch, which are asked for its labels, then
for its rows. 24 bytes a document: with documents of 80 tokens, 49 KiB each where a row has 8192."""


class TokenSource(Hashable, Protocol):
    """What rows are read from, a domain's corpus: one sequence of tokens that knows where its documents start."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""

    @property
    def num_documents(self) -> int:
        """Documents, empty ones included."""

    @property
    def text_bytes(self) -> int | None:
        """UTF-8 bytes of the text that became these tokens, where that is known."""

    @property
    def fingerprint(self) -> str | None:
        """What identifies the tokenizer that made them, where that is known."""

    @property
    def shard_digests(self) -> tuple[str, ...]:
        """A digest of each shard's content, in reading order."""

    def read(self, start: int, count: int) -> Int64s:
        """Return `count` tokens from token `start` on, as an array of its own."""

    def document_starts(self, start: int, stop: int) -> Int64s:
        """Return the rising, distinct offsets d of documents' first tokens with start <= d < stop."""

    def read_into(self, out: Tokens, places: Int64s, starts: Int64s) -> None:
        """Fill `out[places[i]]` with the tokens from `starts[i]` on; out: [rows, tokens of each]."""

    def document_starts_many(self, starts: Int64s, stops: Int64s) -> tuple[Int64s, Int64s]:
        """Return the `document_starts` of many ranges of one length, end to end, and how many each has: [M], [N]."""

    def will_need(self, starts: Int64s, count: int) -> None:
        """Let the system fetch `count` tokens from each start on, if it can, without waiting for them."""


class OneByOne:
    """The reads of many rows at once as loops over the reads of one, for a source that has nothing faster."""

    def read_into(self: TokenSource, out: Tokens, places: Int64s, starts: Int64s) -> None:
        for place, start in zip(places.tolist(), starts.tolist(), strict=True):
            out[place] = self.read(start, out.shape[1])

    def document_starts_many(self: TokenSource, starts: Int64s, stops: Int64s) -> tuple[Int64s, Int64s]:
        found = [self.document_starts(*each) for each in zip(starts.tolist(), stops.tolist(), strict=True)]
        counts = np.array([len(each) for each in found], dtype=np.int64)
        return np.concatenate([*found, np.empty(0, dtype=np.int64)]), counts

    def will_need(self, starts: Int64s, count: int) -> None:
        """Nothing to fetch."""


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows of tokens, S of them predicted in each."""

    tokens: Tokens
    """[N, S + 1]: of each row the first S are read, the last S predicted."""
    document_starts: Int64s
    """Rising offsets into the flat `tokens` where documents or rows start."""
    num_tokens: Int64s
    """[N] how many of a row's tokens are text; what follows is padding. S + 1 but at the end of held-out text."""

    @property
    def borders(self) -> tuple[Int64s, Int64s]:
        """(row, column) of every label that is the first token of a document: the one before does not predict it."""
        row, offset = np.divmod(self.document_starts, self.tokens.shape[1])
        return row[offset > 0], offset[offset > 0] - 1


class CutText(Protocol):
    """A text that is cut into rows."""

    def read_into(self, out: Tokens, places: Int64s, rows: Int64s) -> tuple[Int64s, Int64s]:
        """Read rows into `out[places]`: [.., S + 1].

        Returns:
            Where in the flat `out` documents start inside them, in no order: [M]; and the tokens of each: [N].
        """

    def count_starts(self, rows: Int64s) -> Int64s:
        """Return how many documents start inside each row, its first token left out, without reading a token: [N]."""

    def stretches(self, rows: Int64s) -> tuple[Int64s, Int64s, Int64s]:
        """Return what rows consist of, one after the other, without reading a token.

        Returns:
            Of each stretch of one document its first token in the text, and its tokens in the row: [M], [M]; and how
            many stretches each row has: [N].
        """

    def will_need(self, rows: Int64s) -> None:
        """Let the system fetch rows, without waiting for them."""


class Concat:
    """Documents end to end. A row behind the end of the text is padded with zeros, as a document of their own."""

    def __init__(self, source: TokenSource, sequence_length: int) -> None:
        self.source = source
        self.sequence_length = sequence_length

    def read_into(self, out: Tokens, places: Int64s, rows: Int64s) -> tuple[Int64s, Int64s]:
        """See `CutText`."""
        source, width = self.source, out.shape[1]
        starts = rows * self.sequence_length
        num_tokens = np.clip(source.num_tokens - starts, 0, width)
        whole = num_tokens == width
        source.read_into(out, places[whole], starts[whole])
        for place, start, count in zip(places[~whole], starts[~whole], num_tokens[~whole], strict=True):
            out[place] = 0
            if count:
                out[place, :count] = source.read(int(start), int(count))
        some = num_tokens > 0
        found, counts = source.document_starts_many(starts[some] + 1, starts[some] + num_tokens[some])
        found = found + np.repeat(places[some] * width - starts[some], counts)
        padding = (places * width + num_tokens)[some & ~whole]
        return np.concatenate([found, padding]), num_tokens

    def count_starts(self, rows: Int64s) -> Int64s:
        """See `CutText`."""
        starts = rows * self.sequence_length + 1
        return self.source.document_starts_many(starts, starts + self.sequence_length)[1]

    def stretches(self, rows: Int64s) -> tuple[Int64s, Int64s, Int64s]:
        """See `CutText`; of rows inside the text."""
        starts = rows * self.sequence_length
        stops = starts + self.sequence_length + 1
        found, counts = self.source.document_starts_many(starts + 1, stops)
        ends = np.cumsum(counts)
        first, last = np.insert(found, ends - counts, starts), np.insert(found, ends, stops)
        return first, last - first, counts + 1

    def will_need(self, rows: Int64s) -> None:
        """See `CutText`."""
        self.source.will_need(rows * self.sequence_length, self.sequence_length + 1)


class BestFit:
    """Whole documents where they fit, windows of `WINDOW_ROWS` rows packed one by one. Every row is full.

    Args:
        source: the text.
        sequence_length: S; a row has S + 1 tokens of its own.
        edges: rows where windows begin anew (`window_of`): text that was added changes no row before it.
    """

    def __init__(self, source: TokenSource, sequence_length: int, edges: Sequence[int]) -> None:
        self.source = source
        self.row_tokens = sequence_length + 1
        self.edges = edges

    def read_into(self, out: Tokens, places: Int64s, rows: Int64s) -> tuple[Int64s, Int64s]:
        """See `CutText`."""
        found = []
        for place, (starts, lengths) in zip(places.tolist(), self._pieces(rows), strict=True):
            ends = np.cumsum(lengths)
            found.append(place * self.row_tokens + ends[:-1])
            for begin, count, at in _merged(starts, lengths):
                out[place, at : at + count] = self.source.read(begin, count)
        return np.concatenate([*found, np.empty(0, np.int64)]), np.full(rows.size, self.row_tokens)

    def count_starts(self, rows: Int64s) -> Int64s:
        """See `CutText`."""
        return np.array([starts.size - 1 for starts, _ in self._pieces(rows)], np.int64)

    def stretches(self, rows: Int64s) -> tuple[Int64s, Int64s, Int64s]:
        """See `CutText`."""
        starts, lengths = zip(*self._pieces(rows), strict=True)
        return np.concatenate(starts), np.concatenate(lengths), np.array([each.size for each in starts], np.int64)

    def will_need(self, rows: Int64s) -> None:
        """See `CutText`."""
        for starts, lengths in self._pieces(rows):
            for begin, count, _ in _merged(starts, lengths):
                self.source.will_need(np.array([begin]), count)

    def _pieces(self, rows: Int64s) -> Iterator[tuple[Int64s, Int64s]]:
        """Where the pieces of each row begin in the text, ascending, and their tokens."""
        for row in rows.tolist():
            first, last = window_of(row, self.edges)
            yield _packed(self.source, self.row_tokens, first, last)[row - first]


@lru_cache(maxsize=KEPT_WINDOWS)
def _packed(source: TokenSource, row_tokens: int, first: int, last: int) -> list[tuple[Int64s, Int64s]]:
    """Of each row of a window where its pieces begin in the text, and their tokens."""
    begin, end = first * row_tokens, last * row_tokens
    starts = source.document_starts(begin + 1, end)
    lengths = np.diff(starts, prepend=begin, append=end)
    packed = best_fit(lengths.tolist(), last - first, row_tokens)
    pieces = [np.array(row, np.int64) for row in packed]
    return [(begin + row[:, 0], row[:, 1]) for row in pieces]


def _merged(starts: Int64s, lengths: Int64s) -> Iterator[tuple[int, int, int]]:
    """(first token, tokens, place in the row) of a row's pieces, neighbours in the text as one."""
    places = np.cumsum(lengths) - lengths
    first = np.flatnonzero(np.diff(starts - places, prepend=-1) != 0)
    counts = np.diff(places[first], append=places[-1] + lengths[-1])
    return zip(starts[first].tolist(), counts.tolist(), places[first].tolist(), strict=True)


def read_rows(source: TokenSource, rows: Int64s, sequence_length: int) -> Rows:
    """Return rows of a corpus whose documents lie end to end."""
    tokens = np.empty((len(rows), sequence_length + 1), dtype=np.int32)
    places = np.arange(len(rows))
    starts, num_tokens = Concat(source, sequence_length).read_into(tokens, places, rows)
    return Rows(tokens, np.sort(np.concatenate([places * tokens.shape[1], starts])), num_tokens)


@dataclass(frozen=True)
class CutDocuments:
    """What a way to cut rows does to documents, as shares of those with two tokens or more."""

    best_fit: float
    concat: float


def cut_documents(source: TokenSource, sequence_length: int, num_windows: int = 64) -> CutDocuments:
    """Measure how many documents are in more than one row, in windows at equal distances over the text."""
    row_tokens = sequence_length + 1
    num_rows = source.num_tokens // row_tokens
    firsts = np.arange(0, num_rows, WINDOW_ROWS)
    documents = cut_packed = cut_concat = 0
    for first in firsts[np.linspace(0, len(firsts) - 1, min(num_windows, len(firsts))).astype(int)].tolist():
        _, last = window_of(first, (0, num_rows))
        begin, end = first * row_tokens, last * row_tokens
        starts = source.document_starts(begin, end)
        crosses = end < source.num_tokens and not source.document_starts(end, end + 1).size
        stops = np.append(starts[1:], end + crosses)
        whole = stops - starts > 1
        documents += int(whole.sum())
        pieces = np.concatenate([row for row, _ in _packed(source, row_tokens, first, last)])
        num_pieces = np.bincount(np.searchsorted(starts, pieces, side="right"), minlength=len(starts) + 1)[1:]
        num_pieces[-1:] += crosses
        cut_packed += int((num_pieces[whole] > 1).sum())
        cut_concat += int((starts // sequence_length != (stops - 2) // sequence_length)[whole].sum())
    return CutDocuments(cut_packed / max(documents, 1), cut_concat / max(documents, 1))
