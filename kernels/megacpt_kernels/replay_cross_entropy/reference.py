"""The passes over the logits in plain PyTorch: any device, any float type, no memory beyond a few rows.

Rows are taken a few at a time, so that the temporaries of the several elementwise steps stay in a CPU's cache: at
V = 49152 that is faster than whole-tensor steps, which fault in fresh pages for each temporary. On a GPU it is right
but slow; the kernels are for that.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from megacpt_kernels.replay_cross_entropy.objective import Objective, Rows

BLOCK_ELEMENTS = 1 << 20


def scan(logits_TV: Tensor, labels_T: Tensor, weights_T: Tensor, objective: Objective, *, write: bool) -> Tensor:
    """See `Passes.scan`. The anchor is the largest logit of the row's slice."""
    columns = objective.num_columns
    stats_TK = logits_TV.new_zeros(len(logits_TV), objective.num_statistics, dtype=_working_dtype(logits_TV))
    if write:
        logits_TV[:, columns:] = 0
    if not columns:
        stats_TK[:, 0] = torch.finfo(stats_TK.dtype).min
        return stats_TK
    owned_T, column_T = _owned(labels_T, objective)
    idle_T1 = (~_live(labels_T, weights_T, objective))[:, None]
    for rows in _row_blocks(logits_TV):
        raw = logits_TV[rows, :columns]
        logits, slope = scaled_logits(raw, objective, copies=not write)
        anchor = logits.amax(1, keepdim=True).clamp_(torch.finfo(logits.dtype).min, torch.finfo(logits.dtype).max)
        target = logits.gather(1, column_T[rows, None])
        stats_TK[rows, 0] = anchor[:, 0]
        stats_TK[rows, 2] = target[:, 0].where(owned_T[rows], 0)
        if objective.label_smoothing:
            stats_TK[rows, 3] = logits.sum(1)
        exponentials = logits.sub_(anchor).exp_()
        stats_TK[rows, 1] = exponentials.sum(1)
        if write:
            if slope is not None:
                exponentials *= slope
            exponentials.masked_fill_(idle_T1[rows], 0)
            if exponentials is not raw:
                raw.copy_(exponentials)
    return stats_TK


def combine(
    stats_RTK: Tensor,
    rank: int,
    labels_T: Tensor,
    weights_T: Tensor,
    objective: Objective,
    written_TV: Tensor | None,
) -> Rows:
    """See `Passes.combine`. With several ranks, `written_TV` is brought from the slice's anchor to the row's."""
    anchors_RT, sums_RT, targets_RT = stats_RTK[..., 0], stats_RTK[..., 1], stats_RTK[..., 2]
    anchor = anchors_RT.amax(0)
    log_sum = (sums_RT * (anchors_RT - anchor).exp()).sum(0).log()
    exists = (labels_T >= 0) & (labels_T < objective.vocab_size)
    target = targets_RT.sum(0).where(exists, torch.nan)
    nll = (anchor - target) + log_sum
    lse = anchor + log_sum

    smoothing = objective.label_smoothing
    row_loss = nll
    if smoothing:
        row_loss = (1 - smoothing) * nll + smoothing * (lse - stats_RTK[..., 3].sum(0) / objective.vocab_size)
    if objective.z_loss:
        row_loss = row_loss + objective.z_loss * lse.square()
    live = _live(labels_T, weights_T, objective)
    nll = nll.where(labels_T != objective.ignore_index, 0)
    row_loss = (weights_T * row_loss).where(live, 0)

    steepness = _steepness(lse, objective)
    scale = (weights_T * objective.logit_scale * steepness * (-log_sum).exp()).where(live, 0)
    if written_TV is not None:
        if len(stats_RTK) > 1:
            written_TV *= (anchors_RT[rank] - anchor).exp()[:, None].to(written_TV.dtype)
        owned, column = _owned(labels_T, objective)
        element = log_sum.exp() * ((-nll).exp() - steepness.reciprocal())
        if objective.softcap:
            element = element * (1 - (target / objective.softcap).square())
        index = column[:, None]
        if objective.num_columns:
            old = written_TV.gather(1, index)
            written_TV.scatter_(1, index, element[:, None].to(old.dtype).where((owned & live)[:, None], old))
    return Rows(nll, row_loss, anchor, log_sum, scale)


def differentiate(
    logits_TV: Tensor,
    labels_T: Tensor,
    factors_T: Tensor,
    rows: Rows,
    objective: Objective,
    out_TV: Tensor,
) -> None:
    """See `Passes.differentiate`."""
    columns = objective.num_columns
    smoothing = objective.label_smoothing
    owned_T, column_T = _owned(labels_T, objective)
    idle_T1 = ((labels_T == objective.ignore_index) | (factors_T == 0))[:, None]
    steepness_T1 = _steepness(rows.anchor + rows.log_sum, objective)[:, None]
    label_share_T1 = owned_T[:, None].to(rows.anchor.dtype) * (smoothing - 1)
    factors_T1 = (factors_T * objective.logit_scale)[:, None]
    out_TV[:, columns:] = 0
    if not columns:
        return
    for block in _row_blocks(logits_TV):
        logits, slope = scaled_logits(logits_TV[block, :columns], objective)
        gradient = logits.sub_(rows.anchor[block, None]).sub_(rows.log_sum[block, None]).exp_()
        gradient *= steepness_T1[block]
        if smoothing:
            gradient -= smoothing / objective.vocab_size
        gradient.scatter_add_(1, column_T[block, None], label_share_T1[block])
        gradient *= factors_T1[block]
        if slope is not None:
            gradient *= slope
        out_TV[block, :columns] = gradient.masked_fill_(idle_T1[block], 0)


def _working_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _row_blocks(logits_TV: Tensor) -> Iterator[slice]:
    step = max(1, BLOCK_ELEMENTS // logits_TV.shape[1])
    for start in range(0, len(logits_TV), step):
        yield slice(start, start + step)


def scaled_logits(raw: Tensor, objective: Objective, *, copies: bool = True) -> tuple[Tensor, Tensor | None]:
    """The logits z of the formula, and dz/dx over logit_scale (None: 1); without `copies`, in the raw ones' place."""
    logits = raw.to(_working_dtype(raw), copy=copies)
    if objective.logit_scale != 1:
        logits *= objective.logit_scale
    if not objective.softcap:
        return logits, None
    capped = logits.div_(objective.softcap).tanh_()
    return capped * objective.softcap, 1 - capped.square()


def _owned(labels_T: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Which rows' labels lie in this slice, and their columns (0 where not)."""
    column = labels_T - objective.vocab_start
    owned = (labels_T != objective.ignore_index) & (column >= 0) & (column < objective.num_columns)
    return owned, column.where(owned, 0)


def _live(labels_T: Tensor, weights_T: Tensor, objective: Objective) -> Tensor:
    return (labels_T != objective.ignore_index) & (weights_T != 0)


def _steepness(lse_T: Tensor, objective: Objective) -> Tensor:
    """d(objective)/d(lse) = 1 + 2 * z_loss * lse, kept off zero because the label's element is divided by it."""
    steepness = 1 + 2 * objective.z_loss * lse_T
    return steepness.where(steepness != 0, torch.finfo(steepness.dtype).eps)
