"""Time and memory of the fused loss against full logits, on any CPU: `python kernels/benchmarks/fused_loss_on_cpu.py`.

The ways to the same weighted loss take turns, and of each the fastest turn counts: a shared machine only ever adds to a
time, and not to everyone's alike. Memory is the rise of the resident set over what the inputs take, at its highest.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from harness import cpu_description, markdown_table, provenance, publish
from torch import Tensor

from megacpt_kernels import fused_linear_replay_cross_entropy

ENOUGH_SECONDS = 60
"""After so long, a slow way gets no more turns."""

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def full_logits(hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor, weights_T: Tensor) -> Tensor:
    return (F.cross_entropy(F.linear(hidden_TD, head_VD), labels_T, reduction="none") * weights_T).sum()


def chunked_by_torch(hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor, weights_T: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    nll_T = F.linear_cross_entropy(hidden_TD, head_VD, labels_T, reduction="none", options=options)
    return (nll_T * weights_T).sum()


def fused(hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor, weights_T: Tensor) -> Tensor:
    return fused_linear_replay_cross_entropy(hidden_TD, head_VD, labels_T, weights_T).loss


LOSSES: dict[str, Loss] = {"full logits": full_logits, "fused": fused}
if hasattr(torch.nn, "LinearCrossEntropyOptions"):
    LOSSES["torch's linear_cross_entropy, chunked"] = chunked_by_torch


class Shape(NamedTuple):
    """Sizes of one measurement."""

    num_tokens: int
    width: int
    vocab_size: int


class Measured(NamedTuple):
    """What one turn took."""

    seconds: float
    cpu_seconds: float
    """Of all threads."""
    peak_bytes: int


def measure(shape: Shape, trains: bool, num_turns: int) -> dict[str, Measured]:
    """The shortest times and the highest memory of each way; forward and backward, or the forward alone."""
    torch.manual_seed(0)
    hidden_TD = torch.randn(shape.num_tokens, shape.width, requires_grad=trains)
    head_VD = (torch.randn(shape.vocab_size, shape.width) / shape.width**0.5).requires_grad_(trains)
    labels_T = torch.randint(shape.vocab_size, (shape.num_tokens,))
    weights_T = torch.rand(shape.num_tokens) / shape.num_tokens

    def turn(loss_of: Loss) -> Measured:
        hidden_TD.grad = head_VD.grad = None
        reset_peak()
        before_bytes = resident_bytes("VmRSS")
        start, cpu_start = time.perf_counter(), time.process_time()
        loss = loss_of(hidden_TD, head_VD, labels_T, weights_T)
        if trains:
            loss.backward()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        return Measured(seconds, cpu_seconds, resident_bytes("VmHWM") - before_bytes)

    turns: dict[str, list[Measured]] = {name: [turn(loss_of)] for name, loss_of in LOSSES.items()}  # to warm up
    for _ in range(num_turns):
        for name, loss_of in LOSSES.items():
            if sum(result.seconds for result in turns[name]) < ENOUGH_SECONDS:
                turns[name].append(turn(loss_of))
    return {
        name: Measured(
            min(result.seconds for result in results),
            min(result.cpu_seconds for result in results),
            max(result.peak_bytes for result in results),
        )
        for name, results in turns.items()
    }


def resident_bytes(field: str) -> int:
    """A line of /proc/self/status that counts in kB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; memory can be measured on Linux only")


def reset_peak() -> None:
    """Give back what the C library keeps of earlier turns; begin a new highest resident set (proc(5), clear_refs)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description="Time and memory of the fused loss against full logits, on a CPU.")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[49152, 128256])
    parser.add_argument("--turns", type=int, default=5, help="after one to warm up")
    parser.add_argument("--output", type=Path, help="save the table in this file")
    options = parser.parse_args()
    rows = []
    for vocab_size in options.vocabularies:
        for trains in (True, False):
            mode = "training" if trains else "evaluation"
            results = measure(Shape(options.tokens, options.width, vocab_size), trains, options.turns)
            for name, result in results.items():
                rows.append((vocab_size, mode, name, 1e3 * result.seconds, result.cpu_seconds, result.peak_bytes / 1e6))
    table = markdown_table(("V", "mode", "loss", "ms", "CPU s", "peak MB"), rows)
    where = provenance(f"{cpu_description()} of {os.cpu_count()} cores")
    publish(f"N = {options.tokens}, H = {options.width}, float32, weighted.\n{where}\n\n{table}", options.output)


if __name__ == "__main__":
    main()
