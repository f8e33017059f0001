"""Fragments: whatever two layouts cut a tensor into, one is filled from the other, and both have the same digest."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacpt.parallel.fragments import DIGEST_CHUNK, Fragment, digests, overlaps, whole_shape
from megacpt.parallel.slices import Slice


@dataclass(frozen=True)
class Cut:
    """A layout: along which dim, into how many slices, each slice into runs of at most so many elements."""

    dim: int | None
    count: int
    run: int
    padding: int = 0

    def fragments(self, whole: torch.Tensor) -> list[tuple[Fragment, torch.Tensor]]:
        length = whole.shape[self.dim or 0]
        padded = -(-(length + self.padding) // self.count) * self.count if self.padding else None
        pieces = [None] if self.dim is None else [Slice(self.dim, i, self.count, padded) for i in range(self.count)]
        found = []
        for piece in pieces:
            flat = (whole if piece is None else piece.cut(whole)).contiguous().view(-1)
            for start in range(0, flat.numel(), self.run):
                stop = min(start + self.run, flat.numel())
                found.append((Fragment("w", tuple(whole.shape), piece, start, stop), flat[start:stop].clone()))
        return found


def cuts(dim: int, can_be_padded: bool) -> st.SearchStrategy[Cut]:
    paddings = st.integers(1, 7) if can_be_padded else st.just(0)
    sliced = st.builds(Cut, st.just(dim), st.sampled_from([1, 2, 3, 6]), st.integers(3, 60), paddings)
    return st.one_of(sliced, st.builds(Cut, st.none(), st.just(1), st.integers(5, 200)))


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, Cut, Cut]:
    shape = [draw(st.integers(1, 4)) for _ in range(draw(st.integers(1, 3)))]
    dim = draw(st.integers(0, len(shape) - 1))
    shape[dim] *= 6
    can_be_padded = dim == 0 and draw(st.booleans())
    whole = torch.arange(1, 1 + torch.Size(shape).numel(), dtype=torch.float32).view(shape)
    return whole, draw(cuts(dim, can_be_padded)), draw(cuts(dim, can_be_padded))


@settings(deadline=None, max_examples=60)
@given(cases())
def test_any_cut_is_filled_from_any_other(case: tuple[torch.Tensor, Cut, Cut]) -> None:
    whole, here, there = case
    sources = there.fragments(whole)
    for target, expected in here.fragments(whole):
        values = torch.zeros_like(expected)
        num_filled = 0
        for source, content in sources:
            for overlap in overlaps(target, source):
                overlap.copy(content[slice(*overlap.source)], values)
                num_filled += overlap.size[0] * overlap.size[1]
        assert torch.equal(values, expected)
        assert num_filled == target.num_real() == (expected != 0).sum()


@settings(deadline=None, max_examples=60)
@given(cases())
def test_the_digest_does_not_depend_on_the_cut(case: tuple[torch.Tensor, Cut, Cut]) -> None:
    whole, here, there = case
    assert total(here.fragments(whole)) == total(there.fragments(whole))


def total(fragments: list[tuple[Fragment, torch.Tensor]]) -> int:
    return sum(digests(fragment, {"x": values})["x"] for fragment, values in fragments) % 2**64


WHOLE = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "changed",
    [
        WHOLE.flip(0),
        WHOLE.roll(1),
        WHOLE.view(12, 8).T.contiguous().view(8, 12),
        -WHOLE,
        WHOLE.bfloat16().float(),
        torch.zeros_like(WHOLE),
        WHOLE.index_fill(0, torch.tensor([3]), 0.0),
        WHOLE.nextafter(torch.tensor(9.0)),
    ],
)
def test_the_digest_sees_every_change(changed: torch.Tensor) -> None:
    cut = Cut(1, 2, 17)
    assert total(cut.fragments(changed)) != total(cut.fragments(WHOLE))


def test_a_single_bit_and_a_swap_change_the_digest() -> None:
    cut, swapped, flipped = Cut(None, 1, 1000), WHOLE.clone(), WHOLE.clone()
    swapped.view(-1)[[0, 1]] = swapped.view(-1)[[1, 0]]
    flipped.view(torch.int32)[7, 11] ^= 1
    assert len({total(cut.fragments(tensor)) for tensor in (WHOLE, swapped, flipped)}) == 3


def test_digests_of_bf16_and_of_large_tensors() -> None:
    values = torch.randn(DIGEST_CHUNK[True] + 5).bfloat16()
    fragment = Fragment("w", (values.numel(),), None, 0, values.numel())
    halves = [Fragment("w", (values.numel(),), None, 0, 77), Fragment("w", (values.numel(),), None, 77, values.numel())]
    together = sum(digests(part, {"x": values[part.start : part.stop]})["x"] for part in halves)
    assert digests(fragment, {"x": values})["x"] == together % 2**64


def test_slices_along_different_dims_do_not_meet() -> None:
    rows, columns = (Fragment("w", (4, 4), Slice(dim, 0, 2), 0, 8) for dim in (0, 1))
    with pytest.raises(ValueError, match="'w' is cut along dim 1, not 0"):
        overlaps(rows, columns)


@pytest.mark.parametrize(
    "local, piece, whole",
    [
        ((4, 3), None, (4, 3)),
        ((4, 3), Slice(0, 1, 2), (8, 3)),
        ((4, 3), Slice(1, 0, 4), (4, 12)),
        ((64, 3), Slice(0, 0, 2, padded=128), (118, 3)),
    ],
)
def test_the_shape_of_the_whole(local: tuple[int, ...], piece: Slice | None, whole: tuple[int, ...]) -> None:
    assert whole_shape(local, piece, vocab_size=118) == whole
