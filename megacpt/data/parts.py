"""The parts of a domain: its documents told apart by a column that is kept beside the shards.

A row holds documents of several parts, so each of its labels is counted as one of its own part. What is held are runs
of neighbouring documents of one part, in the order in which the text is read: 9 bytes each, for where a run begins and
which part it is. The column is read once, when the text is opened.
"""

from __future__ import annotations

import numpy as np
import pyarrow

from megacpt.data.corpus import Corpus
from megacpt.data.mixture import Int64s
from megacpt.data.view import View, columns_of
from megacpt.errors import DataError

MAX_PARTS = 64
"""Of a domain: each is counted at every step."""

NO_VALUE = "none"
"""The part of documents without a value."""

_NUM_SHOWN = 8


def domain_of(counted: str) -> str:
    """The domain of what labels are counted as, of "web/arxiv" or of "web"."""
    return counted.partition("/")[0]


class Parts:
    """Which part of a domain every token is of.

    Args:
        names: of the parts.
        numbers: the part of each document, as its place in `names`: [documents].
        lengths: the tokens of each document, none of them empty, in the order in which they are read: [documents].

    Attributes:
        names: of the parts.
        num_tokens: part -> its tokens.
    """

    def __init__(self, names: tuple[str, ...], numbers: Int64s, lengths: Int64s) -> None:
        first = np.flatnonzero(np.diff(numbers, prepend=-1))
        self._starts = (np.cumsum(lengths) - lengths)[first]
        self._numbers = numbers[first].astype(np.uint8)
        self.names = names
        num_tokens = np.bincount(numbers, lengths, len(names)).astype(np.int64)
        self.num_tokens: dict[str, int] = dict(zip(names, num_tokens.tolist(), strict=True))

    def of(self, tokens: Int64s) -> Int64s:
        """The parts, as places in `names`, of tokens of the text: [N]."""
        return self._numbers[np.searchsorted(self._starts, tokens, side="right") - 1].astype(np.int64)


def divide(text: Corpus | View, column: str) -> Parts:
    """The parts of a text by the values of a column of its documents, in the order of the values as text.

    Raises:
        DataError: a column that is not there, or of other values than text, whole numbers, truth values and dates; or
            it has too many different ones.
    """
    whole = text.corpus if isinstance(text, View) else text
    lengths = np.diff(whole.document_offsets())
    values = columns_of(whole, {column: f"parts_by {column}"}, lengths).column(column)
    if pyarrow.types.is_floating(values.type) or pyarrow.types.is_nested(values.type):
        raise DataError(
            f"documents are not told apart by such values as {column!r} has",
            where=f"parts_by {column}",
            found=values.type,
            expected="text, whole numbers, truth values or dates",
        )
    coded = values.cast(pyarrow.large_string()).fill_null(NO_VALUE).dictionary_encode().combine_chunks()
    codes = coded.indices.to_numpy()
    if isinstance(text, View):
        documents = text.documents()
        codes, lengths = codes[documents], lengths[documents]
    codes, lengths = codes[lengths > 0], lengths[lengths > 0]
    present, numbers, counts = np.unique(codes, return_inverse=True, return_counts=True)
    if present.size > MAX_PARTS:
        commonest = present[np.argsort(-counts, kind="stable")[:_NUM_SHOWN]]
        raise DataError(
            f"the column {column!r} has too many different values",
            where=f"parts_by {column}",
            found=f"{present.size:,}; the commonest are {', '.join(coded.dictionary.take(commonest).to_pylist())}",
            expected=f"at most {MAX_PARTS}",
            hint="Keep a coarser column, or leave documents out by `where`.",
        )
    names = coded.dictionary.take(present).to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    return Parts(tuple(names[number] for number in order), np.argsort(order)[numbers], lengths)
