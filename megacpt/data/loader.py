"""A data-parallel rank's share of every step, made ready while the step before it runs.

Step b of a run with G rows a batch, `dp` ranks and micro-batches of B rows reads, as row j of micro-batch m on rank r,

    sample  b * G + (m * dp + r) * B + j

so the ranks of a step read exactly the samples [b * G, (b + 1) * G), whatever the layout. The loss is normalised by
the weight of the whole global batch, which every rank works out for itself from the index alone (domains and document
boundaries, no tokens, no communication): dividing by the weight of a micro-batch instead would cancel the domains'
weights wherever a micro-batch holds one domain.

The thread that prefetches changes when a step is made, never what it is: `step(k)` is a function of k.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from megacpt.data.batch import MicroBatch, collate
from megacpt.data.mixture import Int64s
from megacpt.data.stream import Location, Stream
from megacpt.errors import DataError


class _Plan(NamedTuple):
    """What the index says about the global batch of a step."""

    location: Location  # of all G samples
    global_weight: float


class Loader:
    """The micro-batches of one data-parallel rank, step by step. Use it as a context manager, or `close` it.

    Args:
        stream: the rows of the run.
        global_rows: rows of a global batch, G.
        micro_rows: rows of a micro-batch, B; G must be a multiple of B * dp_size.
        dp_rank, dp_size: this rank and the number of data-parallel ranks.
        loss_weights: domain -> what its tokens count in the loss, against those of the others; absent: 1.
        document_mask: whether documents are kept apart (see `megacpt.data.batch`).
        start_step: the step that will be asked for first.
        prefetch_steps: how many steps are made ahead; 0 makes every step when it is asked for.

    Attributes:
        last_wait_seconds: how long the last `step` kept its caller waiting.

    Raises:
        ValueError: if the layout does not fit.
        DataError: if a loss weight is negative or not finite.
    """

    def __init__(
        self,
        stream: Stream,
        global_rows: int,
        micro_rows: int = 1,
        dp_rank: int = 0,
        dp_size: int = 1,
        loss_weights: Mapping[str, float] | None = None,
        document_mask: bool = True,
        start_step: int = 0,
        prefetch_steps: int = 1,
    ) -> None:
        if global_rows < 1 or global_rows % (micro_rows * dp_size):
            raise ValueError(f"{global_rows} rows are no multiple of {micro_rows} rows on each of {dp_size} ranks")
        if not 0 <= dp_rank < dp_size:
            raise ValueError(f"there is no rank {dp_rank} among {dp_size}")
        self.stream = stream
        self.global_rows = global_rows
        self.micro_rows = micro_rows
        self.dp_rank = dp_rank
        self.dp_size = dp_size
        self.document_mask = document_mask
        self.prefetch_steps = prefetch_steps
        self.last_wait_seconds = 0.0
        self._loss_weights = np.array([(loss_weights or {}).get(name, 1.0) for name in stream.names])
        for name, weight in zip(stream.names, self._loss_weights, strict=True):
            if not (np.isfinite(weight) and weight >= 0):
                raise DataError("a loss weight must be a finite number >= 0", where=f"domain {name}", found=weight)
        self._plan = lru_cache(maxsize=prefetch_steps + 2)(self._make_plan)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="megacpt-loader")
        self._pending: dict[int, Future[list[MicroBatch]]] = {}
        self._prefetch(start_step)

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of this rank in a step."""
        return self.global_rows // (self.micro_rows * self.dp_size)

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

    def samples(self, step: int) -> Int64s:
        """Return the global sample numbers of this rank's rows: [num_micro_batches, micro_rows]."""
        return step * self.global_rows + self._offsets()

    def global_weight(self, step: int) -> float:
        """Return the sum of the loss weights over all labels of the global batch: the loss's normaliser."""
        return self._plan(step).global_weight

    def tokens_per_domain(self, step: int) -> dict[str, int]:
        """Return the tokens that the global batch takes from each domain (rows * sequence length)."""
        first = step * self.global_rows
        rows = self.stream.mixture.counts(first + self.global_rows) - self.stream.mixture.counts(first)
        return {name: int(n) * self.stream.sequence_length for name, n in zip(self.stream.names, rows, strict=True)}

    def close(self) -> None:
        """End the thread that prefetches. Harmless when repeated."""
        self._executor.shutdown(cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _offsets(self) -> Int64s:
        """Return where this rank's rows lie in a global batch: [num_micro_batches, micro_rows]."""
        batch = np.arange(self.global_rows).reshape(self.num_micro_batches, self.dp_size, self.micro_rows)
        return batch[:, self.dp_rank]

    def _prefetch(self, step: int, at_least: int = 0) -> None:
        """Let the thread make steps from `step` on, and forget what was made ahead for another place in the run."""
        wanted = range(step, step + max(self.prefetch_steps, at_least))
        for other in self._pending.keys() - wanted:
            self._pending.pop(other).cancel()
        for ahead in wanted:
            if ahead not in self._pending:
                self._pending[ahead] = self._executor.submit(self._make, ahead)

    def _make_plan(self, step: int) -> _Plan:
        location = self.stream.locate(np.arange(step * self.global_rows, (step + 1) * self.global_rows))
        num_labels = self.stream.num_labels(location, self.document_mask)
        labels_of_domain = np.bincount(location.domain, weights=num_labels, minlength=len(self.stream.names))
        return _Plan(location, math.fsum(labels_of_domain * self._loss_weights))

    def _make(self, step: int) -> list[MicroBatch]:
        location, global_weight = self._plan(step)
        row_weights = self._loss_weights[location.domain] / (global_weight or 1.0)
        return [
            collate(
                [self.stream.row(int(location.domain[i]), int(location.row[i])) for i in micro_batch],
                location.domain[micro_batch],
                row_weights[micro_batch],
                self.document_mask,
            )
            for micro_batch in self._offsets()
        ]
