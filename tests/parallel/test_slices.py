"""Slices: what a cut takes, and that joining all parts gives the whole again."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from megacpt.parallel.slices import Slice, join, pad_to


@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    count=st.integers(1, 4),
    data=st.data(),
)
def test_joined_parts_are_the_whole(shape: list[int], count: int, data: st.DataObject) -> None:
    dim = data.draw(st.integers(0, len(shape) - 1))
    length = shape[dim]
    # Padding may be longer than a whole part: the last ranks then hold padding alone.
    padded = -(-data.draw(st.integers(length, 3 * length)) // count) * count
    whole = 1 + torch.arange(torch.Size(shape).numel()).view(shape)
    parts = [Slice(dim, index, count, padded).cut(whole) for index in range(count)]
    assert {part.shape[dim] for part in parts} == {padded // count}
    assert torch.equal(join(parts, dim, length), whole)
    assert join(parts, dim).narrow(dim, length, padded - length).count_nonzero() == 0


def test_parts_are_cut_in_order() -> None:
    whole = torch.arange(12).view(3, 4)
    assert torch.equal(Slice(dim=1, index=1, count=2).cut(whole), whole[:, 2:])
    assert torch.equal(Slice(dim=0, index=2, count=3).cut(whole), whole[2:])


def test_bounds_follow_from_the_padded_length() -> None:
    assert Slice(dim=0, index=1, count=2).bounds(10) == (5, 10)
    assert Slice(dim=0, index=1, count=2, padded=16).bounds(10) == (8, 16)


def test_a_slice_survives_json() -> None:
    piece = Slice(dim=1, index=2, count=4, padded=128)
    assert Slice(**piece.to_json()) == piece


def test_nothing_to_pad_copies_nothing() -> None:
    whole = torch.ones(3, 2)
    assert pad_to(whole, 0, 3) is whole
