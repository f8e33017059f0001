"""Packing keeps documents whole where it can, loses nothing, and is what a slow search for the best row says."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from megacpt.data.packing import WINDOW_ROWS, best_fit, window_of


def slow_best_fit(lengths: list[int], num_rows: int, row_tokens: int) -> list[list[tuple[int, int]]]:
    """One token list per row; every choice looks at all rows."""
    texts, start = [], 0
    for length in lengths:
        text = [*range(start, start + length)]
        texts += [text[at : at + row_tokens] for at in range(0, length, row_tokens)]
        start += length
    rows: list[list[list[int]]] = [[] for _ in range(num_rows)]

    def room(row: int) -> int:
        return row_tokens - sum(map(len, rows[row]))

    left = []
    for text in sorted(texts, key=len, reverse=True):
        fitting = [row for row in range(num_rows) if room(row) >= len(text)]
        if fitting:
            rows[min(fitting, key=lambda row: (room(row), row))].append(text)
        else:
            left.append(text)
    for text in left:
        while text:
            row = max(range(num_rows), key=lambda row: (room(row), row))
            text, taken = text[room(row) :], text[: room(row)]
            rows[row].append(taken)
    return [sorted((text[0], len(text)) for text in row) for row in rows]


@given(row_tokens=st.integers(2, 12), num_rows=st.integers(1, 6), data=st.data())
def test_it_is_the_best_fit(row_tokens: int, num_rows: int, data: st.DataObject) -> None:
    total = row_tokens * num_rows
    cuts = data.draw(st.sets(st.integers(1, total - 1)))
    edges = [0, *sorted(cuts), total]
    lengths = [stop - start for start, stop in pairwise(edges)]
    packed = best_fit(lengths, num_rows, row_tokens)
    assert packed == slow_best_fit(lengths, num_rows, row_tokens)
    assert all(sum(length for _, length in row) == row_tokens for row in packed)
    assert sorted(token for row in packed for at, n in row for token in range(at, at + n)) == [*range(total)]


def test_what_fits_is_whole() -> None:
    assert best_fit([3, 7, 5, 2, 8, 5], 3, 10) == [[(15, 2), (17, 8)], [(0, 3), (3, 7)], [(10, 5), (25, 5)]]
    # The document of 12 is longer than a row: a row of its own, and its end among the others.
    assert best_fit([6, 12, 2], 2, 10) == [[(6, 10)], [(0, 6), (16, 2), (18, 2)]]
    # Where nothing fits, the fewest cuts.
    assert best_fit([6, 6, 6, 2], 2, 10) == [[(0, 6), (16, 2), (18, 2)], [(6, 6), (12, 4)]]


def test_windows_begin_anew_at_edges() -> None:
    edges = (0, 5, 5 + 2 * WINDOW_ROWS)
    windows = [window_of(row, edges) for row in range(edges[-1])]
    assert sorted(set(windows)) == [(0, 5), (5, 5 + WINDOW_ROWS), (5 + WINDOW_ROWS, 5 + 2 * WINDOW_ROWS)]
    assert all(first <= row < last for row, (first, last) in enumerate(windows))
