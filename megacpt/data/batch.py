"""Rows of tokens as the tensors that the model and the loss take.

A label is the next token of the same document. Where the next token begins another document (or, in held-out text, is
padding) there is nothing to predict: the label is `IGNORE_INDEX` and the weight zero. Positions start again at every
document, so that each document is read as if it stood alone; attention takes the boundaries from there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megacpt.data.rows import Rows

IGNORE_INDEX = -100
"""The label of a token that predicts nothing."""


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """B rows of S tokens: what one forward pass of one data-parallel rank takes."""

    input_ids: torch.Tensor
    """[B, S] int64."""
    positions: torch.Tensor
    """[B, S] int64: distance from the start of the document, or of the row where the document began in another."""
    labels: torch.Tensor
    """[B, S] int64: the token to predict, or `IGNORE_INDEX`."""
    weights: torch.Tensor
    """[B, S] float32: what a token's loss counts, 0 where the label is ignored. Summing weight * loss over all
    micro-batches of all data-parallel ranks in a step gives the weighted mean of the global batch: nothing is left to
    divide by."""
    domains: torch.Tensor
    """[B, S] int64: number of the domain, or of its part (`megacpt.data.stream.Stream.counted`)."""

    def split(self, num_rows: int) -> list[MicroBatch]:
        """Return the rows as micro-batches of `num_rows` each, without copying them."""
        parts = zip(*(getattr(self, field.name).split(num_rows) for field in fields(self)), strict=True)
        return [MicroBatch(*part) for part in parts]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MicroBatch:
        """Return the micro-batch on another device."""
        return MicroBatch(*(getattr(self, field.name).to(device, non_blocking=non_blocking) for field in fields(self)))


def collate(rows: Rows, domains: npt.ArrayLike, label_weights: npt.ArrayLike, document_mask: bool = True) -> MicroBatch:
    """Return B rows as a micro-batch.

    Args:
        rows: the rows.
        domains: [B] number of each row's domain, or [B, S] of each label's.
        label_weights: of the same shape: weight of each of the row's labels, or of each label.
        document_mask: whether documents end predictions and restart positions; else a row is one text.
    """
    labels = rows.tokens[:, 1:].astype(np.int64)
    weights = _of_labels(label_weights, np.float32, labels.shape)
    if document_mask:
        borders = rows.borders
        labels[borders] = IGNORE_INDEX
        weights[borders] = 0
    for padded in np.flatnonzero(rows.num_tokens <= labels.shape[1]):
        labels[padded, max(rows.num_tokens[padded] - 1, 0) :] = IGNORE_INDEX
        weights[padded, max(rows.num_tokens[padded] - 1, 0) :] = 0
    return MicroBatch(
        input_ids=torch.from_numpy(rows.tokens[:, :-1].astype(np.int64)),
        positions=torch.from_numpy(_positions(rows, document_mask)),
        labels=torch.from_numpy(labels),
        weights=torch.from_numpy(weights),
        domains=torch.from_numpy(_of_labels(domains, np.int64, labels.shape)),
    )


def _positions(rows: Rows, document_mask: bool) -> npt.NDArray[np.int64]:
    """[B, S] distances from the starts of documents: sums of steps of one, and at a start of a step back to zero."""
    num_rows, width = rows.tokens.shape
    steps = np.ones((num_rows, width - 1), dtype=np.int64)
    steps[:, 0] = 0
    if document_mask:
        row, column = np.divmod(rows.document_starts, width)
        is_inside = (column > 0) & (column < width - 1)
        lengths = np.diff(rows.document_starts, prepend=0)
        steps[row[is_inside], column[is_inside]] = 1 - lengths[is_inside]
    return np.cumsum(steps, axis=1, out=steps)


def _of_labels(values: npt.ArrayLike, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Values of rows [B], or of labels [B, S], as values of labels, in an array of its own."""
    return np.broadcast_to(np.asarray(values, dtype=dtype).reshape(shape[0], -1), shape).copy()
