"""The head's product, the weighted cross-entropy and both gradients in one op, a chunk of tokens at a time.

The weights come with the batch, so the gradients are made in the forward: three matrix products in all and one read and
write of the logits, of which only a chunk's ever exist. An op that learns its weights in the backward must hold all
logits or make them a second time.

The trade: the gradients wait from forward to backward (hidden's in its own type, the head's in single precision
until it is cast), and a chunk should have 1000 tokens or more, since each adds to the whole head gradient in memory.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from megacpt_kernels.exchange import Exchange, Gathering
from megacpt_kernels.replay_cross_entropy.objective import Objective
from megacpt_kernels.replay_cross_entropy.op import Kernel, LossOutput, Task

ROW_ALIGNMENT = 64
UNDERFLOW_GUARD = 1024.0
"""Factor of the logit gradients in float16, whose smallest normal number is 6e-5; the rows' scales take it back."""


def fused_linear_replay_cross_entropy(
    hidden_TD: Tensor,
    head_VD: Tensor,
    labels_T: Tensor,
    weights_T: Tensor | None,
    *,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    logit_scale: float = 1.0,
    label_smoothing: float = 0.0,
    domains_T: Tensor | None = None,
    num_domains: int = 0,
    exchange: Exchange | None = None,
    kernel: Kernel = "auto",
    chunk_tokens: int = 2048,
    compact: bool | None = None,
    grad_head_VD: Tensor | None = None,
) -> LossOutput:
    """`replay_cross_entropy(hidden_TD @ head_VD.T, ...)` without the logits.

    Args as there, and:
        hidden_TD: the last hidden states.
        head_VD: this rank's rows of the head, of hidden's type; padding rows get a gradient of zero.
        chunk_tokens: tokens whose logits exist at a time (two chunks' with an exchange, whose collective then overlaps
            with the next chunk's product).
        compact: leave the rows with an ignored label out of the products. How many are left is a number the host must
            wait for, so None means: on a CPU only.
        grad_head_VD: a single-precision buffer that the head's gradient is added to in the forward, instead of being
            handed to autograd. The loss must then be the very thing that is differentiated: scale the weights, not
            the loss; and the forward must not be repeated (no activation checkpointing around it).

    Returns:
        As there. With an exchange the gradient of `hidden_TD` is this slice's share: sum it over the ranks.
        Where neither input requires a gradient, none is made.

    Raises:
        ValueError: arguments that do not fit each other.
    """
    if head_VD.dim() != 2 or head_VD.shape[1:] != hidden_TD.shape[1:] or head_VD.dtype != hidden_TD.dtype:
        raise ValueError(
            f"hidden_TD {list(hidden_TD.shape)} {hidden_TD.dtype} and head_VD {list(head_VD.shape)} {head_VD.dtype} "
            "must be matrices of one width and type"
        )
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    objective = Objective.of_slice(
        len(head_VD),
        exchange.size if exchange else 1,
        vocab_start=vocab_start,
        vocab_size=vocab_size,
        ignore_index=ignore_index,
        z_loss=z_loss,
        softcap=softcap,
        logit_scale=logit_scale,
        label_smoothing=label_smoothing,
    )
    task = Task.of(hidden_TD, labels_T, weights_T, objective, exchange, kernel)
    if grad_head_VD is not None and (grad_head_VD.shape != head_VD.shape or grad_head_VD.dtype != torch.float32):
        raise ValueError(
            f"grad_head_VD must be float32 of head_VD's shape {list(head_VD.shape)}, "
            f"got {list(grad_head_VD.shape)} {grad_head_VD.dtype}"
        )
    if grad_head_VD is not None and hidden_TD.dtype == torch.float16:
        raise ValueError("grad_head_VD does not go with float16, whose gradients keep a unit of their own")
    differentiable = torch.is_grad_enabled()
    plan = _Plan(
        task,
        chunk_tokens,
        compact=hidden_TD.device.type == "cpu" if compact is None else compact,
        wants_hidden=differentiable and hidden_TD.requires_grad,
        wants_head=differentiable and (head_VD.requires_grad or grad_head_VD is not None),
        grad_head_VD=grad_head_VD,
    )
    loss, nll_T = cast(tuple[Tensor, Tensor], _FusedLoss.apply(hidden_TD, head_VD, plan))
    return LossOutput(loss, nll_T, task.domain_sums(nll_T, domains_T, num_domains))


class _Plan(NamedTuple):
    """One call: what is computed, and which gradients are wanted."""

    task: Task
    chunk_tokens: int
    compact: bool
    wants_hidden: bool
    wants_head: bool
    grad_head_VD: Tensor | None


class _FusedLoss(torch.autograd.Function):
    """Makes both gradients in the forward; the backward multiplies them by what comes from above and lets go of them."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, head_VD: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
        run = _Run(hidden_TD, head_VD, plan)
        run.all_chunks()
        ctx.run, ctx.dtype = run, hidden_TD.dtype
        ctx.mark_non_differentiable(run.nll_T)
        return run.loss_T.sum() * run.unit, run.nll_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, grad_nll_T: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if ctx.run is None:
            raise RuntimeError("the gradients were made in the forward and taken by an earlier backward")
        run: _Run = ctx.run
        ctx.run = None
        factor = grad_loss * run.unit
        hidden = None if run.grad_hidden_TD is None else _scaled(run.grad_hidden_TD, factor, ctx.dtype)
        owned_by_caller = run.plan.grad_head_VD is not None
        head = None if run.grad_head_VD is None or owned_by_caller else _scaled(run.grad_head_VD, factor, ctx.dtype)
        return hidden, head, None


class _Chunk(NamedTuple):
    """A chunk between its product and its gradients; `rows` says which rows of the call it has."""

    rows: slice | Tensor
    task: Task
    hidden_CD: Tensor
    logits_CV: Tensor
    gathering: Gathering


class _Run:
    """One forward: the losses of all rows and the gradients of their weighted sum.

    `unit` is 1, but for float16, whose range is too small for weights of one part in a million: the weights are then
    taken in units of their largest, and so are loss_T and the gradients.
    """

    def __init__(self, hidden_TD: Tensor, head_VD: Tensor, plan: _Plan) -> None:
        self.plan, self.hidden_TD = plan, hidden_TD
        self.head_VD = head_VD.to(self._product_dtype())
        self.task, self.unit = plan.task, torch.ones_like(plan.task.weights_T[:1].sum())
        if self.head_VD.dtype == torch.float16:
            self.unit = plan.task.weights_T.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
            self.task = replace(plan.task, weights_T=plan.task.weights_T / self.unit)
        # The writing scan is the shorter way; its exponentials need float32's range and go ill with spread targets.
        self.is_one_pass = self.head_VD.dtype != torch.float16 and not self.task.objective.label_smoothing
        self.is_differentiated = plan.wants_hidden or plan.wants_head
        self.nll_T = torch.zeros_like(self.task.weights_T)
        self.loss_T = torch.zeros_like(self.task.weights_T)
        self.grad_hidden_TD = torch.zeros_like(hidden_TD) if plan.wants_hidden else None
        self.grad_head_VD = plan.grad_head_VD
        if plan.wants_head and plan.grad_head_VD is None:
            self.grad_head_VD = torch.zeros_like(head_VD, dtype=torch.promote_types(head_VD.dtype, torch.float32))

    def all_chunks(self) -> None:
        """Go through the rows. With an exchange on a GPU, a chunk is closed after the next one's product."""
        lag = 1 if self.task.exchange is not None and self.hidden_TD.is_cuda else 0
        buffers: list[Tensor] = []
        opened: deque[_Chunk] = deque()
        for number, rows in enumerate(self._chunks_of_rows()):
            if len(buffers) <= lag:
                buffers.append(self._logits_buffer())
            opened.append(self._open(rows, buffers[number % (lag + 1)]))
            if len(opened) > lag:
                self._close(opened.popleft())
        while opened:
            self._close(opened.popleft())

    def _chunks_of_rows(self) -> list[slice | Tensor]:
        num_tokens, step = len(self.hidden_TD), self.plan.chunk_tokens
        if self.plan.compact:
            kept = (self.task.labels_T != self.task.objective.ignore_index).nonzero()[:, 0]
            if len(kept) < num_tokens:
                return list(kept.split(step)) if len(kept) else []
        return [slice(start, start + step) for start in range(0, num_tokens, step)]

    def _open(self, rows: slice | Tensor, buffer: Tensor) -> _Chunk:
        hidden_CD = self.hidden_TD[rows].to(self.head_VD.dtype)
        logits_CV = torch.mm(hidden_CD, self.head_VD.T, out=buffer[: len(hidden_CD)])
        task = replace(self.task, labels_T=self.task.labels_T[rows], weights_T=self.task.weights_T[rows])
        stats_CK = task.scan(logits_CV, write=self.is_differentiated and self.is_one_pass)
        return _Chunk(rows, task, hidden_CD, logits_CV, Gathering(task.exchange, stats_CK))

    def _close(self, chunk: _Chunk) -> None:
        gathered_RCK, logits_CV, task = chunk.gathering.wait(), chunk.logits_CV, chunk.task
        written_CV = logits_CV if self.is_differentiated and self.is_one_pass else None
        results = task.combine(gathered_RCK, written_CV)
        self.nll_T[chunk.rows], self.loss_T[chunk.rows] = results.nll, results.loss
        if not self.is_differentiated:
            return
        scale_C = results.scale
        if not self.is_one_pass:
            task.differentiate(logits_CV, torch.full_like(scale_C, UNDERFLOW_GUARD), results, logits_CV)
            scale_C = task.weights_T / UNDERFLOW_GUARD
        if self.grad_hidden_TD is not None:
            product_CD = _product(logits_CV, self.head_VD) * scale_C[:, None]
            self.grad_hidden_TD[chunk.rows] = product_CD.to(self.grad_hidden_TD.dtype)
        if self.grad_head_VD is not None:
            scaled_CD = (chunk.hidden_CD * scale_C[:, None]).to(chunk.hidden_CD.dtype)
            _add_product(self.grad_head_VD, logits_CV.T, scaled_CD)

    def _logits_buffer(self) -> Tensor:
        """Room for a chunk's logits, in rows of whole cache lines for any size of vocabulary."""
        num_tokens, width = min(self.plan.chunk_tokens, len(self.hidden_TD)), len(self.head_VD)
        return self.head_VD.new_empty(num_tokens, -(-width // ROW_ALIGNMENT) * ROW_ALIGNMENT)[:, :width]

    def _product_dtype(self) -> torch.dtype:
        """The inputs' type, but float32 at least on a CPU: without matrix units for them, products of low precision
        are 10 to 100 times slower there."""
        dtype = self.hidden_TD.dtype
        return torch.promote_types(dtype, torch.float32) if self.hidden_TD.device.type == "cpu" else dtype


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, in float32 at least."""
    wide = torch.promote_types(left.dtype, torch.float32)
    return torch.mm(left, right) if left.dtype == wide else torch.mm(left, right, out_dtype=wide)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, accumulated in total's type inside the product."""
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, out=total)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient * factor, multiplied in the wider type, in place where the type stays."""
    out = gradient if gradient.dtype == dtype else torch.empty_like(gradient, dtype=dtype)
    return torch.mul(gradient, factor.reshape(1, 1), out=out)
