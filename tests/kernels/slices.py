"""Ranks that share a vocabulary, as threads of which one runs at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class ThreadExchange:
    """A rank's view of the others. It lets another one run in `all_gather` alone: Triton's interpreter is global."""

    def __init__(
        self, rank: int, size: int, turn: threading.Lock, meeting: threading.Barrier, stats: list[Tensor]
    ) -> None:
        self.rank, self.size = rank, size
        self.num_gathers = 0
        self._turn, self._meeting, self._stats = turn, meeting, stats

    def all_gather(self, stats_TK: Tensor) -> Tensor:
        self.num_gathers += 1
        self._stats[self.rank] = stats_TK
        self._meet()
        gathered_RTK = torch.stack(self._stats)
        self._meet()
        return gathered_RTK

    def _meet(self) -> None:
        self._turn.release()
        try:
            self._meeting.wait(timeout=60)
        finally:
            self._turn.acquire()


def on_ranks(size: int, body: Callable[[ThreadExchange], Result]) -> list[Result]:
    """Run `body` as each of `size` ranks; return what they return, in their order."""
    turn, meeting = threading.Lock(), threading.Barrier(size)
    stats = [torch.empty(0)] * size

    def rank_body(rank: int) -> Result:
        with turn:
            try:
                return body(ThreadExchange(rank, size, turn, meeting, stats))
            except BaseException:
                meeting.abort()
                raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(rank_body, range(size)))
