"""Rows of tokens as the tensors that the model and the loss take.

A label is the next token of the same document. Where the next token begins another document (or, in held-out text, is
padding) there is nothing to predict: the label is `IGNORE_INDEX` and the weight zero. Positions start again at every
document, so that each document is read as if it stood alone; attention takes the boundaries from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from megacpt.data.mixture import Int64s
from megacpt.data.stream import Row

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
    """[B, S] int64: number of the domain."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MicroBatch:
        """Return the micro-batch on another device."""
        return MicroBatch(*(getattr(self, field.name).to(device, non_blocking=non_blocking) for field in fields(self)))


def collate(
    rows: Sequence[Row], domains: npt.ArrayLike, row_weights: npt.ArrayLike, document_mask: bool = True
) -> MicroBatch:
    """Return rows as a micro-batch.

    Args:
        rows: B rows of the same S.
        domains: [B] number of each row's domain.
        row_weights: [B] weight of each of the row's labels.
        document_mask: whether documents end predictions and restart positions; else a row is one text.
    """
    labels = np.stack([_labels(row, document_mask) for row in rows])
    weights = np.where(labels != IGNORE_INDEX, np.asarray(row_weights)[:, None], 0)
    return MicroBatch(
        input_ids=torch.from_numpy(np.stack([row.tokens[:-1] for row in rows])),
        positions=torch.from_numpy(np.stack([_positions(row, document_mask) for row in rows])),
        labels=torch.from_numpy(labels),
        weights=torch.from_numpy(weights.astype(np.float32)),
        domains=torch.from_numpy(np.broadcast_to(np.asarray(domains, dtype=np.int64)[:, None], labels.shape).copy()),
    )


def _labels(row: Row, document_mask: bool) -> Int64s:
    labels = row.tokens[1:].copy()
    labels[max(row.num_tokens - 1, 0) :] = IGNORE_INDEX
    if document_mask:
        labels[row.document_starts[1:] - 1] = IGNORE_INDEX
    return labels


def _positions(row: Row, document_mask: bool) -> Int64s:
    positions = np.arange(len(row.tokens))
    if document_mask:
        positions -= np.repeat(row.document_starts, np.diff(row.document_starts, append=len(row.tokens)))
    return positions[:-1]
