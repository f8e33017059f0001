"""The head's product, the weighted cross-entropy and both gradients in one op, a chunk of tokens at a time.

The weights come with the batch, so the gradients are made in the forward: three matrix products in all and one read and
write of the logits, of which only a chunk's ever exist. An op that learns its weights in the backward must hold all
logits or make them a second time.

The trade: the gradients wait from forward to backward (hidden's in its own type, the head's in single precision
until it is cast), and a chunk should have 1000 tokens or more, since each adds to the whole head gradient in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from megacpt_kernels.exchange import Exchange, Gathering
from megacpt_kernels.fused_linear_replay_cross_entropy import divergence
from megacpt_kernels.fused_linear_replay_cross_entropy.divergence import Teacher
from megacpt_kernels.replay_cross_entropy.objective import Objective
from megacpt_kernels.replay_cross_entropy.op import Kernel, LossOutput, Task

CHUNK_TOKENS = 2048
"""On a GPU: from about 1000 tokens on, adding to the head's gradient takes longer in the product than in memory."""
CPU_CHUNK_TOKENS = 512
ROW_ALIGNMENT = 64


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
    chunk_tokens: int | None = None,
    compact: bool | None = None,
    grad_head_VD: Tensor | None = None,
    teacher: Teacher | None = None,
) -> LossOutput:
    """`replay_cross_entropy(hidden_TD @ head_VD.T, ...)` without the logits.

    Args as there, and:
        hidden_TD: the last hidden states.
        head_VD: this rank's rows of the head, of hidden's type; padding rows get a gradient of zero. The products are
            made in the inputs' type and summed in single precision; on a CPU, and for float16, they are made in it.
        chunk_tokens: tokens whose logits exist at a time (None: 2048 on a GPU, 512 on a CPU). With an exchange on a
            GPU two chunks' do, and the collective overlaps with the next chunk's product.
        compact: leave the rows with an ignored label out of the products. How many are left is a number the host must
            wait for, so None means: on a CPU only.
        grad_head_VD: a single-precision buffer that the head's gradient is added to in the forward, instead of being
            handed to autograd. The loss must then be the very thing that is differentiated: scale the weights, not
            the loss; and the forward must not be repeated (no activation checkpointing around it).
        teacher: what the predictions are held to; the rows' weighted divergences are added to the loss.

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
    if chunk_tokens is None:
        chunk_tokens = CPU_CHUNK_TOKENS if hidden_TD.device.type == "cpu" else CHUNK_TOKENS
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    objective = Objective.of_slice(
        len(head_VD),
        1 if exchange is None else exchange.size,
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
    if teacher is not None:
        _check_teacher(teacher, hidden_TD, head_VD)
    differentiable = torch.is_grad_enabled()
    plan = _Plan(
        task,
        chunk_tokens,
        compact=hidden_TD.device.type == "cpu" if compact is None else compact,
        wants_hidden=differentiable and hidden_TD.requires_grad,
        wants_head=differentiable and (head_VD.requires_grad or grad_head_VD is not None),
        grad_head_VD=grad_head_VD,
        teacher=teacher,
    )
    loss, nll_T, divergence_T = cast(tuple[Tensor, Tensor, Tensor | None], _FusedLoss.apply(hidden_TD, head_VD, plan))
    return LossOutput(loss, nll_T, task.domain_sums(nll_T, domains_T, num_domains), divergence_T)


def _check_teacher(teacher: Teacher, hidden_TD: Tensor, head_VD: Tensor) -> None:
    num_tokens = len(hidden_TD)
    if (
        len(teacher.hidden_TD) != num_tokens
        or teacher.weights_T.shape != (num_tokens,)
        or teacher.head_VD.shape != (len(head_VD), teacher.hidden_TD.shape[1])
        or teacher.temperature <= 0
    ):
        raise ValueError(
            f"the teacher must have {num_tokens} tokens and weights, {len(head_VD)} rows of a head and a temperature "
            f"above 0, got hidden_TD {list(teacher.hidden_TD.shape)}, weights_T {list(teacher.weights_T.shape)}, "
            f"head_VD {list(teacher.head_VD.shape)}, {teacher.temperature}"
        )


class _Plan(NamedTuple):
    """One call: what is computed, and which gradients are wanted."""

    task: Task
    chunk_tokens: int
    compact: bool
    wants_hidden: bool
    wants_head: bool
    grad_head_VD: Tensor | None
    teacher: Teacher | None


class _FusedLoss(torch.autograd.Function):
    """Makes both gradients in the forward; the backward multiplies them by what comes from above."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, head_VD: Tensor, plan: _Plan) -> tuple[Tensor, Tensor, Tensor | None]:
        with torch.autocast(hidden_TD.device.type, enabled=False):
            ctx.run = run = _Run(hidden_TD, head_VD, plan)
            run.all_chunks()
        ctx.mark_non_differentiable(run.nll_T, *(() if run.divergence_T is None else (run.divergence_T,)))
        return run.loss_T.sum(), run.nll_T, run.divergence_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, None]:
        run: _Run | None = ctx.run
        if run is None:
            raise RuntimeError("the gradients were made in the forward, and an earlier backward has taken them")
        ctx.run = None
        dtype = run.hidden_TD.dtype
        hidden = None if run.grad_hidden_TD is None else _scaled(run.grad_hidden_TD, grad_loss, dtype)
        is_added = run.plan.grad_head_VD is not None
        head = None if run.grad_head_VD is None or is_added else _scaled(run.grad_head_VD, grad_loss, dtype)
        return hidden, head, None


class _Chunk(NamedTuple):
    """A chunk between its product and its gradients; `rows` are its rows of the call."""

    rows: slice | Tensor
    task: Task
    hidden_CD: Tensor
    logits_CV: Tensor
    gathering: Gathering
    comparison: _Comparison | None


class _Comparison:
    """The teacher's side of a chunk."""

    def __init__(self, teacher: Teacher, rows: slice | Tensor, student_CV: Tensor, task: Task) -> None:
        head_VD = teacher.head_VD.to(student_CV.dtype)
        self.logits_CV = torch.mm(teacher.hidden_TD[rows].to(student_CV.dtype), head_VD.T)
        self.factors_C = teacher.weights_T[rows].to(task.weights_T.dtype)
        self.temperature, self.objective = teacher.temperature, task.objective
        stats_C5 = divergence.statistics(student_CV, self.logits_CV, self.objective, self.temperature)
        self.gathering = Gathering(task.exchange, stats_C5)

    def close(self, student_CV: Tensor, *, is_differentiated: bool) -> tuple[Tensor, Tensor]:
        """The rows' divergences, 0 where they have no weight, and their part in the loss, whose gradient takes the
        place of the teacher's logits."""
        predictions = divergence.combine(self.gathering.wait())
        if is_differentiated:
            divergence.differentiate(
                student_CV, self.logits_CV, self.factors_C, predictions, self.objective, self.temperature
            )
        divergence_C = predictions.divergence_T.where(self.factors_C != 0, 0)
        return divergence_C, self.factors_C * self.temperature**2 * divergence_C


class _Run:
    """One forward: the losses of all rows, and the gradients of their sum."""

    def __init__(self, hidden_TD: Tensor, head_VD: Tensor, plan: _Plan) -> None:
        self.plan, self.task = plan, plan.task
        self.hidden_TD, self.head_VD = hidden_TD, head_VD.to(_product_dtype(hidden_TD))
        self.is_differentiated = plan.wants_hidden or plan.wants_head
        # The writing scan is the shorter way to the gradients, but has no place for a target spread over all columns:
        # that of label smoothing, or a teacher.
        self.scan_writes = self.is_differentiated and not self.task.objective.label_smoothing and plan.teacher is None
        self.nll_T = torch.zeros_like(self.task.weights_T)
        self.loss_T = torch.zeros_like(self.task.weights_T)
        self.divergence_T = None if plan.teacher is None else torch.zeros_like(self.task.weights_T)
        self.grad_hidden_TD: Tensor | None = None
        if plan.wants_hidden:
            self.grad_hidden_TD = torch.zeros_like(hidden_TD, dtype=self.head_VD.dtype)
        self.grad_head_VD = plan.grad_head_VD

    def all_chunks(self) -> None:
        """Go through the rows. With an exchange on a GPU, a chunk is closed after the next one's product."""
        chunks = self._rows_of_chunks()
        lag = 1 if self.task.exchange is not None and self.hidden_TD.is_cuda else 0
        buffers = [self._logits_buffer() for _ in chunks[: lag + 1]]
        opened: deque[_Chunk] = deque()
        for number, rows in enumerate(chunks):
            opened.append(self._open(rows, buffers[number % len(buffers)]))
            if len(opened) > lag:
                self._close(opened.popleft())
        while opened:
            self._close(opened.popleft())
        if self.plan.wants_head and self.grad_head_VD is None:
            self.grad_head_VD = torch.zeros_like(self.head_VD, dtype=_wide(self.head_VD))

    def _rows_of_chunks(self) -> Sequence[slice | Tensor]:
        num_tokens, step = len(self.hidden_TD), self.plan.chunk_tokens
        if self.plan.compact:
            kept = (self.task.labels_T != self.task.objective.ignore_index).nonzero()[:, 0]
            if len(kept) < num_tokens:
                return [kept[start : start + step] for start in range(0, len(kept), step)]
        return [slice(start, start + step) for start in range(0, num_tokens, step)]

    def _open(self, rows: slice | Tensor, buffer_CV: Tensor) -> _Chunk:
        hidden_CD = self.hidden_TD[rows].to(self.head_VD.dtype)
        logits_CV = torch.mm(hidden_CD, self.head_VD.T, out=buffer_CV[: len(hidden_CD)])
        task = replace(self.task, labels_T=self.task.labels_T[rows], weights_T=self.task.weights_T[rows])
        stats_CK = task.scan(logits_CV, write=self.scan_writes)
        gathering = Gathering(task.exchange, stats_CK)
        teacher = self.plan.teacher
        comparison = None if teacher is None else _Comparison(teacher, rows, logits_CV, task)
        return _Chunk(rows, task, hidden_CD, logits_CV, gathering, comparison)

    def _close(self, chunk: _Chunk) -> None:
        task, logits_CV = chunk.task, chunk.logits_CV
        results = task.combine(chunk.gathering.wait(), logits_CV if self.scan_writes else None)
        self.nll_T[chunk.rows], self.loss_T[chunk.rows] = results.nll, results.loss
        if chunk.comparison is not None:
            divergence_C, loss_C = chunk.comparison.close(logits_CV, is_differentiated=self.is_differentiated)
            self.loss_T[chunk.rows] += loss_C
            assert self.divergence_T is not None
            self.divergence_T[chunk.rows] = divergence_C
        if not self.is_differentiated:
            return
        scale_C1 = results.scale[:, None]
        if not self.scan_writes:
            task.differentiate(logits_CV, task.weights_T, results, logits_CV)
            scale_C1 = torch.ones_like(scale_C1)
            if chunk.comparison is not None:
                logits_CV += chunk.comparison.logits_CV
        if self.grad_hidden_TD is not None:
            grad_hidden_CD = _product(logits_CV, self.head_VD).mul_(scale_C1).to(self.head_VD.dtype)
            self.grad_hidden_TD[chunk.rows] = grad_hidden_CD
        if self.plan.wants_head:
            scaled_CD = (chunk.hidden_CD * scale_C1).to(logits_CV.dtype)
            if self.grad_head_VD is None:
                self.grad_head_VD = _product(logits_CV.T, scaled_CD)
            else:
                _add_product(self.grad_head_VD, logits_CV.T, scaled_CD)

    def _logits_buffer(self) -> Tensor:
        """Room for a chunk's logits, each row at the start of a cache line whatever the size of the vocabulary."""
        num_tokens, width = min(self.plan.chunk_tokens, len(self.hidden_TD)), len(self.head_VD)
        return self.head_VD.new_empty(num_tokens, -(-width // ROW_ALIGNMENT) * ROW_ALIGNMENT)[:, :width]


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _product_dtype(hidden_TD: Tensor) -> torch.dtype:
    """The type the products are made in.

    Single precision at least on a CPU, where products of low precision are 10 to 100 times slower unless it has matrix
    units for them, and for float16, whose range holds neither the exponentials nor gradients before loss scaling.
    """
    if hidden_TD.device.type == "cpu" or hidden_TD.dtype == torch.float16:
        return _wide(hidden_TD)
    return hidden_TD.dtype


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, single precision at least."""
    wide = _wide(left)
    return torch.mm(left, right) if left.dtype == wide else torch.mm(left, right, out_dtype=wide)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, added up in total's type inside the product."""
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, out=total)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient * factor, multiplied in the wider of their types, in place where gradient's is the one asked for."""
    out = gradient if gradient.dtype == dtype else torch.empty_like(gradient, dtype=dtype)
    return torch.mul(gradient, factor.reshape(1, 1), out=out)
