"""What a trainer sees of an engine, whichever way it is parallel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from megacpt.data.batch import MicroBatch
from megacpt.parallel.slices import Slice


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step gave, equal on every rank.

    Attributes:
        loss: the replay-weighted mean over the global batch, in nats per token (with z-loss, if any).
        grad_norm: the global gradient norm before clipping; inf where it was not finite.
        skipped: the update was not applied, because the norm was not finite.
        domain_sums: per domain, over the global batch: (sum of weight * loss, sum of nll in nats, tokens).
    """

    loss: float
    grad_norm: float
    skipped: bool
    domain_sums: list[tuple[float, float, int]]


class Engine(Protocol):
    """Computes steps. Every method is collective: all ranks call it, in the same order."""

    def train_step(self, micro_batches: Sequence[MicroBatch], learning_rate: float) -> StepResult:
        """One optimizer step on this data-parallel rank's micro-batches."""
        ...

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> float:
        """The sum over all ranks' micro-batches of weight * nll, without gradients and without z-loss."""
        ...

    def save(self, folder: Path) -> None:
        """Write weights (as slice files) and optimizer state into `folder`."""
        ...

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote, under the same layout."""
        ...

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter, Slice | None]]:
        """This rank's parameters: Hugging Face name, tensor, which slice of the whole it is."""
        ...
