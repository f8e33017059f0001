# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs
"""The passes over the logits as Triton kernels, one program a row.

`scan` is the one that costs: it reads each logit once and, when it writes, writes each once. The exponentials are taken
against an anchor that the first tile of columns gives, a whole power of two, so that no pass is spent on the maximum.
A later tile more than 2^HEADROOM above moves the anchor; what stands already written is scaled by that power of two,
which rounds nothing, and which rows of a trained model do not ask for. `combine` sees a few numbers a row.

The sums of a row are made in an order that depends on BLOCK_COLUMNS and on nothing else: the same input gives the same
bits. The anchor's multiple of log(2) is subtracted in two parts, of which the first is exact, so that a large logit
costs no digits of a small difference.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from megacpt_kernels.replay_cross_entropy.objective import Objective, Rows

BLOCK_COLUMNS = 4096
COMBINE_BLOCK_COLUMNS = 1024
NUM_WARPS = 8
COMPILER_OPTIONS = {"enable_fp_fusion": True}
SCAN_MAX_REGISTERS = 64  # of a thread that writes nothing; left to itself, an assembler was seen to spill at 48

LOG2_E = tl.constexpr(1.4426950408889634)
LN2_HIGH = tl.constexpr(0.693359375)  # nine bits: its product with an anchor up to 2^15 is exact
LN2_LOW = tl.constexpr(-2.12194440054690583e-4)
HEADROOM = tl.constexpr(40.0)
FAR = tl.constexpr(64.0)
ANCHOR_LIMIT = tl.constexpr(16777216.0)


def scan(logits_TV: Tensor, labels_T: Tensor, weights_T: Tensor, objective: Objective, *, write: bool) -> Tensor:
    """See `Passes.scan`.

    Raises:
        ValueError: a row's logits do not lie side by side.
    """
    if logits_TV.stride(1) != 1 and logits_TV.shape[1] > 1:
        raise ValueError(f"each row's logits must lie side by side, got strides {logits_TV.stride()}")
    stats_TK = torch.empty(len(logits_TV), objective.num_statistics, dtype=torch.float32, device=logits_TV.device)
    with _on_device(logits_TV):
        _scan_kernel[(len(logits_TV),)](
            logits_TV,
            logits_TV.stride(0),
            labels_T,
            weights_T,
            stats_TK,
            objective.vocab_start,
            objective.num_columns,
            logits_TV.shape[1],
            objective.ignore_index,
            objective.logit_scale,
            objective.softcap,
            IS_CAPPED=objective.softcap > 0,
            IS_SMOOTHED=objective.label_smoothing > 0,
            WRITES=write,
            BLOCK=_block(logits_TV),
            num_warps=NUM_WARPS,
            maxnreg=None if write else SCAN_MAX_REGISTERS,
            **COMPILER_OPTIONS,
        )
    return stats_TK


def combine(
    stats_RTK: Tensor,
    rank: int,
    labels_T: Tensor,
    weights_T: Tensor,
    objective: Objective,
    written_TV: Tensor | None,
) -> Rows:
    """See `Passes.combine`. `Rows.anchor` is a power of two's exponent: lse = anchor * log(2) + log_sum."""
    stats_RTK = stats_RTK.contiguous()
    num_ranks, num_rows, _ = stats_RTK.shape
    rows = Rows(*torch.empty(len(Rows._fields), num_rows, dtype=torch.float32, device=stats_RTK.device))
    with _on_device(stats_RTK):
        _combine_kernel[(num_rows,)](
            stats_RTK,
            num_rows,
            num_ranks,
            rank,
            labels_T,
            weights_T,
            *rows,
            stats_RTK if written_TV is None else written_TV,
            0 if written_TV is None else written_TV.stride(0),
            objective.vocab_start,
            objective.num_columns,
            objective.vocab_size,
            objective.ignore_index,
            objective.z_loss,
            objective.label_smoothing,
            objective.logit_scale,
            objective.softcap,
            IS_CAPPED=objective.softcap > 0,
            IS_SMOOTHED=objective.label_smoothing > 0,
            WRITES=written_TV is not None,
            BLOCK=COMBINE_BLOCK_COLUMNS,
            num_warps=1,
            **COMPILER_OPTIONS,
        )
    return rows


def differentiate(
    logits_TV: Tensor,
    labels_T: Tensor,
    factors_T: Tensor,
    rows: Rows,
    objective: Objective,
    out_TV: Tensor,
) -> None:
    """See `Passes.differentiate`."""
    with _on_device(logits_TV):
        _differentiate_kernel[(len(logits_TV),)](
            logits_TV,
            logits_TV.stride(0),
            out_TV,
            out_TV.stride(0),
            labels_T,
            factors_T,
            rows.anchor,
            rows.log_sum,
            objective.vocab_start,
            objective.num_columns,
            logits_TV.shape[1],
            objective.vocab_size,
            objective.ignore_index,
            objective.z_loss,
            objective.label_smoothing,
            objective.logit_scale,
            objective.softcap,
            IS_CAPPED=objective.softcap > 0,
            BLOCK=_block(logits_TV),
            num_warps=NUM_WARPS,
            **COMPILER_OPTIONS,
        )


def _block(logits_TV: Tensor) -> int:
    return min(BLOCK_COLUMNS, triton.next_power_of_2(logits_TV.shape[1]))


def _on_device(tensor: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@triton.jit
def _capped(raw, scale, cap, IS_CAPPED: tl.constexpr):
    """The logits z of raw ones x: scale * x, or cap * tanh(scale * x / cap)."""
    logits = raw.to(tl.float32) * scale
    if IS_CAPPED:
        shrunk = tl.exp2(tl.abs(logits) * (-2 * LOG2_E / cap))
        magnitude = cap * (1 - shrunk) / (1 + shrunk)
        logits = tl.where(logits < 0, -magnitude, magnitude)
    return logits


@triton.jit
def _slope(logits, cap):
    """d(cap * tanh(x / cap))/dx, by the capped logits."""
    return 1 - (logits / cap) * (logits / cap)


@triton.jit
def _above_anchor(logits, anchor):
    """logits - anchor * log(2), the first subtraction being free of rounding where it matters."""
    return (logits - anchor * LN2_HIGH) - anchor * LN2_LOW


@triton.jit
def _scale_columns(row_start, stop, factor, BLOCK: tl.constexpr):
    """Multiply the columns before `stop` in place. The barriers: other threads may have written or may write them."""
    tl.debug_barrier()
    for offset in range(0, stop, BLOCK):
        columns = offset + tl.arange(0, BLOCK)
        values = tl.load(row_start + columns, mask=columns < stop)
        scaled = (values.to(tl.float32) * factor).to(values.dtype)
        tl.store(row_start + columns, scaled, mask=columns < stop)
    tl.debug_barrier()


@triton.jit
def _clear_columns(row_start, start, stop, BLOCK: tl.constexpr):
    for offset in range(start, stop, BLOCK):
        columns = offset + tl.arange(0, BLOCK)
        tl.store(row_start + columns, tl.zeros([BLOCK], row_start.dtype.element_ty), mask=columns < stop)


@triton.jit
def _scan_tile(
    row_start,
    offset,
    stop,
    is_live,
    anchor,
    sums,
    total,
    scale,
    cap,
    IS_CAPPED: tl.constexpr,
    IS_SMOOTHED: tl.constexpr,
    WRITES: tl.constexpr,
    IS_RAGGED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tile of a row: add its exponentials to `sums`, and leave them in its place."""
    columns = offset + tl.arange(0, BLOCK)
    # Whole tiles carry no mask: with one, an odd number of columns would make every access two bytes wide.
    inside = columns < stop if IS_RAGGED else None
    logits = _capped(tl.load(row_start + columns, mask=inside), scale, cap, IS_CAPPED)
    if IS_SMOOTHED:
        total += tl.sum(tl.where(inside, logits, 0.0) if IS_RAGGED else logits, 0)
    if IS_RAGGED:
        logits = tl.where(inside, logits, -float("inf"))
    peak = tl.max(logits, 0) * LOG2_E
    if peak > anchor + HEADROOM:
        higher = tl.clamp(tl.floor(peak + 0.5), -ANCHOR_LIMIT, ANCHOR_LIMIT)
        factor = tl.exp2(anchor - higher)
        if WRITES:
            _scale_columns(row_start, offset, factor, BLOCK)
        sums *= factor
        anchor = higher
    exponentials = tl.exp2(_above_anchor(logits, anchor) * LOG2_E)
    sums += exponentials
    if WRITES:
        if IS_CAPPED:
            exponentials *= _slope(logits, cap)
        written = tl.where(is_live, exponentials, 0.0)
        tl.store(row_start + columns, written.to(row_start.dtype.element_ty), mask=inside)
    return anchor, sums, total


@triton.jit
def _scan_kernel(
    logits,
    row_stride,
    labels,
    weights,
    stats,
    vocab_start,
    num_columns,
    width,
    ignore_index,
    scale,
    cap,
    IS_CAPPED: tl.constexpr,
    IS_SMOOTHED: tl.constexpr,
    WRITES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_start = logits + row * row_stride
    row_stats = stats + row * (4 if IS_SMOOTHED else 3)
    label = tl.load(labels + row)
    if label == ignore_index:
        if WRITES:
            _clear_columns(row_start, 0, width, BLOCK)
        tl.store(row_stats, 0.0)
        tl.store(row_stats + 1, 0.0)
        tl.store(row_stats + 2, 0.0)
        if IS_SMOOTHED:
            tl.store(row_stats + 3, 0.0)
        return

    is_live = tl.load(weights + row) != 0
    column = label - vocab_start
    is_owned = (column >= 0) & (column < num_columns)
    target = _capped(tl.load(row_start + column, mask=is_owned, other=0.0), scale, cap, IS_CAPPED)
    tl.debug_barrier()  # every thread has the label's logit before any thread overwrites it

    anchor = -ANCHOR_LIMIT
    sums = tl.zeros([BLOCK], tl.float32)
    total = 0.0
    num_whole = num_columns // BLOCK * BLOCK
    for offset in range(0, num_whole, BLOCK):
        anchor, sums, total = _scan_tile(
            row_start, offset, num_columns, is_live, anchor, sums, total, scale, cap,
            IS_CAPPED, IS_SMOOTHED, WRITES, False, BLOCK,
        )  # fmt: skip
    if num_whole < num_columns:
        anchor, sums, total = _scan_tile(
            row_start, num_whole, num_columns, is_live, anchor, sums, total, scale, cap,
            IS_CAPPED, IS_SMOOTHED, WRITES, True, BLOCK,
        )  # fmt: skip
    if WRITES:
        _clear_columns(row_start, num_columns, width, BLOCK)
    tl.store(row_stats, anchor)
    tl.store(row_stats + 1, tl.sum(sums, 0))
    tl.store(row_stats + 2, target)
    if IS_SMOOTHED:
        tl.store(row_stats + 3, total)


@triton.jit
def _combine_kernel(
    stats,
    num_rows,
    num_ranks,
    rank,
    labels,
    weights,
    nll_out,
    loss_out,
    anchor_out,
    log_sum_out,
    scale_out,
    written,
    row_stride,
    vocab_start,
    num_columns,
    vocab_size,
    ignore_index,
    z_loss,
    smoothing,
    scale,
    cap,
    IS_CAPPED: tl.constexpr,
    IS_SMOOTHED: tl.constexpr,
    WRITES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    num_statistics: tl.constexpr = 4 if IS_SMOOTHED else 3
    anchor = -ANCHOR_LIMIT
    for r in range(num_ranks):
        anchor = tl.maximum(anchor, tl.load(stats + (r * num_rows + row) * num_statistics))
    sum_ = 0.0
    target = 0.0
    total = 0.0
    for r in range(num_ranks):
        slice_stats = stats + (r * num_rows + row) * num_statistics
        sum_ += tl.load(slice_stats + 1) * tl.exp2(tl.load(slice_stats) - anchor)
        target += tl.load(slice_stats + 2)
        if IS_SMOOTHED:
            total += tl.load(slice_stats + 3)

    label = tl.load(labels + row)
    weight = tl.load(weights + row)
    counts = label != ignore_index
    is_live = counts & (weight != 0)
    target = tl.where((label >= 0) & (label < vocab_size), target, float("nan"))
    log_sum = tl.log(sum_)
    lse = anchor * LN2_HIGH + (anchor * LN2_LOW + log_sum)
    nll = log_sum - _above_anchor(target, anchor)
    loss = nll + z_loss * lse * lse
    if IS_SMOOTHED:
        loss = (1 - smoothing) * nll + smoothing * (lse - total / vocab_size) + z_loss * lse * lse
    tl.store(nll_out + row, tl.where(counts, nll, 0.0))
    tl.store(loss_out + row, tl.where(is_live, weight * loss, 0.0))
    tl.store(anchor_out + row, anchor)
    tl.store(log_sum_out + row, log_sum)

    if WRITES:
        row_start = written + row * row_stride
        slice_anchor = tl.load(stats + (rank * num_rows + row) * num_statistics)
        distance = (anchor - slice_anchor) + log_sum * LOG2_E
        if is_live & (distance > FAR):
            # A slice that hardly counts: nearer the row's sum, or the label's element could overflow.
            steps = tl.floor(distance)
            _scale_columns(row_start, num_columns, tl.exp2(-steps), BLOCK)
            distance -= steps
        steepness = 1 + 2 * z_loss * lse
        steepness = tl.where(steepness == 0, 1e-7, steepness)
        element = tl.exp2(distance) * (tl.exp2(-nll * LOG2_E) - 1 / steepness)
        if IS_CAPPED:
            element *= _slope(target, cap)
        column = label - vocab_start
        is_owned = (column >= 0) & (column < num_columns)
        tl.store(row_start + column, element.to(written.dtype.element_ty), mask=is_live & is_owned)
        tl.store(scale_out + row, tl.where(is_live, weight * scale * steepness * tl.exp2(-distance), 0.0))


@triton.jit
def _differentiate_tile(
    row_start,
    out_start,
    offset,
    stop,
    column,
    anchor,
    log_sum,
    steepness,
    uniform_share,
    label_share,
    factor,
    scale,
    cap,
    IS_CAPPED: tl.constexpr,
    IS_RAGGED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tile of a row's gradient: factor * (steepness * p - target distribution) * slope."""
    columns = offset + tl.arange(0, BLOCK)
    inside = columns < stop if IS_RAGGED else None
    logits = _capped(tl.load(row_start + columns, mask=inside), scale, cap, IS_CAPPED)
    probabilities = tl.exp2((_above_anchor(logits, anchor) - log_sum) * LOG2_E)
    targets = uniform_share + tl.where(columns == column, label_share, 0.0)
    gradient = factor * (steepness * probabilities - targets)
    if IS_CAPPED:
        gradient *= _slope(logits, cap)
    tl.store(out_start + columns, gradient.to(out_start.dtype.element_ty), mask=inside)


@triton.jit
def _differentiate_kernel(
    logits,
    row_stride,
    out,
    out_stride,
    labels,
    factors,
    anchors,
    log_sums,
    vocab_start,
    num_columns,
    width,
    vocab_size,
    ignore_index,
    z_loss,
    smoothing,
    scale,
    cap,
    IS_CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_start = logits + row * row_stride
    out_start = out + row * out_stride
    label = tl.load(labels + row)
    factor = tl.load(factors + row)
    if (label == ignore_index) | (factor == 0):
        _clear_columns(out_start, 0, width, BLOCK)
        return

    column = label - vocab_start
    anchor = tl.load(anchors + row)
    log_sum = tl.load(log_sums + row)
    steepness = 1 + 2 * z_loss * (anchor * LN2_HIGH + (anchor * LN2_LOW + log_sum))
    uniform_share = smoothing / vocab_size
    label_share = 1 - smoothing
    factor *= scale
    num_whole = num_columns // BLOCK * BLOCK
    for offset in range(0, num_whole, BLOCK):
        _differentiate_tile(
            row_start, out_start, offset, num_columns, column, anchor, log_sum, steepness, uniform_share, label_share,
            factor, scale, cap, IS_CAPPED, False, BLOCK,
        )  # fmt: skip
    if num_whole < num_columns:
        _differentiate_tile(
            row_start, out_start, num_whole, num_columns, column, anchor, log_sum, steepness, uniform_share,
            label_share, factor, scale, cap, IS_CAPPED, True, BLOCK,
        )  # fmt: skip
    _clear_columns(out_start, num_columns, width, BLOCK)
