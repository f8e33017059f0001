"""Matrix products in bf16 on CPUs that have no bf16 arithmetic.

There torch multiplies bf16 one to two orders slower than fp32 (9 against 83 GFLOP/s on one AVX2 core of an AMD EPYC).
Multiplying in fp32 and rounding the result gives what bf16 units give, which also add up in fp32: a pilot on a laptop
computes what the cluster computes. Weights, activations and gradients stay bf16 in memory.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


@functools.cache
def cpu_has_bf16() -> bool:
    """oneDNN has bf16 kernels for this CPU (AVX-512 and newer)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_slow(tensor: torch.Tensor) -> bool:
    """Products of this tensor's dtype are slow where it lies."""
    return tensor.dtype is torch.bfloat16 and tensor.device.type == "cpu" and not cpu_has_bf16()


class _LinearInFp32(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        x, weight = ctx.saved_tensors
        wide = grad.flatten(0, -2).float()
        grad_x = (wide @ weight.float()).to(x.dtype).view_as(x) if ctx.needs_input_grad[0] else None
        grad_weight = (wide.T @ x.flatten(0, -2).float()).to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad_bias = wide.sum(0).to(weight.dtype) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b: `F.linear`, made in fp32 and rounded where bf16 products are slow."""
    return _LinearInFp32.apply(x, weight, bias) if is_slow(x) else F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` whose product is `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


def use_fast_products(module: nn.Module) -> None:
    """Have every `nn.Linear` below `module` multiply through `linear`; parameters and their names stay."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear
