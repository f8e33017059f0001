"""Collectives that autograd knows: what the forward does to an activation, the backward undoes to its gradient.

    function              forward            backward           used at
    copy_to_group         nothing            all-reduce         the entry of a column-parallel region
    reduce_from_group     all-reduce         nothing            the exit of a row-parallel region
    gather_sequence       all-gather (S)     reduce-scatter     the entry, with sequence parallelism
    scatter_sum_sequence  reduce-scatter (S) all-gather         the exit, with sequence parallelism
    gather_features       all-gather (last)  my slice           a column-parallel output that everybody needs whole
    split_features        my slice (last)    all-gather         a whole activation entering a row-parallel layer
    split_sequence        my slice (S)       all-gather         a replicated activation entering a sequence-parallel
    region

The first four are Megatron-LM's f, g and their sequence-parallel forms (Shoeybi et al. 2019, arXiv:1909.08053;
Korthikanti et al. 2022, arXiv:2205.05198). Activations are [B, S, width]; the sequence is dim 1.
"""

from __future__ import annotations

from typing import Any

import torch

from megacpt.parallel.group import TensorGroup

SEQUENCE_DIM = 1
FEATURE_DIM = -1


def _gather(tensor: torch.Tensor, group: TensorGroup, dim: int) -> torch.Tensor:
    dim %= tensor.dim()
    return group.all_gather(tensor).movedim(0, dim).flatten(dim, dim + 1)  # with one row, no copy


def _slice(tensor: torch.Tensor, group: TensorGroup, dim: int) -> torch.Tensor:
    return tensor.chunk(group.size, dim)[group.rank].contiguous()


class _CopyToGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: TensorGroup) -> torch.Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.group.all_reduce(grad.clone()), None


class _ReduceFromGroup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: TensorGroup) -> torch.Tensor:
        return group.all_reduce(tensor.clone())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: TensorGroup) -> torch.Tensor:
        ctx.group = group
        return _gather(tensor, group, SEQUENCE_DIM)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.group.reduce_scatter(grad, SEQUENCE_DIM), None


class _ScatterSumSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: TensorGroup) -> torch.Tensor:
        ctx.group = group
        return group.reduce_scatter(tensor, SEQUENCE_DIM)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _gather(grad, ctx.group, SEQUENCE_DIM), None


class _GatherReplicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: TensorGroup, dim: int) -> torch.Tensor:
        ctx.group, ctx.dim = group, dim
        return _gather(tensor, group, dim)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _slice(grad, ctx.group, ctx.dim), None, None


class _SplitReplicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: TensorGroup, dim: int) -> torch.Tensor:
        ctx.group, ctx.dim = group, dim
        return _slice(tensor, group, dim)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _gather(grad, ctx.group, ctx.dim), None, None


def copy_to_group(tensor: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Enter a column-parallel region: the ranks' partial input gradients are summed on the way back."""
    return tensor if group.size == 1 else _CopyToGroup.apply(tensor, group)


def reduce_from_group(tensor: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Leave a row-parallel region: the ranks' partial outputs are summed."""
    return tensor if group.size == 1 else _ReduceFromGroup.apply(tensor, group)


def gather_sequence(tensor: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Enter a column-parallel region from sequence-parallel activations: [B, S/size, D] -> [B, S, D]."""
    return tensor if group.size == 1 else _GatherSequence.apply(tensor, group)


def scatter_sum_sequence(tensor: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Leave a row-parallel region into sequence-parallel activations: [B, S, D] -> [B, S/size, D]."""
    return tensor if group.size == 1 else _ScatterSumSequence.apply(tensor, group)


def gather_features(tensor: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Join a column-parallel output that every rank then uses whole, in the same way."""
    return tensor if group.size == 1 else _GatherReplicated.apply(tensor, group, FEATURE_DIM)


def split_features(tensor: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Keep my part of a whole activation on its way into a row-parallel layer."""
    return tensor if group.size == 1 else _SplitReplicated.apply(tensor, group, FEATURE_DIM)


def split_sequence(tensor: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    """Keep my part of the sequence of a replicated activation: [B, S, D] -> [B, S/size, D]."""
    return tensor if group.size == 1 else _SplitReplicated.apply(tensor, group, SEQUENCE_DIM)
