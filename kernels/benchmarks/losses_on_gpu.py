"""The losses against everyone's, on the GPU that is here: `python kernels/benchmarks/losses_on_gpu.py`.

It measures nothing while the ops' tests fail on this GPU, and leaves out of the table whatever disagrees with double
precision. Ceilings are measured on the same card: a large copy, and a large product of bfloat16 matrices. Times are
medians of runs with device events around them; memory is what a run allocates beyond its inputs, at its highest.
What in-place ops overwrite is put back before each run, outside the timed region, which also empties the cache.

`--tune` tries tile widths, warps and chunk lengths instead, and says which are fastest here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from harness import ROOT, markdown_table, provenance, publish
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megacpt_kernels import fused_linear_replay_cross_entropy, replay_cross_entropy, replay_cross_entropy_

NUM_TOKENS, WIDTH, VOCAB_SIZE = 8192, 4096, 128256
LOGIT_BYTES = 2
TOLERANCE = 0.02
"""Relative error granted to a loss or gradient in bfloat16; who exceeds it computes something else."""


@dataclass(frozen=True)
class Batch:
    """The inputs of one run; `weights_T` None: unweighted sums."""

    hidden_TD: Tensor
    head_VD: Tensor
    labels_T: Tensor
    weights_T: Tensor | None
    grad_head_VD: Tensor | None = None
    """Where an engine sums the head's gradient, for those who can add to it."""

    def logits(self) -> Tensor:
        with torch.no_grad():
            return F.linear(self.hidden_TD, self.head_VD)

    def total(self, nll_T: Tensor) -> Tensor:
        """What is minimised, of the losses of the rows."""
        return (nll_T if self.weights_T is None else nll_T * self.weights_T).sum()


@dataclass(frozen=True)
class GivenLogits:
    """A way from logits to the loss and the logits' gradient."""

    name: str
    passes: int
    """Passes over the logits as counted in its source, 0: not counted."""
    run: Callable[[Batch, Tensor], tuple[Tensor, Tensor]]
    supports_weights: bool = True


@dataclass(frozen=True)
class GivenHidden:
    """A way from hidden states to the loss and both gradients."""

    name: str
    loss: Callable[[Batch], Tensor]
    supports_weights: bool = True


class EchoExchange:
    """Stands in for a second rank with the same statistics: what a rank's own work takes, without the wire."""

    rank = 0
    size = 2

    def all_gather(self, stats_TK: Tensor) -> Tensor:
        return torch.stack([stats_TK, stats_TK])


def optional(module: str, name: str) -> Any:
    """Something of a package that may not be installed, or None."""
    try:
        return getattr(import_module(module), name, None)
    except Exception as error:  # a package that is installed may fail on this GPU in any way of its own
        if not isinstance(error, ModuleNotFoundError):
            print(f"{module} does not load here: {error}", file=sys.stderr)
        return None


def differentiated(loss_of: Callable[[Tensor], Tensor], logits_TV: Tensor) -> tuple[Tensor, Tensor]:
    leaf_TV = logits_TV.detach().requires_grad_()
    loss = loss_of(leaf_TV)
    return loss.detach(), torch.autograd.grad(loss, leaf_TV)[0]


def given_logits() -> Iterator[GivenLogits]:
    """Ours first."""

    def factored(batch: Batch, logits_TV: Tensor) -> tuple[Tensor, Tensor]:
        output, scale_T = replay_cross_entropy_(logits_TV, batch.labels_T, batch.weights_T)
        return output.loss, scale_T

    def strict(batch: Batch, logits_TV: Tensor, **keywords: Any) -> tuple[Tensor, Tensor]:
        loss_of = lambda z_TV: replay_cross_entropy(z_TV, batch.labels_T, batch.weights_T, **keywords).loss  # noqa: E731
        return differentiated(loss_of, logits_TV)

    def plain(batch: Batch, logits_TV: Tensor, cross_entropy: Callable[[Tensor, Tensor], Tensor]) -> Any:
        return differentiated(lambda z_TV: batch.total(cross_entropy(z_TV, batch.labels_T)), logits_TV)

    def eager(logits_TV: Tensor, labels_T: Tensor) -> Tensor:
        return F.cross_entropy(logits_TV.float(), labels_T, reduction="none")

    yield GivenLogits("megacpt, factored in place", 2, factored)
    yield GivenLogits("megacpt", 3, partial(strict, inplace_backward=True))
    yield GivenLogits("megacpt, a rank's share", 3, partial(strict, inplace_backward=True, exchange=EchoExchange()))
    yield GivenLogits("torch, eager", 0, partial(plain, cross_entropy=eager))
    yield GivenLogits("torch, compiled", 0, partial(plain, cross_entropy=torch.compile(eager)))
    if liger := optional("liger_kernel.transformers.functional", "liger_cross_entropy"):
        yield GivenLogits("Liger", 3, partial(plain, cross_entropy=partial(liger, reduction="none")))
    if liger_parallel := optional("liger_kernel.transformers", "LigerVocabParallelCrossEntropy"):

        def three_dimensional(logits_TV: Tensor, labels_T: Tensor) -> Tensor:
            return liger_parallel()(logits_TV[:, None], labels_T[:, None])[:, 0]

        yield GivenLogits("Liger, vocabulary-parallel", 0, partial(plain, cross_entropy=three_dimensional))
    if flash := optional("flash_attn.ops.triton.cross_entropy", "cross_entropy_loss"):

        def flash_losses(logits_TV: Tensor, labels_T: Tensor) -> Tensor:
            return flash(logits_TV, labels_T, inplace_backward=True)[0]

        yield GivenLogits("flash-attn", 3, partial(plain, cross_entropy=flash_losses))
    if quack := optional("quack.cross_entropy", "cross_entropy"):
        quack_losses = partial(quack, reduction="none", inplace_backward=True)
        yield GivenLogits("QuACK", 3, partial(plain, cross_entropy=quack_losses))


def given_hidden(chunk_tokens: int | None = None) -> Iterator[GivenHidden]:
    """Ours first."""

    def fused(batch: Batch, *, adds: bool) -> Tensor:
        return fused_linear_replay_cross_entropy(
            batch.hidden_TD,
            batch.head_VD,
            batch.labels_T,
            batch.weights_T,
            chunk_tokens=chunk_tokens,
            grad_head_VD=batch.grad_head_VD if adds else None,
        ).loss

    def losses(hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden_TD, head_VD).float(), labels_T, reduction="none")

    compiled = torch.compile(losses)

    def chunked(batch: Batch) -> Tensor:
        parts = zip(batch.hidden_TD.split(2048), batch.labels_T.split(2048), strict=True)
        return batch.total(
            torch.cat([checkpoint(compiled, x, batch.head_VD, y, use_reentrant=False) for x, y in parts])
        )

    yield GivenHidden("megacpt, added to a gradient buffer", partial(fused, adds=True))
    yield GivenHidden("megacpt", partial(fused, adds=False))
    yield GivenHidden("torch, eager", lambda batch: batch.total(losses(batch.hidden_TD, batch.head_VD, batch.labels_T)))
    yield GivenHidden("torch, compiled in chunks", chunked)
    if options := optional("torch.nn", "LinearCrossEntropyOptions"):

        def by_torch(batch: Batch) -> Tensor:
            reduction = "sum" if batch.weights_T is None else "none"
            return batch.total(
                F.linear_cross_entropy(
                    batch.hidden_TD, batch.head_VD, batch.labels_T, reduction=reduction, options=options()
                )
            )

        yield GivenHidden("torch.nn.functional.linear_cross_entropy", by_torch)
    if liger := optional("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy"):

        def by_liger(batch: Batch) -> Tensor:
            reduction = "sum" if batch.weights_T is None else "none"
            nll = liger(batch.hidden_TD, batch.head_VD, batch.labels_T, reduction=reduction, accum_dtype=torch.float32)
            return batch.total(nll)

        yield GivenHidden("Liger", by_liger)
    if cut := optional("cut_cross_entropy", "linear_cross_entropy"):
        yield GivenHidden(
            "cut-cross-entropy",
            lambda batch: batch.total(cut(batch.hidden_TD, batch.head_VD, batch.labels_T, reduction="none")),
        )
    if quack := optional("quack.linear_cross_entropy", "chunked_linear_cross_entropy"):
        yield GivenHidden(
            "QuACK",
            lambda batch: quack(batch.hidden_TD, batch.head_VD, batch.labels_T, reduction="sum"),
            supports_weights=False,
        )


def make_batch(vocab_size: int, is_weighted: bool) -> Batch:
    """Random inputs whose logits have a standard deviation of 2."""
    torch.manual_seed(0)
    hidden_TD = torch.randn(NUM_TOKENS, WIDTH, device="cuda", dtype=torch.bfloat16)
    head_VD = (torch.randn(vocab_size, WIDTH, device="cuda") * (2 / WIDTH**0.5)).bfloat16()
    labels_T = torch.randint(vocab_size, (NUM_TOKENS,), device="cuda")
    weights_T = torch.rand(NUM_TOKENS, device="cuda") / NUM_TOKENS if is_weighted else None
    return Batch(hidden_TD, head_VD, labels_T, weights_T, torch.zeros_like(head_VD, dtype=torch.float32))


def exact_loss(batch: Batch) -> float:
    """In double precision, from logits rounded to bfloat16 as everyone's are."""
    total = 0.0
    for rows in torch.arange(NUM_TOKENS, device="cuda").split(512):
        logits_TV = F.linear(batch.hidden_TD[rows], batch.head_VD).double()
        nll_T = F.cross_entropy(logits_TV, batch.labels_T[rows], reduction="none")
        weights_T = 1.0 if batch.weights_T is None else batch.weights_T[rows].double()
        total += float((nll_T * weights_T).sum())
    return total


def milliseconds(run: Callable[[], object], prepare: Callable[[], object] = lambda: None, num_runs: int = 20) -> float:
    """The median time of a run on the device."""
    times = []
    for number in range(num_runs + 3):
        prepare()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        if number >= 3:
            times.append(start.elapsed_time(stop))
    return median(times)


def peak_megabytes(run: Callable[[], object]) -> float:
    """What a run allocates at most."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before_bytes = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before_bytes) / 1e6


def ceilings() -> tuple[float, float]:
    """Bytes per second of a copy (read and write), and operations per second of a bfloat16 product."""
    source = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy_ms = milliseconds(lambda: target.copy_(source))
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product_ms = milliseconds(lambda: left @ right)
    return 2 * LOGIT_BYTES * source.numel() / copy_ms * 1e3, 2 * 8192**3 / product_ms * 1e3


def logit_rows(copy_rate: float) -> Iterator[tuple[object, ...]]:
    """The table of the losses of given logits, for the whole vocabulary and the shares of 2 and 8 ranks."""
    for vocab_size, is_weighted in product((VOCAB_SIZE, VOCAB_SIZE // 2, VOCAB_SIZE // 8), (True, False)):
        batch = make_batch(vocab_size, is_weighted)
        source_TV, expected = batch.logits(), exact_loss(batch)
        logits_TV = torch.empty_like(source_TV)
        for way in given_logits():
            if is_weighted and not way.supports_weights:
                continue
            head = (vocab_size, "yes" if is_weighted else "no", way.name)
            try:
                logits_TV.copy_(source_TV)
                loss, _ = way.run(batch, logits_TV)
                error = abs(float(loss) - expected) / expected
                if error > TOLERANCE and "share" not in way.name:  # a share's loss is of an echoed vocabulary
                    yield (*head, f"wrong by {error:.1%}", "", "", "")
                    continue
                run = partial(way.run, batch, logits_TV)
                time_ms = milliseconds(run, prepare=partial(logits_TV.copy_, source_TV))
                logits_TV.copy_(source_TV)
                megabytes = peak_megabytes(run)
            except Exception as error:  # another package's failure is a line of the table, not the end of it
                yield (*head, f"fails: {type(error).__name__}", "", "", "")
                continue
            rate = way.passes * LOGIT_BYTES * source_TV.numel() / time_ms * 1e3
            share = (rate / 1e12, f"{rate / copy_rate:.0%}") if way.passes else ("", "")
            yield (*head, time_ms, *share, megabytes)


def hidden_rows(product_rate: float) -> Iterator[tuple[object, ...]]:
    """The table of the losses of hidden states. Useful operations are those of three products."""
    for vocab_size, is_weighted in product((VOCAB_SIZE, VOCAB_SIZE // 2, VOCAB_SIZE // 8), (True, False)):
        batch = make_batch(vocab_size, is_weighted)
        expected = exact_loss(batch)
        leaves = (batch.hidden_TD.requires_grad_(), batch.head_VD.requires_grad_())
        for way in given_hidden():
            if is_weighted and not way.supports_weights:
                continue
            head = (vocab_size, "yes" if is_weighted else "no", way.name)
            run = partial(gradients, way, batch, leaves)
            try:
                error = abs(float(run()) - expected) / expected
                if error > TOLERANCE:
                    yield (*head, f"wrong by {error:.1%}", "", "", "")
                    continue
                time_ms, megabytes = milliseconds(run), peak_megabytes(run)
            except Exception as error:
                yield (*head, f"fails: {type(error).__name__}", "", "", "")
                continue
            rate = 6 * NUM_TOKENS * WIDTH * vocab_size / time_ms * 1e3
            yield (*head, time_ms, rate / 1e12, f"{rate / product_rate:.0%}", megabytes)


def gradients(way: GivenHidden, batch: Batch, leaves: tuple[Tensor, Tensor]) -> Tensor:
    """Forward and backward; the gradients are let go of, the loss is returned."""
    loss = way.loss(batch)
    torch.autograd.grad(loss, leaves, allow_unused=True)  # the head's may have been added to a buffer
    return loss.detach()


def tune() -> str:
    """Times of our ops by the settings that may be chosen."""
    from megacpt_kernels.replay_cross_entropy import kernel

    batch = make_batch(VOCAB_SIZE, True)
    source_TV = batch.logits()
    logits_TV = torch.empty_like(source_TV)
    factored, strict, *_ = given_logits()
    rows: list[tuple[object, ...]] = []
    for columns, warps in product((1024, 2048, 4096, 8192, 16384), (4, 8, 16, 32)):
        if not 4 <= columns // (32 * warps) <= 64:
            continue
        kernel.BLOCK_COLUMNS, kernel.NUM_WARPS = columns, warps
        prepare = partial(logits_TV.copy_, source_TV)
        times = [milliseconds(partial(way.run, batch, logits_TV), prepare) for way in (factored, strict)]
        rows.append((columns, warps, *times))
    tables = [markdown_table(("tile", "warps", "factored ms", "strict ms"), rows)]
    best_columns, best_warps, *_ = min(rows, key=lambda row: float(str(row[2])))
    kernel.BLOCK_COLUMNS, kernel.NUM_WARPS = int(str(best_columns)), int(str(best_warps))
    leaves = (batch.hidden_TD.requires_grad_(), batch.head_VD.requires_grad_())
    chunks = []
    for chunk_tokens in (512, 1024, 2048, 4096, 8192):
        run = partial(gradients, next(given_hidden(chunk_tokens)), batch, leaves)
        chunks.append((chunk_tokens, milliseconds(run), peak_megabytes(run)))
    tables.append(markdown_table(("chunk", "fused ms", "peak MB"), chunks))
    return "\n\n".join(tables)


def tests_pass() -> bool:
    """Whether the ops are right on this GPU."""
    command = [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests" / "kernels")]
    return subprocess.run(command, cwd=ROOT).returncode == 0


def main() -> int:
    """Test, measure, print and save."""
    parser = argparse.ArgumentParser(description="The losses against everyone's, on the GPU that is here.")
    parser.add_argument("--tune", action="store_true", help="try tile widths, warps and chunk lengths instead")
    parser.add_argument("--output", type=Path, help="save here (default: runs/benchmarks/<card>.md)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("No GPU here, so nothing is measured.")
        return 0
    if not tests_pass():
        print("The tests of the kernels fail on this GPU, so nothing is measured.", file=sys.stderr)
        return 1
    card = torch.cuda.get_device_name()
    copy_rate, product_rate = ceilings()
    text = [
        provenance(f"{card}, copy {copy_rate / 1e12:.2f} TB/s, bfloat16 product {product_rate / 1e12:.0f} TFLOP/s"),
        f"N = {NUM_TOKENS}, H = {WIDTH}, bfloat16, forward and backward.",
    ]
    if options.tune:
        text.append(tune())
    else:
        names = ("V", "weights", "loss of given logits", "ms", "TB/s", "of the copy", "peak MB")
        text.append(markdown_table(names, list(logit_rows(copy_rate))))
        names = ("V", "weights", "loss of hidden states", "ms", "TFLOP/s", "of the product", "peak MB")
        text.append(markdown_table(names, list(hidden_rows(product_rate))))
    output = options.output or ROOT / "runs" / "benchmarks" / f"{card.replace(' ', '-')}.md"
    publish("\n\n".join(text), output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
