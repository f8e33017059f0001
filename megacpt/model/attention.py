"""Attention that stops at document boundaries, behind transformers' attention interface.

A decoder layer passes its `attention_mask` on untouched, so megacpt hands it a `Mask` and registers backends that read
it: `sdpa` (torch's scaled-dot-product attention with a dense mask, any device), `eager` (plain matrix products, with a
softcap on the scores where the model has one), `varlen` (torch's variable-length attention, CUDA) and
`flash_attention_2` (the flash-attn package, CUDA). Boundaries come from the positions, which restart at 0 in each
document.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

from megacpt.errors import ModelError
from megacpt.parallel.products import is_slow


class Documents:
    """Where the documents of one micro-batch lie.

    Args:
        positions: [B, S] int64; 0 at the start of every document and of every row.
    """

    def __init__(self, positions: torch.Tensor) -> None:
        self.starts = positions == 0
        self.shape = positions.shape
        self._dense: dict[int | None, torch.Tensor | None] = {}

    @cached_property
    def cu_seqlens(self) -> torch.Tensor:
        """Cumulative lengths of all documents of all rows, laid end to end: int32 [num_documents + 1]."""
        starts = self.starts.flatten().nonzero().flatten().to(torch.int32)
        return F.pad(starts, (0, 1), value=self.starts.numel())

    @property
    def lengths(self) -> torch.Tensor:
        """[B, S] int64: the length of each token's document."""
        numbers = self.starts.flatten().cumsum(0) - 1
        lengths = torch.zeros_like(numbers).index_add_(0, numbers, torch.ones_like(numbers))
        return lengths[numbers].view(self.shape)

    def dense(self, window: int | None) -> torch.Tensor | None:
        """[B, 1, S, S] bool, True where a token (row) sees another (column); None where plain causality says it all."""
        if window not in self._dense:
            self._dense[window] = self._build(window)
        return self._dense[window]

    def _build(self, window: int | None) -> torch.Tensor | None:
        num_rows, length = self.shape
        if (window is None or window >= length) and int(self.starts.sum()) == num_rows:
            return None
        ids = self.starts.cumsum(1)
        order = torch.arange(length, device=ids.device)
        distance = order[:, None] - order[None, :]
        near = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        return (near & (ids[:, :, None] == ids[:, None, :]))[:, None]


class Mask:
    """What one layer attends to: the documents of the micro-batch, and how far back."""

    def __init__(self, documents: Documents, window: int | None) -> None:
        self.documents = documents
        self.window = window


def _repeat_heads(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """[B, K, S, H] -> [B, N, S, H]: each key-value head serves N/K query heads."""
    return tensor if tensor.shape[1] == num_heads else tensor.repeat_interleave(num_heads // tensor.shape[1], dim=1)


def sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Mask,
    *,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """torch's scaled-dot-product attention. query [B, N, S, H], key and value [B, K, S, H] -> [B, S, N, H]."""
    if softcap is not None:
        return eager(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, softcap=softcap)
    mask = attention_mask.documents.dense(attention_mask.window)
    key, value = (_repeat_heads(tensor, query.shape[1]) for tensor in (key, value))
    dtype = query.dtype
    if is_slow(query):
        query, key, value = query.float(), key.float(), value.float()
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
    )
    return out.to(dtype).transpose(1, 2).contiguous(), None


def eager(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Mask,
    *,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(cap(q k^T * scaling)) v by plain matrix products, the softmax in fp32. Shapes as `sdpa`."""
    key, value = (_repeat_heads(tensor, query.shape[1]) for tensor in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    mask = attention_mask.documents.dense(attention_mask.window)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32).to(query.dtype)
    out = F.dropout(weights, dropout, training=module.training) @ value
    return out.transpose(1, 2).contiguous(), None


def flash(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Mask,
    *,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """flash-attn's variable-length kernel (Dao 2023, arXiv:2307.08691). Shapes as `sdpa`; bf16 or fp16 on CUDA."""
    from flash_attn import flash_attn_varlen_func

    num_rows, num_heads, length, width = query.shape
    window = attention_mask.window
    out = flash_attn_varlen_func(
        *(_lay_end_to_end(tensor) for tensor in (query, key, value)),
        cu_seqlens_q=attention_mask.documents.cu_seqlens,
        cu_seqlens_k=attention_mask.documents.cu_seqlens,
        max_seqlen_q=length,
        max_seqlen_k=length,
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),
        softcap=softcap or 0.0,
    )
    return out.view(num_rows, length, num_heads, width), None


def varlen(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Mask,
    *,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """torch's own variable-length kernel; what it cannot do (softcap, dropout) goes through `sdpa`."""
    from torch.nn.attention.varlen import varlen_attn

    num_rows, num_heads, length, width = query.shape
    if softcap is not None or dropout:
        return sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, softcap=softcap)
    bounds, window = attention_mask.documents.cu_seqlens, attention_mask.window
    grouped: dict[str, Any] = {}
    if "enable_gqa" in _varlen_parameters():
        grouped["enable_gqa"] = True
    else:  # torch 2.11
        key, value = _repeat_heads(key, num_heads), _repeat_heads(value, num_heads)
    out = varlen_attn(
        _lay_end_to_end(query),
        _lay_end_to_end(key),
        _lay_end_to_end(value),
        bounds,
        bounds,
        length,
        length,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    assert isinstance(out, torch.Tensor)  # it is a pair only where the log-sum-exp is asked for
    return out.view(num_rows, length, num_heads, width), None


def _lay_end_to_end(tensor: torch.Tensor) -> torch.Tensor:
    """[B, N, S, H] -> [B * S, N, H]."""
    return tensor.transpose(1, 2).flatten(0, 1)


BACKENDS: dict[str, Callable[..., tuple[torch.Tensor, None]]] = {
    "sdpa": sdpa,
    "eager": eager,
    "flash_attention_2": flash,
    "varlen": varlen,
}


def choose_attention(requested: str, device_type: str, dtype: torch.dtype) -> str:
    """The backend to use: the one requested, or the fastest that this machine has.

    Args:
        requested: a name of `BACKENDS`, or "auto".
        device_type: "cuda" or "cpu".
        dtype: of the activations; the CUDA kernels want bf16 or fp16.

    Raises:
        ModelError: the requested backend cannot run here.
    """
    half_on_cuda = device_type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    runnable = {
        "flash_attention_2": half_on_cuda and importlib.util.find_spec("flash_attn") is not None,
        "varlen": half_on_cuda and "window_size" in _varlen_parameters(),  # windows say causality, too
        "sdpa": True,
        "eager": True,
    }
    if requested == "auto":
        return next(name for name, runs in runnable.items() if runs)
    if requested not in runnable:
        raise ModelError(
            "unknown attention backend",
            where="model.attention",
            found=requested,
            expected=", ".join(["auto", *runnable]),
        )
    if not runnable[requested]:
        raise ModelError(
            f"attention '{requested}' cannot run here",
            where="model.attention",
            found=f"{device_type}, {dtype}",
            hint="It needs CUDA, bf16 or fp16, and its package; 'auto' takes the fastest that runs.",
        )
    return requested


@functools.cache
def _varlen_parameters() -> frozenset[str]:
    """What this torch's variable-length attention takes; nothing where it has none."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return frozenset()
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def register(backend: str) -> str:
    """Make `backend` known to transformers; returns the name that goes into a config's `_attn_implementation`."""
    name = f"megacpt_{backend}"
    AttentionInterface.register(name, BACKENDS[backend])
    return name
