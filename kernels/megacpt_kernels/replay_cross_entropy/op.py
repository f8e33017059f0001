"""Cross-entropy over given logits, weighted per token, vocabulary-parallel, with per-domain sums.

Two forms, by who owns the backward:

- `replay_cross_entropy` is an ordinary differentiable op: one read of the logits in the forward, one read and one
  write in the backward.
- `replay_cross_entropy_` reads and writes the logits once in all. The weights are known beforehand, and every factor of
  a row (weight, z-loss, normaliser, scale) commutes with the matrix products that follow. So the logits are overwritten
  by exponentials against an anchor that needs no pass of its own, and all the factors end up in one number per row.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from megacpt_kernels.exchange import Exchange, Gathering
from megacpt_kernels.replay_cross_entropy import reference
from megacpt_kernels.replay_cross_entropy.objective import Objective, Passes, Rows

Kernel = Literal["auto", "reference", "triton"]


class LossOutput(NamedTuple):
    """What the losses return; with an exchange every rank has the same values."""

    loss: Tensor
    """sum over rows of weight * objective: 0-d, single precision, differentiable."""
    nll_T: Tensor
    """-log p(label) of each row, free of weight, smoothing and z-loss; 0 where the label is ignored."""
    domain_sums: Tensor
    """[num_domains, 3]: per domain the sums of weight * nll, of nll, and of 1, over the rows whose label counts."""
    divergence_T: Tensor | None = None
    """KL(teacher || student) of each row at the teacher's temperature, 0 where the teacher has no weight; None: there
    is no teacher."""


def replay_cross_entropy(
    logits_TV: Tensor,
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
    inplace_backward: bool = False,
) -> LossOutput:
    """The weighted cross-entropy of logits; `Objective` has the formula.

    Args:
        logits_TV: this rank's columns of the raw logits, of any float type.
        labels_T: global token ids (int64), or `ignore_index`. An ignored row counts nowhere. A label outside the
            vocabulary is an error on a CPU; on a GPU it makes the loss NaN, since looking would wait for the device.
        weights_T: factor of each row's objective (None: 1). A row of weight 0 adds nothing to loss and gradient, but
            its nll is measured and counted like any other.
        vocab_start: global id of this rank's first column.
        vocab_size: number of real columns over all ranks (None: all); those behind are padding and take no part.
        ignore_index: the label that means "no label".
        z_loss: factor of lse^2.
        softcap: bound of the logits, as in Gemma 2 (0: none).
        logit_scale: factor of the raw logits, as in Cohere and Granite.
        label_smoothing: share of the target that is spread evenly over the vocabulary.
        domains_T: domain of each row (int64); rows outside [0, num_domains) belong to none.
        num_domains: number of domains.
        exchange: the ranks that share the vocabulary and pass the same rows; None when this rank holds all of it.
        kernel: "triton" needs a GPU (or TRITON_INTERPRET=1), "reference" runs anywhere; "auto" goes by the device.
        inplace_backward: let the gradient overwrite the logits, which nobody may read any more after the backward.

    Raises:
        ValueError: arguments that do not fit each other.
    """
    objective = Objective.of_slice(
        logits_TV.shape[-1],
        1 if exchange is None else exchange.size,
        vocab_start=vocab_start,
        vocab_size=vocab_size,
        ignore_index=ignore_index,
        z_loss=z_loss,
        softcap=softcap,
        logit_scale=logit_scale,
        label_smoothing=label_smoothing,
    )
    task = Task.of(logits_TV, labels_T, weights_T, objective, exchange, kernel)
    loss, nll_T = cast(tuple[Tensor, Tensor], _LogitLoss.apply(logits_TV, task, inplace_backward))
    return LossOutput(loss, nll_T, task.domain_sums(nll_T, domains_T, num_domains))


@torch.no_grad()
def replay_cross_entropy_(
    logits_TV: Tensor,
    labels_T: Tensor,
    weights_T: Tensor | None,
    *,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    logit_scale: float = 1.0,
    domains_T: Tensor | None = None,
    num_domains: int = 0,
    exchange: Exchange | None = None,
    kernel: Kernel = "auto",
) -> tuple[LossOutput, Tensor]:
    """The same loss with its gradient, in one read and one write of the logits, for callers that own the backward.

    Args as in `replay_cross_entropy`, without label smoothing and not for half precision (float16), whose range is too
    small for the exponentials.

    Returns:
        The losses, and row_scale_T such that d(loss)/d(logits) = row_scale_T[:, None] * logits_TV, with what now stands
        in `logits_TV`. A product with the gradient is that product with `logits_TV`, scaled by rows.

    Raises:
        ValueError: arguments that do not fit each other.
    """
    if logits_TV.dtype == torch.float16:
        raise ValueError("replay_cross_entropy_ does not take float16 logits; use replay_cross_entropy")
    objective = Objective.of_slice(
        logits_TV.shape[-1],
        1 if exchange is None else exchange.size,
        vocab_start=vocab_start,
        vocab_size=vocab_size,
        ignore_index=ignore_index,
        z_loss=z_loss,
        softcap=softcap,
        logit_scale=logit_scale,
        label_smoothing=0.0,
    )
    task = Task.of(logits_TV, labels_T, weights_T, objective, exchange, kernel)
    rows = task.combine(Gathering(exchange, task.scan(logits_TV, write=True)).wait(), logits_TV)
    _tell_autograd(logits_TV)
    return LossOutput(rows.loss.sum(), rows.nll, task.domain_sums(rows.nll, domains_T, num_domains)), rows.scale


@dataclass(frozen=True, slots=True)
class Task:
    """The rows of one call, what is computed of them, by whom and with whom."""

    labels_T: Tensor
    weights_T: Tensor
    objective: Objective
    exchange: Exchange | None
    passes: Passes

    @classmethod
    def of(
        cls,
        inputs_TX: Tensor,
        labels_T: Tensor,
        weights_T: Tensor | None,
        objective: Objective,
        exchange: Exchange | None,
        kernel: Kernel,
    ) -> Task:
        """A checked task: one label and one weight for each row of `inputs_TX` (logits or hidden states)."""
        if inputs_TX.dim() != 2 or not inputs_TX.is_floating_point():
            raise ValueError(f"expected a float matrix with a row per token, got {_described(inputs_TX)}")
        if weights_T is None:
            weights_T = torch.ones_like(labels_T, dtype=torch.float32)
        for name, tensor in (("labels_T", labels_T), ("weights_T", weights_T)):
            if tensor.shape != inputs_TX.shape[:1] or tensor.device != inputs_TX.device:
                raise ValueError(
                    f"{name} must have one entry per row of {_described(inputs_TX)}, got {_described(tensor)}"
                )
        if labels_T.dtype != torch.int64:
            raise ValueError(f"labels_T must be int64, got {labels_T.dtype}")
        if labels_T.device.type == "cpu":
            outside = (labels_T != objective.ignore_index) & ((labels_T < 0) | (labels_T >= objective.vocab_size))
            if outside.any():
                raise ValueError(
                    f"label {labels_T[outside][0].item()} is outside the vocabulary of {objective.vocab_size}"
                )
        weights_T = weights_T.to(torch.promote_types(inputs_TX.dtype, torch.float32))
        return cls(labels_T.contiguous(), weights_T.contiguous(), objective, exchange, _passes(kernel, inputs_TX))

    def scan(self, logits_TV: Tensor, *, write: bool) -> Tensor:
        """This rank's row statistics; see `Passes.scan`."""
        return self.passes.scan(logits_TV, self.labels_T, self.weights_T, self.objective, write=write)

    def combine(self, stats_RTK: Tensor, written_TV: Tensor | None) -> Rows:
        """The losses of the rows, from the statistics of all ranks; see `Passes.combine`."""
        rank = 0 if self.exchange is None else self.exchange.rank
        return self.passes.combine(stats_RTK, rank, self.labels_T, self.weights_T, self.objective, written_TV)

    def differentiate(self, logits_TV: Tensor, factors_T: Tensor, rows: Rows, out_TV: Tensor) -> None:
        """The gradient of each row, times its factor; see `Passes.differentiate`."""
        self.passes.differentiate(logits_TV, self.labels_T, factors_T, rows, self.objective, out_TV)

    def domain_sums(self, nll_T: Tensor, domains_T: Tensor | None, num_domains: int) -> Tensor:
        """[num_domains, 3], summed in a fixed order and in double precision, without waiting for the device."""
        if domains_T is None:
            if num_domains:
                raise ValueError(f"num_domains is {num_domains}, but domains_T is missing")
            return nll_T.new_zeros(0, 3)
        if domains_T.shape != nll_T.shape:
            raise ValueError(f"domains_T must have one entry per row, {len(nll_T)}, got {_described(domains_T)}")
        counts_T = self.labels_T != self.objective.ignore_index
        members_DT = domains_T == torch.arange(num_domains, device=nll_T.device)[:, None]
        terms_T3 = torch.stack([self.weights_T * nll_T, nll_T, counts_T.to(nll_T.dtype)], 1).double()
        return terms_T3.where(members_DT[..., None], 0).sum(1).to(nll_T.dtype)


class _LogitLoss(torch.autograd.Function):
    """The loss of given logits; the backward reads them again."""

    @staticmethod
    def forward(ctx: Any, logits_TV: Tensor, task: Task, inplace_backward: bool) -> tuple[Tensor, Tensor]:
        rows = task.combine(Gathering(task.exchange, task.scan(logits_TV, write=False)).wait(), None)
        ctx.save_for_backward(logits_TV)
        ctx.task, ctx.rows, ctx.inplace_backward = task, rows, inplace_backward
        ctx.mark_non_differentiable(rows.nll)
        return rows.loss.sum(), rows.nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, grad_nll_T: Tensor) -> tuple[Tensor, None, None]:
        (logits_TV,) = ctx.saved_tensors
        task: Task = ctx.task
        gradient_TV = logits_TV if ctx.inplace_backward else torch.empty_like(logits_TV)
        task.differentiate(logits_TV, task.weights_T * grad_loss, ctx.rows, gradient_TV)
        if ctx.inplace_backward:
            _tell_autograd(logits_TV)
        return gradient_TV, None, None


def _tell_autograd(overwritten_TV: Tensor) -> None:
    """What a Triton kernel writes autograd does not see: a backward that needs the old values would take the new."""
    if not overwritten_TV.is_inference():
        torch.autograd.graph.increment_version(overwritten_TV)


def _passes(kernel: Kernel, inputs_TX: Tensor) -> Passes:
    if kernel not in ("auto", "reference", "triton"):
        raise ValueError(f'unknown kernel "{kernel}": expected "auto", "reference" or "triton"')
    is_fit = inputs_TX.is_cuda and inputs_TX.dtype != torch.float64 and find_spec("triton") is not None
    if kernel == "reference" or (kernel == "auto" and not is_fit):
        return reference
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1" and inputs_TX.dtype != torch.float64
    if not (is_fit or is_interpreted):
        raise ValueError(
            f'kernel "triton" takes float32 and less on a GPU, got {inputs_TX.dtype} on {inputs_TX.device}; '
            "TRITON_INTERPRET=1 interprets it on a CPU, slowly"
        )
    from megacpt_kernels.replay_cross_entropy import kernel as triton_passes

    return triton_passes


def _described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}"
