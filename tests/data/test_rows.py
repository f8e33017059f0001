"""What packing does to documents is measured as a count by hand says."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from megacpt.data.packing import WINDOW_ROWS
from megacpt.data.rows import BestFit, cut_documents
from tests.data.memory_corpus import MemoryCorpus

S = 32


def test_cut_documents_are_counted() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 500)
    text = MemoryCorpus([*lengths, (S + 1) - lengths.sum() % (S + 1)])
    num_rows = text.num_tokens // (S + 1)
    documents = [
        (start, stop) for start, stop in pairwise([*text.starts.tolist(), text.num_tokens]) if stop - start > 1
    ]
    tokens = np.empty((num_rows, S + 1), dtype=np.int32)
    BestFit(text, S, (0, num_rows)).read_into(tokens, np.arange(num_rows), np.arange(num_rows))
    row_of = np.empty(text.num_tokens, dtype=int)
    row_of[tokens.ravel()] = np.repeat(np.arange(num_rows), S + 1)
    packed = sum(len({*row_of[start:stop]}) > 1 for start, stop in documents)
    concat = sum(start // S != (stop - 2) // S for start, stop in documents)
    measured = cut_documents(text, S)
    assert num_rows > 3 * WINDOW_ROWS
    assert measured.best_fit == packed / len(documents)
    # Of a document that crosses a window's end only the part before it is seen.
    assert measured.concat == pytest.approx(concat / len(documents), abs=num_rows / WINDOW_ROWS / len(documents))
    assert packed < concat / 3


def test_windows_are_packed_once_for_all_that_read_a_text() -> None:
    """Each keeping its own would hold as many as there are domains and changes of weights, times those of a batch."""

    class Counted(MemoryCorpus):
        num_searches = 0

        def document_starts(self, start: int, stop: int) -> npt.NDArray[np.int64]:
            self.num_searches += 1
            return super().document_starts(start, stop)

    text = Counted([5] * 40 * WINDOW_ROWS)
    num_rows = text.num_tokens // (S + 1)
    for _ in range(3):
        BestFit(text, S, (0, num_rows)).count_starts(np.arange(num_rows))
    assert text.num_searches == -(-num_rows // WINDOW_ROWS)
