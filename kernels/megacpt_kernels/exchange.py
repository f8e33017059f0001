"""How the ranks that share a vocabulary meet.

The kernels need one small collective per chunk of tokens: every rank's row statistics, 12 bytes a token. They take
it as an object, so that the package depends on no communication library and a test can stand in for one.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import torch
from torch import Tensor


class Exchange(Protocol):
    """The ranks that hold the slices of one vocabulary, in the order of their slices."""

    @property
    def rank(self) -> int:
        """This rank's place among them, from 0."""

    @property
    def size(self) -> int:
        """How many they are."""

    def all_gather(self, stats_TK: Tensor) -> Tensor:
        """Every rank's `stats_TK`, stacked in the order of the ranks: [size, T, K].

        On a GPU it is called under a stream of its own; like `torch.distributed`, it orders its work by the current
        stream and need not wait on the host.
        """


class Gathering:
    """A gather that other work may overlap: on a GPU it runs on a stream of its own until someone waits for it."""

    def __init__(self, exchange: Exchange | None, stats_TK: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        if exchange is None or not stats_TK.is_cuda:
            self._stats_RTK = stats_TK[None] if exchange is None else exchange.all_gather(stats_TK)
            return
        stream = _side_stream(stats_TK.device)
        stream.wait_stream(torch.cuda.current_stream(stats_TK.device))
        with torch.cuda.stream(stream):
            self._stats_RTK = exchange.all_gather(stats_TK)
        stats_TK.record_stream(stream)
        self._done = stream.record_event()

    def wait(self) -> Tensor:
        """[size, T, K], ready for the current stream."""
        if self._done is not None:
            current = torch.cuda.current_stream(self._stats_RTK.device)
            current.wait_event(self._done)
            self._stats_RTK.record_stream(current)
        return self._stats_RTK


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
