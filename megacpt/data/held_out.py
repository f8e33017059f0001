"""Held-out text of a domain as micro-batches: every token predicted once, the same tokens for any layout.

Unlike training, evaluation does not drop the last, partial row: it is padded. Where only a part is evaluated, its rows
are taken at equal distances from the whole, since files are often sorted by source.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import overload

import numpy as np

from megacpt.data.batch import MicroBatch, collate
from megacpt.data.mixture import Int64s
from megacpt.data.rows import TokenSource, read_rows
from megacpt.errors import DataError


class HeldOut:
    """The held-out text of one domain.

    Args:
        source: its tokens.
        sequence_length: tokens predicted in a row, S; best that of training.
        max_tokens: evaluate about so many, in whole rows, at least one; None: all.
        domain: the number to give the domain in the micro-batches.
        document_mask: whether documents are kept apart (see `megacpt.data.batch`).

    Raises:
        DataError: if there is nothing to predict: fewer than two tokens.
    """

    def __init__(
        self,
        source: TokenSource,
        sequence_length: int,
        max_tokens: int | None = None,
        domain: int = 0,
        document_mask: bool = True,
    ) -> None:
        if source.num_tokens < 2:
            raise DataError("held-out text needs two tokens or more", found=source.num_tokens)
        self.source = source
        self.sequence_length = sequence_length
        self.domain = domain
        self.document_mask = document_mask
        num_rows = -(-(source.num_tokens - 1) // sequence_length)
        num_evaluated = num_rows if max_tokens is None else min(num_rows, max(1, max_tokens // sequence_length))
        self.rows: Int64s = np.arange(num_evaluated) * num_rows // num_evaluated
        """The rows that are evaluated."""

    @cached_property
    def num_tokens(self) -> int:
        """Tokens that are predicted. The first of a document is not, nor (without a document mask) of the corpus."""
        return sum(self._num_labels(row * self.sequence_length, self.sequence_length) for row in self.rows.tolist())

    @cached_property
    def num_bytes(self) -> float | None:
        """UTF-8 bytes of the predicted text, None where the corpus does not know its own.

        Bytes are known for the corpus as a whole; a part has the share of them that it has of the predicted tokens.
        Bits per byte are then the summed loss / ln 2 / num_bytes.
        """
        if self.source.text_bytes is None:
            return None
        return self.source.text_bytes * self.num_tokens / self._num_labels(0, self.source.num_tokens)

    def _num_labels(self, start: int, length: int) -> int:
        stop = min(start + length + 1, self.source.num_tokens)
        num_masked = len(self.source.document_starts(start + 1, stop)) if self.document_mask else 0
        return stop - start - 1 - num_masked

    def batches(self, micro_rows: int, dp_rank: int = 0, dp_size: int = 1) -> Sequence[MicroBatch]:
        """Return a data-parallel rank's micro-batches: equally many on every rank, each made when it is asked for.

        Weights are 1 where there is a label. The last micro-batches may end with rows that hold none.
        """
        return _HeldOutBatches(self, micro_rows, dp_rank, dp_size)


class _HeldOutBatches(Sequence[MicroBatch]):
    """One rank's micro-batches, which are not kept in memory."""

    def __init__(self, held_out: HeldOut, micro_rows: int, dp_rank: int, dp_size: int) -> None:
        self.held_out = held_out
        num_batches = -(-len(held_out.rows) // (micro_rows * dp_size))
        beyond = -(-held_out.source.num_tokens // held_out.sequence_length)  # a row behind the last token: padding
        rows = np.full(num_batches * dp_size * micro_rows, beyond)
        rows[: len(held_out.rows)] = held_out.rows
        self.rows = rows.reshape(num_batches, dp_size, micro_rows)[:, dp_rank]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> MicroBatch: ...
    @overload
    def __getitem__(self, index: slice) -> list[MicroBatch]: ...
    def __getitem__(self, index: int | slice) -> MicroBatch | list[MicroBatch]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        held_out = self.held_out
        rows = read_rows(held_out.source, self.rows[index], held_out.sequence_length)
        num_rows = len(rows.tokens)
        return collate(rows, [held_out.domain] * num_rows, np.ones(num_rows), held_out.document_mask)
