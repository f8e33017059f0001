"""A corpus in memory whose tokens say where they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from megacpt.data.history import History, Settings, Stage
from megacpt.data.rows import OneByOne, TokenSource
from megacpt.data.stream import Stream, record_of


class MemoryCorpus(OneByOne):
    """Documents of given lengths; the token at offset i is `first_token + i`, so no two tokens are equal."""

    def __init__(self, lengths: Sequence[int], first_token: int = 0, text_bytes: int | None = None) -> None:
        self.tokens = first_token + np.arange(sum(lengths))
        self.starts = np.setdiff1d(np.cumsum([0, *lengths])[:-1], [sum(lengths)])
        self.num_tokens = len(self.tokens)
        self.num_documents = len(lengths)
        self.text_bytes = text_bytes
        self.fingerprint: str | None = None
        self.shard_digests: tuple[str, ...] = ()

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        assert start >= 0 and start + count <= self.num_tokens
        return self.tokens[start : start + count].copy()

    def document_starts(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        assert 0 <= start <= stop <= self.num_tokens
        return self.starts[(self.starts >= start) & (self.starts < stop)]


class UnreadableCorpus(MemoryCorpus):
    """One that knows its boundaries but cannot give a token."""

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        raise OSError("the disk is gone")


def stream_of(
    corpora: Mapping[str, TokenSource],
    weights: Mapping[str, float],
    sequence_length: int,
    global_rows: int = 1,
    seed: int = 0,
    **reading: Any,
) -> Stream:
    """The stream of a run without any change; `reading` says how its texts are read."""
    plan = [Stage(0, Settings(weights, sequence_length, global_rows))]
    records = {name: record_of(corpus, **reading) for name, corpus in corpora.items()}
    return Stream(corpora, History.begin(seed, plan, records))
