"""Best-fit packing: rows of whole documents, as a function of where the documents start and the number of the row.

The text is cut into windows of a fixed number of tokens, each exactly as many as some rows hold. Inside a window
documents are packed by best-fit decreasing: the longest first, each into the fullest row that still has room for all of
it (Johnson 1974; for training rows Ding et al. 2024, arXiv:2404.10830). What then fits nowhere is cut up to fill the
rows that are left open, so every row is full: nothing is padded, nothing is dropped, and rows, tokens and steps are
counted as without packing. A document is cut if it is longer than a row, if a window ends inside it, or if it is among
the few that fit nowhere.

A row is found by packing its window alone, so there is no table and no state. The price is that work: some microseconds
for each document of the window.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

WINDOW_ROWS = 16
"""Rows of a window. More cut fewer documents, and a row costs as many more to find."""


def window_of(row: int, edges: Sequence[int]) -> tuple[int, int]:
    """Return the first row, and the last + 1, of the window that a row is in.

    Args:
        row: from 0 on.
        edges: ascending rows where windows begin anew, from 0 to the number of rows.
    """
    part = bisect_right(edges, row) - 1
    first = row - (row - edges[part]) % WINDOW_ROWS
    return first, min(first + WINDOW_ROWS, edges[part + 1])


def best_fit(lengths: Sequence[int], num_rows: int, row_tokens: int) -> list[list[tuple[int, int]]]:
    """Return for each row the pieces of text in it, (first token, tokens), ascending: `row_tokens` in all.

    Args:
        lengths: tokens of each document of a window, which sum to num_rows * row_tokens.
        num_rows: rows of the window.
        row_tokens: tokens of a row.
    """
    rows: list[list[tuple[int, int]]] = [[] for _ in range(num_rows)]
    free = [(row_tokens, row) for row in range(num_rows)]  # of the rows that are not full, ascending
    pieces: list[tuple[int, int]] = []
    start = 0
    for length in lengths:
        pieces += [(min(row_tokens, length - at), start + at) for at in range(0, length, row_tokens)]
        start += length
    left: list[tuple[int, int]] = []
    for length, start in sorted(pieces, key=lambda piece: -piece[0]):
        at = bisect_left(free, (length, 0))
        if at == len(free):
            left.append((length, start))
            continue
        room, row = free.pop(at)
        rows[row].append((start, length))
        if room > length:
            insort(free, (room - length, row))
    for length, start in left:
        while length:
            room, row = free.pop()  # the one with the most room: fewest cuts
            taken = min(room, length)
            rows[row].append((start, taken))
            start, length = start + taken, length - taken
            if room > taken:
                insort(free, (room - taken, row))
    return [sorted(pieces) for pieces in rows]
