"""Held-out loss of every domain, unweighted, and the alignment of gradients, computed in the pipeline that trains.

The loss of a domain is the sum of the nll of all its predicted tokens over their number, whatever its weight in
training, so it can be compared with any other model's on the same tokens, and between tokenizers as bits per byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from megacpt.data.batch import MicroBatch
from megacpt.data.held_out import HeldOut
from megacpt.engine.engine import Engine
from megacpt.observe.record import DomainEvaluation, EvaluationRecord

Aligned = tuple[Sequence[HeldOut], Mapping[str, HeldOut]]
"""The text of the new domains, and of each of the others by name."""


class EvaluationInterrupted(Exception):
    """An evaluation was left before its end; it has no result."""


class Evaluator:
    """Evaluates all domains that have held-out text. Collective: every rank calls it at the same step.

    Args:
        engine: the engine that trains.
        held_out: domain -> its held-out text.
        micro_rows: rows of a micro-batch; that of training, whose buffers the pipeline has.
        dp_rank, dp_size: this data-parallel rank and how many there are.
        aligned: the texts whose gradients are compared at every evaluation; None: none are.
    """

    def __init__(
        self,
        engine: Engine,
        held_out: Mapping[str, HeldOut],
        *,
        micro_rows: int,
        dp_rank: int,
        dp_size: int,
        aligned: Aligned | None = None,
    ) -> None:
        self.aligned = aligned
        self.engine = engine
        self.held_out = dict(held_out)
        self.micro_rows, self.dp_rank, self.dp_size = micro_rows, dp_rank, dp_size

    def evaluate(self, step: int, tokens: int, interrupted: Callable[[], bool] = lambda: False) -> EvaluationRecord:
        """The losses after `step` steps and `tokens` tokens.

        Args:
            interrupted: asked before each domain, on every rank; the same answer everywhere.

        Raises:
            EvaluationInterrupted: the answer was yes.
        """
        domains = {}
        for name, text in self.held_out.items():
            if interrupted():
                raise EvaluationInterrupted
            nll = self.engine.evaluate(text.batches(self.micro_rows, self.dp_rank, self.dp_size))
            num_bytes = text.num_bytes
            domains[name] = DomainEvaluation(
                loss=nll / text.num_tokens,
                bits_per_byte=None if num_bytes is None else nll / math.log(2) / num_bytes,
                tokens=text.num_tokens,
            )
        alignment = None
        if self.aligned is not None:
            if interrupted():
                raise EvaluationInterrupted
            new, old = self.aligned
            others = {name: self._mean([text]) for name, text in old.items()}
            alignment = self.engine.alignment(self._mean(new), others)
        return EvaluationRecord(step=step, tokens=tokens, domains=domains, alignment=alignment)

    def _mean(self, texts: Sequence[HeldOut]) -> list[MicroBatch]:
        """Micro-batches whose loss is the mean over all predicted tokens of some texts."""
        num_tokens = sum(text.num_tokens for text in texts)
        return [
            replace(batch, weights=batch.weights / num_tokens)
            for text in texts
            for batch in text.batches(self.micro_rows, self.dp_rank, self.dp_size)
        ]
