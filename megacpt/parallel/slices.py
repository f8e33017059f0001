"""Which part of a Hugging Face tensor a rank holds.

A `Slice` says along which dim a tensor is cut, into how many equal parts, and which part is meant; `padded` is the
length of the cut dim after padding (a vocabulary is padded so that every rank's part has one length). Loading cuts with
it, exporting joins with it, so a conversion between layouts is nothing else than slices.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Slice:
    """Part `index` of `count` equal parts of a tensor along `dim`, first padded to `padded` unless that is None."""

    dim: int
    index: int
    count: int
    padded: int | None = None

    def bounds(self, length: int) -> tuple[int, int]:
        """First and last + 1 index of my part of a tensor of `length` along `dim`; the part may reach past it."""
        size = (self.padded or length) // self.count
        return self.index * size, (self.index + 1) * size

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """My part of `whole`; rows past its end are zero."""
        start, stop = self.bounds(whole.shape[self.dim])
        length = whole.shape[self.dim]
        part = whole.narrow(self.dim, min(start, length), max(0, min(stop, length) - min(start, length)))
        return pad_to(part, self.dim, stop - start)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def pad_to(part: torch.Tensor, dim: int, length: int) -> torch.Tensor:
    """`part` lengthened along `dim` to `length` with zeros."""
    missing = length - part.shape[dim]
    if missing == 0:
        return part
    shape = list(part.shape)
    shape[dim] = missing
    return torch.cat([part, part.new_zeros(shape)], dim=dim)


def join(parts: list[torch.Tensor], dim: int, length: int | None = None) -> torch.Tensor:
    """The whole tensor of which `parts` are the slices in order, without the padding past `length`."""
    whole = torch.cat(parts, dim=dim) if len(parts) > 1 else parts[0]
    return whole if length is None else whole.narrow(dim, 0, length)
