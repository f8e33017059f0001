"""Order without a table: a shuffle of any size as a function that is computed where it is asked.

`KeyedPermutation(n, key)` shuffles [0, n) by a Feistel network, so that the order of 10**12 rows costs no memory, no
start-up and nothing on resume, where a stored permutation costs 8 bytes a row and is built before the first step. The
price is about half a microsecond a row, and an order that is well mixed rather than drawn uniformly from all n!
orders: ample for shuffling text, worthless for cryptography.

Everything is integer arithmetic on 64 bits, so that an order is the same on every machine, Python and numpy. Numbers
that are derived from names (`stable_hash`) use BLAKE2b, never Python's `hash`, which differs between processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from operator import index
from typing import SupportsIndex

import numpy as np
import numpy.typing as npt


def stable_hash(*parts: SupportsIndex | str) -> int:
    """Return 64 bits that depend on every part, its type and its place: the same on every machine and in every process.

    It is the little-endian value of the 8-byte BLAKE2b digest of the parts, written as Python literals in ASCII (1 is
    not "1", and a newline inside a string is escaped) and joined by newlines.
    """
    text = "\n".join(ascii(part) if isinstance(part, str) else str(index(part)) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


# As arrays, for numpy converts a scalar at every operation, which takes longer than what it does to a few numbers.
_SHIFTS = tuple(np.array(bits, dtype=np.uint64) for bits in (30, 27, 31))
_FACTORS = tuple(np.array(factor, dtype=np.uint64) for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mix64(numbers: npt.NDArray[np.uint64], key: npt.NDArray[np.uint64] | np.uint64) -> npt.NDArray[np.uint64]:
    """Return 64 well-mixed bits for every number under a key (or a key for each): splitmix64's finaliser.

    Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators (2014), with Stafford's constants.
    """
    mixed = numbers ^ key
    mixed ^= mixed >> _SHIFTS[0]
    mixed *= _FACTORS[0]
    mixed ^= mixed >> _SHIFTS[1]
    mixed *= _FACTORS[1]
    mixed ^= mixed >> _SHIFTS[2]
    return mixed


class KeyedPermutation:
    """A bijection of [0, n) that is chosen by a key.

    A number of the smallest sufficient count of bits is cut into a low and a high half (which may differ by one bit);
    each round adds to one half, bit by bit, a hash of the other, which the same round would undo: every round, and so
    the whole, is a bijection of [0, 2**bits). A result of n or more is put in again until it falls below n
    (cycle-walking), which keeps the map a bijection of [0, n). As n > 2**(bits - 1), that takes fewer than two passes
    on average.

    Args:
        n: the size, 1 <= n <= 2**62.
        key: any integers; every one counts (see `stable_hash`).

    Raises:
        ValueError: if n is out of range.
    """

    def __init__(self, n: int, key: tuple[int, ...]) -> None:
        if not 1 <= n <= 1 << 62:
            raise ValueError(f"a permutation needs 1 <= n <= 2**62, not {n}")
        self.n = n
        num_bits = (n - 1).bit_length()
        self.low_bits = (num_bits + 1) // 2
        self.low_mask = (1 << (num_bits + 1) // 2) - 1
        self.high_mask = (1 << num_bits // 2) - 1
        num_rounds = 8 if n > 64 else 16  # with fewer, the orders of a handful of numbers would not be equally likely
        self.round_keys = [stable_hash("round", i, *key) for i in range(num_rounds)]

    def __call__(self, numbers: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the places of numbers: int64 of the same shape.

        Raises:
            ValueError: if a number lies outside [0, n).
        """
        asked = np.asarray(numbers, dtype=np.int64)
        if asked.size and not (asked.min() >= 0 and asked.max() < self.n):
            raise ValueError(f"numbers from {asked.min()} to {asked.max()} do not lie in [0, {self.n})")
        return permute(asked.ravel(), [self], np.zeros(asked.size, dtype=np.int64)).reshape(asked.shape)


def permute(
    numbers: npt.NDArray[np.int64], permutations: Sequence[KeyedPermutation], which: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the place of each number under `permutations[which]`: [N]. All at once, for an array operation costs more
    than what it does to the few numbers that one permutation is asked at a time.
    """
    places = np.empty(numbers.shape, dtype=np.uint64)
    num_rounds = np.array([len(permutation.round_keys) for permutation in permutations])
    for rounds in np.unique(num_rounds).tolist():
        some = [permutation for permutation in permutations if len(permutation.round_keys) == rounds]
        feistel = _Feistel(some)
        left = np.flatnonzero(num_rounds[which] == rounds)
        among = (np.cumsum(num_rounds == rounds) - 1)[which[left]]
        places[left] = numbers[left]
        while left.size:
            places[left] = feistel(places[left], among)
            outside = places[left] >= feistel.sizes[among]
            left, among = left[outside], among[outside]
    return places.astype(np.int64)


class _Feistel:
    """One pass of several permutations with equally many rounds."""

    def __init__(self, permutations: Sequence[KeyedPermutation]) -> None:
        def column(name: str) -> npt.NDArray[np.uint64]:
            return np.array([getattr(permutation, name) for permutation in permutations], dtype=np.uint64)

        self.sizes, self.low_bits = column("n"), column("low_bits")
        self.low_mask, self.high_mask, self.round_keys = column("low_mask"), column("high_mask"), column("round_keys").T

    def __call__(self, numbers: npt.NDArray[np.uint64], which: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        low_bits, low_mask, high_mask = self.low_bits[which], self.low_mask[which], self.high_mask[which]
        round_keys = self.round_keys[:, which]
        high, low = numbers >> low_bits, numbers & low_mask
        for even, odd in zip(round_keys[::2], round_keys[1::2], strict=True):
            low ^= mix64(high, even) & low_mask
            high ^= mix64(low, odd) & high_mask
        return (high << low_bits) | low
