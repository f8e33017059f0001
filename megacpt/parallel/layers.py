"""Linear layers and embeddings of which each tensor-parallel rank holds a part.

Named as in Megatron-LM (arXiv:1909.08053). A column-parallel layer holds rows of the weight (output features), a
row-parallel one columns (input features), a vocabulary-parallel embedding rows (tokens). None of them communicates on
entry: the module that contains them does so once for all (see `megacpt.model.cut`), so that q, k and v share one
collective. Parameters are made on the meta device and filled later from exactly the slice that the rank owns;
`parameter_slices` says which.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from megacpt.parallel.collectives import (
    gather_features,
    reduce_from_group,
    scatter_sum_sequence,
    split_features,
)
from megacpt.parallel.group import TensorGroup
from megacpt.parallel.products import linear
from megacpt.parallel.slices import Slice


def _meta(*shape: int, like: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=like.dtype, device="meta"), requires_grad=like.requires_grad)


class ColumnParallelLinear(nn.Module):
    """y = x W^T + b with my rows of W and b: [..., in] -> [..., out/size], or [..., out] if the output is gathered."""

    def __init__(self, linear: nn.Linear, group: TensorGroup, *, gather_output: bool = False) -> None:
        super().__init__()
        self.group = group
        self.gather_output = gather_output
        rows = linear.out_features // group.size
        self.weight = _meta(rows, linear.in_features, like=linear.weight)
        self.bias = None if linear.bias is None else _meta(rows, like=linear.bias)
        rows_of_mine = Slice(dim=0, index=group.rank, count=group.size)
        self.parameter_slices = {"weight": rows_of_mine, "bias": rows_of_mine}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = linear(x, self.weight, self.bias)
        return gather_features(y, self.group) if self.gather_output else y


class RowParallelLinear(nn.Module):
    """y = x W^T + b with my columns of W and my part of x; partial products are summed over the group, b added once."""

    def __init__(
        self, linear: nn.Linear, group: TensorGroup, *, split_input: bool = False, sequence_parallel: bool = False
    ) -> None:
        super().__init__()
        self.group = group
        self.split_input = split_input
        self.leave = scatter_sum_sequence if sequence_parallel else reduce_from_group
        self.weight = _meta(linear.out_features, linear.in_features // group.size, like=linear.weight)
        self.bias = None if linear.bias is None else _meta(linear.out_features, like=linear.bias)
        self.parameter_slices = {"weight": Slice(dim=1, index=group.rank, count=group.size)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.split_input:
            x = split_features(x, self.group)
        y = self.leave(linear(x, self.weight), self.group)
        return y if self.bias is None else y + self.bias


class VocabularyParallelEmbedding(nn.Module):
    """Token embeddings with my rows of the (padded) vocabulary: ids [B, S] -> [B, S, D], or [B, S/size, D].

    Args:
        embedding: the whole embedding, on the meta device.
        group: the tensor-parallel group.
        padded_size: the number of rows after padding, a multiple of the group's size.
        scale: a factor on every embedding (Gemma), rounded to the weight's dtype as transformers does.
        sequence_parallel: leave with the sequence split over the group.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        group: TensorGroup,
        *,
        padded_size: int,
        scale: float | None = None,
        sequence_parallel: bool = False,
    ) -> None:
        super().__init__()
        self.group = group
        self.scale = scale
        self.leave = scatter_sum_sequence if sequence_parallel else reduce_from_group
        rows = padded_size // group.size
        self.first_row = group.rank * rows
        self.weight = _meta(rows, embedding.embedding_dim, like=embedding.weight)
        self.parameter_slices = {"weight": Slice(dim=0, index=group.rank, count=group.size, padded=padded_size)}
        padding_row = None if embedding.padding_idx is None else embedding.padding_idx - self.first_row
        self.padding_row = padding_row if padding_row is not None and 0 <= padding_row < rows else None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = ids - self.first_row
        if self.group.size > 1:
            elsewhere = (rows < 0) | (rows >= self.weight.shape[0])
            rows = rows.masked_fill(elsewhere, 0)
        # With a padding row at 0, ids held elsewhere would share its zero gradient: they are masked below anyway.
        hidden = F.embedding(rows, self.weight, padding_idx=self.padding_row)
        if self.group.size > 1:
            hidden = hidden.masked_fill(elsewhere[..., None], 0)
        hidden = self.leave(hidden, self.group)
        return hidden if self.scale is None else hidden * torch.tensor(self.scale).to(self.weight.dtype)
