"""A data-parallel rank's share of every step, made ready while the step before it runs.

A step whose first sample is f (see `megacpt.data.history`) reads, with `dp` ranks and micro-batches of B rows, as row
j of micro-batch m on rank r,

    sample  f + (m * dp + r) * B + j

so the ranks of a step of G rows read exactly the samples [f, f + G), whatever the layout. The loss is normalised by
the weight of the whole global batch, which every rank works out for itself from the index alone (domains and document
boundaries, no tokens, no communication): dividing by the weight of a micro-batch instead would cancel the domains'
weights wherever a micro-batch holds one domain.

While a step is made, the system is asked to fetch the next one's rows from disk: they are known, so cold storage is
waited for once a step, not once a row. The thread that prefetches changes when a step is made, never what it is:
`step(k)` is a function of k and the history.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megacpt.data.batch import MicroBatch, collate
from megacpt.data.history import History
from megacpt.data.mixture import Int64s
from megacpt.data.stream import Location, Stream

Float64s = npt.NDArray[np.float64]


class _Plan(NamedTuple):
    """What the index says about the global batch of a step."""

    location: Location  # of all rows
    loss_weights: Float64s  # of what labels are counted as, in the stream's order
    global_weight: float


class Loader:
    """The micro-batches of one data-parallel rank, step by step. Use it as a context manager, or `close` it.

    Args:
        stream: the rows of the run, and by its history which of them a step reads.
        micro_rows: rows of a micro-batch, B; global batches must be multiples of B * dp_size.
        dp_rank, dp_size: this rank and the number of data-parallel ranks.
        loss_weights: domain -> share that is in force -> what labels are counted as (`Stream.counted`) -> what they
            count in the loss, against the others; absent: 1.
        document_mask: whether documents are kept apart (see `megacpt.data.batch`).
        start_step: the step that will be asked for first.
        prefetch_steps: how many steps are made ahead; 0 makes every step when it is asked for.

    Attributes:
        last_wait_seconds: how long the last `step` kept its caller waiting.

    Raises:
        ValueError: if the layout does not fit a step from `start_step` on.
    """

    def __init__(
        self,
        stream: Stream,
        micro_rows: int = 1,
        dp_rank: int = 0,
        dp_size: int = 1,
        loss_weights: Callable[[Mapping[str, float]], Mapping[str, float]] = lambda shares: {},
        document_mask: bool = True,
        start_step: int = 0,
        prefetch_steps: int = 1,
    ) -> None:
        if not 0 <= dp_rank < dp_size:
            raise ValueError(f"there is no rank {dp_rank} among {dp_size}")
        self.stream = stream
        self.micro_rows = micro_rows
        self.dp_rank = dp_rank
        self.dp_size = dp_size
        self.document_mask = document_mask
        self.prefetch_steps = prefetch_steps
        self.last_wait_seconds = 0.0
        self._loss_weights = loss_weights
        self._plan = lru_cache(maxsize=prefetch_steps + 3)(self._make_plan)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="megacpt-loader")
        self._pending: dict[int, Future[list[MicroBatch]]] = {}
        self._check_layout(start_step)
        self._prefetch(start_step)

    def num_micro_batches(self, step: int) -> int:
        """Micro-batches of this rank in a step."""
        return self.stream.history.settings(step).global_rows // (self.micro_rows * self.dp_size)

    def step(self, step: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of a step, and start to prepare the steps after it.

        Raises:
            whatever reading the step raised, in this thread.
        """
        asked_at = time.perf_counter()
        self._prefetch(step, at_least=1)
        batches = self._pending.pop(step).result()
        self._prefetch(step + 1)
        self.last_wait_seconds = time.perf_counter() - asked_at
        return batches

    def set_weights(self, step: int, weights: Mapping[str, float]) -> None:
        """Mix by other weights from a step on; every rank says the same, before it asks for that step.

        Raises:
            DataError: weights that make no mixture, or of a domain without text.
        """
        self.change(self.stream.history.set_weights(step, weights), step)

    def jump(self, at_step: int, num_samples: int, reason: str = "") -> None:
        """Pass over samples before a step; every rank says the same, before it asks for that step."""
        self.change(self.stream.history.jump(at_step, num_samples, reason), at_step)

    def change(self, history: History, from_step: int) -> None:
        """Go on by a history that differs from the present one at `from_step` or later.

        What was made ahead for steps from there on is forgotten.
        """
        for ahead in [step for step in self._pending if step >= from_step]:
            made = self._pending.pop(ahead)
            if not made.cancel():
                wait([made])  # it would leave a plan of the old history behind
        self.stream = self.stream.with_history(history)
        self._check_layout(from_step)
        self._plan.cache_clear()

    def new_shares(self, step: int) -> dict[str, float] | None:
        """Return domain -> share of the tokens that holds from a step on, if it is another than before."""
        history = self.stream.history
        shares = history.shares(step)
        return shares if step == 0 or shares != history.shares(step - 1) else None

    def samples(self, step: int) -> Int64s:
        """Return the global sample numbers of this rank's rows: [num_micro_batches, micro_rows]."""
        return self.stream.history.first_sample(step) + self._offsets(step)

    def global_weight(self, step: int) -> float:
        """Return the sum of the loss weights over all labels of the global batch: the loss's normaliser."""
        return self._plan(step).global_weight

    def tokens(self, step: int) -> int:
        """Return the tokens (rows * sequence length) trained on before a step."""
        return self.stream.history.tokens(step)

    def tokens_per_domain(self, step: int) -> dict[str, int]:
        """Return the tokens that the global batch takes from each domain (rows * sequence length)."""
        settings, first = self.stream.history.settings(step), self.stream.history.first_sample(step)
        rows = self.stream.counts(first + settings.global_rows) - self.stream.counts(first)
        return {name: int(n) * settings.sequence_length for name, n in zip(self.stream.names, rows, strict=True)}

    def close(self) -> None:
        """End the thread that prefetches. Harmless when repeated."""
        self._executor.shutdown(cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_layout(self, from_step: int) -> None:
        together = self.micro_rows * self.dp_size
        segments = self.stream.history.segments
        ahead = [segment.settings.global_rows for segment in segments if segment.from_step > from_step]
        for rows in [self.stream.history.settings(from_step).global_rows, *ahead]:
            if rows < 1 or rows % together:
                split = f"{self.micro_rows} rows on each of {self.dp_size} ranks"
                raise ValueError(f"{rows} rows are no multiple of {split}")

    def _offsets(self, step: int) -> Int64s:
        """Return where this rank's rows lie in a global batch: [num_micro_batches, micro_rows]."""
        num_micro_batches = self.num_micro_batches(step)
        batch = np.arange(num_micro_batches * self.dp_size * self.micro_rows)
        return batch.reshape(num_micro_batches, self.dp_size, self.micro_rows)[:, self.dp_rank]

    def _prefetch(self, step: int, at_least: int = 0) -> None:
        """Let the thread make steps from `step` on, and forget what was made ahead for another place in the run."""
        wanted = range(step, step + max(self.prefetch_steps, at_least))
        for other in self._pending.keys() - wanted:
            self._pending.pop(other).cancel()
        for ahead in wanted:
            if ahead not in self._pending:
                self._pending[ahead] = self._executor.submit(self._make, ahead)

    def _make_plan(self, step: int) -> _Plan:
        location = self.stream.locate(self.stream.samples(step))
        num_labels = self.stream.labels_of_domains(step, location, self.document_mask)
        weights = self._loss_weights(self.stream.history.shares(step))
        loss_weights = np.array([weights.get(name, 1.0) for name in self.stream.counted])
        return _Plan(location, loss_weights, math.fsum(num_labels * loss_weights))

    def _make(self, step: int) -> list[MicroBatch]:
        location, loss_weights, global_weight = self._plan(step)
        mine = self._offsets(step).ravel()
        rows, counted = self.stream.read(step, location, mine)
        batch = collate(rows, counted, loss_weights[counted] / (global_weight or 1.0), self.document_mask)
        if self.prefetch_steps:
            ahead = self._plan(step + 1).location
            self.stream.will_need(Location(*(part[self._offsets(step + 1).ravel()] for part in ahead)))
        return batch.split(self.micro_rows)
