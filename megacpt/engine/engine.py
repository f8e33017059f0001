"""What a trainer sees of an engine, whichever way it is parallel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from megacpt.data.batch import MicroBatch
from megacpt.model.objective import Distillation
from megacpt.observe.record import GradientAlignment
from megacpt.parallel.fragments import Held, StateSource
from megacpt.parallel.slices import Slice


class DomainSums(NamedTuple):
    """What a domain, or a part of one, gives to a step, over the global batch.

    Attributes:
        weighted: sum of weight * loss.
        nll: sum of the unweighted loss, in nats.
        tokens: predicted.
        divergence: sum of KL(teacher || student), in nats; None where no teacher teaches.
    """

    weighted: float
    nll: float
    tokens: int
    divergence: float | None = None

    @classmethod
    def of(cls, rows: Iterable[Sequence[float]], distillation: Distillation | None) -> list[DomainSums]:
        """The objective's `domain_sums`, row by row."""
        taught = distillation.domains if distillation else ()
        return [
            cls(weighted, nll, round(tokens), divergence if number in taught else None)
            for number, (weighted, nll, tokens, divergence) in enumerate(rows)
        ]


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step gave, equal on every rank.

    Attributes:
        loss: the replay-weighted mean over the global batch, in nats per token (with z-loss, if any).
        grad_norm: the global gradient norm before clipping; inf where it was not finite.
        skipped: the update was not applied: it was not acceptable.
        domain_sums: of each domain and part, in the order of the batches' numbers.
    """

    loss: float
    grad_norm: float
    skipped: bool
    domain_sums: list[DomainSums]


Acceptable = Callable[[float, float], bool]
"""(loss, gradient norm before clipping) of a step -> whether its update may be applied. The same on every rank."""


def is_finite(loss: float, grad_norm: float) -> bool:
    """The least that an update must be to be applied."""
    return math.isfinite(loss) and math.isfinite(grad_norm)


class Judge:
    """Has each step's update judged once, after its gradients are known and before they are applied.

    Args:
        measure: the step's loss and gradient norm; collective, called once a step on every rank.
    """

    def __init__(self, measure: Callable[[], tuple[float, float]]) -> None:
        self._measure = measure
        self._acceptable: Acceptable = is_finite
        self._verdict: tuple[float, float, bool] | None = (0.0, 0.0, False)

    def begin_step(self, acceptable: Acceptable) -> None:
        """A new step, judged by `acceptable`. Until the first one nothing is refused."""
        self._acceptable = acceptable
        self._verdict = None

    def verdict(self) -> tuple[float, float, bool]:
        """The step's loss, its gradient norm (inf where it is not finite), and whether its update is refused."""
        if self._verdict is None:
            loss, norm = self._measure()
            norm = norm if math.isfinite(norm) and norm >= 0 else math.inf  # DeepSpeed says -1 for what is not finite
            self._verdict = loss, norm, not self._acceptable(loss, norm)
        return self._verdict

    def is_refused(self) -> bool:
        """Whether the update is refused."""
        return self.verdict()[2]


class Engine(Protocol):
    """Computes steps. Every method is collective: all ranks call it, in the same order."""

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, acceptable: Acceptable = is_finite
    ) -> StepResult:
        """One optimizer step on this data-parallel rank's micro-batches; its update is applied if it is acceptable."""
        ...

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> float:
        """The sum over all ranks' micro-batches of weight * nll, without gradients and without z-loss."""
        ...

    def alignment(
        self, new: Sequence[MicroBatch], old: Mapping[str, Sequence[MicroBatch]]
    ) -> dict[str, GradientAlignment]:
        """The cosines of the gradient of some micro-batches and those of others; what is trained does not change.

        Args:
            new: this data-parallel rank's, weighted as in a training step; ranks have equally many.
            old: name -> others, likewise.
        """
        ...

    def counters(self) -> dict[str, int]:
        """What counts steps, equal on all ranks."""
        ...

    def held(self) -> Iterator[Held]:
        """This rank's part of the fp32 master weights and of the optimizer's state, as views."""
        ...

    def load(self, source: StateSource) -> None:
        """Take over counters and state, under whatever layout they were written."""
        ...

    def forget_moments(self) -> None:
        """Begin the optimizer's moments anew, from the present weights."""
        ...

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter, Slice | None]]:
        """This rank's parameters: Hugging Face name, tensor, which slice of the whole it is."""
        ...
