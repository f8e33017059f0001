"""Held-out loss of every domain, unweighted, computed in the pipeline that trains.

The loss of a domain is the sum of the nll of all its predicted tokens over their number, whatever its weight in
training, so it can be compared with any other model's on the same tokens, and between tokenizers as bits per byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from megacpt.data.held_out import HeldOut
from megacpt.engine.engine import Engine
from megacpt.observe.record import DomainEvaluation, EvaluationRecord


class EvaluationInterrupted(Exception):
    """An evaluation was left before its end; it has no result."""


class Evaluator:
    """Evaluates all domains that have held-out text. Collective: every rank calls it at the same step.

    Args:
        engine: the engine that trains.
        held_out: domain -> its held-out text.
        micro_rows: rows of a micro-batch; that of training, whose buffers the pipeline has.
        dp_rank, dp_size: this data-parallel rank and how many there are.
    """

    def __init__(
        self, engine: Engine, held_out: Mapping[str, HeldOut], *, micro_rows: int, dp_rank: int, dp_size: int
    ) -> None:
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
        return EvaluationRecord(step=step, tokens=tokens, domains=domains)
