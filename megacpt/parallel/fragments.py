"""Which elements of which Hugging Face tensor an optimizer holds, and what one layout's part has of another's.

ZeRO lays tensors end to end and gives every rank a run of the result, so what a rank owns of a tensor is a run of
consecutive elements of its tensor-parallel slice: a `Fragment`. Seen on the whole tensor such a run is at most three
rectangles, so that copying between any two layouts is cutting rectangles with rectangles: no tensor is ever gathered,
and a rank reads the rows that it needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from megacpt.parallel.slices import Slice

MASTER = "master"
"""The kind of values that the fp32 weights are; what else there is are the optimizer's names for its state."""

DIGEST_CHUNK = {True: 1 << 16, False: 1 << 22}
"""Elements whose digest is computed at a time: on a CPU what a cache holds, elsewhere what keeps a device busy."""


@dataclass(frozen=True)
class Block:
    """A rectangle of the matrix that a tensor is seen as, and where its elements lie in a fragment.

    Attributes:
        rows, columns: ranges of the matrix (first, last + 1).
        offset: of the first element among the fragment's; rows follow each other without gaps.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    offset: int

    @property
    def width(self) -> int:
        return self.columns[1] - self.columns[0]

    def numel(self) -> int:
        return (self.rows[1] - self.rows[0]) * self.width

    def position(self, row: int, column: int) -> int:
        """Where the matrix's element lies among the fragment's."""
        return self.offset + (row - self.rows[0]) * self.width + column - self.columns[0]


@dataclass(frozen=True)
class Fragment:
    """Elements start ... stop - 1 of a flattened slice of a tensor.

    Attributes:
        name: the tensor's Hugging Face name.
        shape: of the whole tensor, without vocabulary padding.
        piece: the slice; None: the whole tensor.
        start, stop: which of the slice's elements, in row-major order.
    """

    name: str
    shape: tuple[int, ...]
    piece: Slice | None
    start: int
    stop: int

    @property
    def matrix(self) -> tuple[int, int]:
        """The tensor as (rows, columns), with the cut dim leading the columns: a slice is a range of columns."""
        dim = self.piece.dim if self.piece else 0
        return math.prod(self.shape[:dim]), math.prod(self.shape[dim:])

    def cut_along(self, dim: int) -> Fragment:
        """The same elements as a part of a slice along `dim`.

        Raises:
            ValueError: they are cut along another dim.
        """
        if self.piece is None:
            return replace(self, piece=Slice(dim=dim, index=0, count=1))
        if self.piece.dim != dim:
            raise ValueError(f"'{self.name}' is cut along dim {self.piece.dim}, not {dim}")
        return self

    def blocks(self) -> list[Block]:
        """The fragment as at most three rectangles: the rest of a row, whole rows, the beginning of a row."""
        first_column, width = 0, self.matrix[1]
        if self.piece is not None:
            begin, end = self.piece.bounds(self.shape[self.piece.dim])
            inner = math.prod(self.shape[self.piece.dim + 1 :])
            first_column, width = begin * inner, (end - begin) * inner
        blocks = []
        position = self.start
        while position < self.stop:
            row, column = divmod(position, width)
            if column or self.stop - position < width:
                length = min(width - column, self.stop - position)
                rows, columns = (row, row + 1), (column, column + length)
            else:
                length = (self.stop - position) // width * width
                rows, columns = (row, row + length // width), (0, width)
            blocks.append(
                Block(rows, (first_column + columns[0], first_column + columns[1]), offset=position - self.start)
            )
            position += length
        return blocks

    def num_real(self) -> int:
        """Elements that are not padding."""
        columns = self.matrix[1]
        return sum(
            (block.rows[1] - block.rows[0]) * max(0, min(block.columns[1], columns) - min(block.columns[0], columns))
            for block in self.blocks()
        )


@dataclass(frozen=True)
class Overlap:
    """What a fragment takes from another one.

    Attributes:
        source: range (first, last + 1) of the other's elements that has all of them.
        source_stride, target_stride: elements from one row to the next, in the source and in the target.
        target: the first element in the target.
        size: rows and columns.
    """

    source: tuple[int, int]
    source_stride: int
    target: int
    target_stride: int
    size: tuple[int, int]

    def copy(self, read: torch.Tensor, target: torch.Tensor) -> None:
        """Copy from the elements of `source` into the target's."""
        rows = torch.as_strided(read, self.size, (self.source_stride, 1))
        offset = target.storage_offset() + self.target
        torch.as_strided(target, self.size, (self.target_stride, 1), offset).copy_(rows)


def overlaps(target: Fragment, source: Fragment) -> list[Overlap]:
    """What `target` takes from `source`, without padding; both of the same tensor.

    Raises:
        ValueError: they are cut along different dims.
    """
    piece = target.piece or source.piece
    if piece is not None:
        target, source = target.cut_along(piece.dim), source.cut_along(piece.dim)
    num_columns = target.matrix[1]
    found = []
    for mine in target.blocks():
        for theirs in source.blocks():
            rows = max(mine.rows[0], theirs.rows[0]), min(mine.rows[1], theirs.rows[1])
            columns = (
                max(mine.columns[0], theirs.columns[0]),
                min(mine.columns[1], theirs.columns[1], num_columns),
            )
            if rows[0] < rows[1] and columns[0] < columns[1]:
                last = theirs.position(rows[1] - 1, columns[1] - 1)
                found.append(
                    Overlap(
                        source=(theirs.position(rows[0], columns[0]), last + 1),
                        source_stride=theirs.width,
                        target=mine.position(rows[0], columns[0]),
                        target_stride=mine.width,
                        size=(rows[1] - rows[0], columns[1] - columns[0]),
                    )
                )
    return found


def digests(fragment: Fragment, values: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """A hash of each of the fragment's values that does not depend on how the tensor is cut.

    Every element's bits, as an integer, are multiplied by a pseudo-random weight of its place in the whole tensor, and
    summed modulo 2^64 (multilinear hashing, Lemire and Kaser 2014, arXiv:1202.4961). The digests of the fragments of a
    tensor, added up modulo 2^64, are that of the tensor; zeros, so padding too, add nothing.

    Args:
        fragment: what the values are of.
        values: kind -> the fragment's elements, flat, of a dtype of 2 or 4 bytes.

    Returns:
        kind -> digest, from 0 to 2^64 - 1.
    """
    first = next(iter(values.values()))
    sums = {kind: torch.zeros((), dtype=torch.long, device=first.device) for kind in values}
    bits = {kind: tensor.view(_INTEGERS[tensor.element_size()]) for kind, tensor in values.items()}
    num_columns = fragment.matrix[1]
    for block in fragment.blocks():
        for rows, columns in _chunks(block, DIGEST_CHUNK[first.device.type == "cpu"]):
            first_places = torch.arange(*rows, device=first.device)[:, None] * num_columns
            weights = _mixed(first_places + torch.arange(*columns, device=first.device))
            start, stop = block.position(rows[0], columns[0]), block.position(rows[1] - 1, columns[1] - 1) + 1
            for kind, elements in bits.items():
                sums[kind] += (elements[start:stop].view(weights.shape) * weights).sum()
    return {kind: int(total) % 2**64 for kind, total in sums.items()}


_INTEGERS = {2: torch.int16, 4: torch.int32}


def _chunks(block: Block, size: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Ranges of rows and columns, each of about `size` elements that follow each other in the fragment."""
    num_rows = max(1, size // block.width)
    for row in range(block.rows[0], block.rows[1], num_rows):
        rows = row, min(row + num_rows, block.rows[1])
        num_columns = size if num_rows == 1 else block.width
        for column in range(block.columns[0], block.columns[1], num_columns):
            yield rows, (column, min(column + num_columns, block.columns[1]))


def _mixed(places: torch.Tensor) -> torch.Tensor:
    """A pseudo-random int64 of each place; in-place: `places` is a temporary of ours."""
    weights = places.add_(1).mul_(-7046029254386353131)  # 0x9E3779B97F4A7C15, as splitmix64 steps
    weights ^= weights >> 30
    return weights.mul_(-4658895280553007687)  # 0xBF58476D1CE4E5B9, as it mixes


@dataclass(frozen=True)
class Held:
    """A fragment and its live values on this rank.

    Attributes:
        fragment: which elements.
        values: kind ("master", and the optimizer's "exp_avg", "exp_avg_sq") -> the elements, flat; views of what
            training works on.
        copy: 0: the one that is saved. Others are replicas (of a tied weight, of what tensor-parallel or data-parallel
            ranks all hold), each number a whole one together with its like on other ranks.
    """

    fragment: Fragment
    values: Mapping[str, torch.Tensor]
    copy: int = 0


class StateSource(Protocol):
    """Where an engine's state comes from."""

    @property
    def counters(self) -> Mapping[str, int]:
        """What counts steps."""
        ...

    @property
    def kinds(self) -> Sequence[str]:
        """What there is of every trained tensor, "master" first."""
        ...

    def fill(self, fragment: Fragment, kind: str, values: torch.Tensor) -> None:
        """Write the fragment's elements of this kind into `values`, flat; padding becomes zero.

        Raises:
            CheckpointError: there is no such tensor, it has another shape, or parts of it are missing.
        """
        ...


def whole_shape(local: Sequence[int], piece: Slice | None, vocab_size: int) -> tuple[int, ...]:
    """The shape of the tensor, without padding, of which `local` is the shape of a slice."""
    if piece is None:
        return tuple(local)
    length = vocab_size if piece.padded else local[piece.dim] * piece.count
    return (*local[: piece.dim], length, *local[piece.dim + 1 :])
