from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacpt.data.order import KeyedPermutation, mix64, stable_hash

keys = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4).map(tuple)


@given(n=st.integers(1, 3000), key=keys)
def test_every_number_comes_exactly_once(n: int, key: tuple[int, ...]) -> None:
    places = KeyedPermutation(n, key)(np.arange(n))
    assert places.dtype == np.int64
    assert np.array_equal(np.sort(places), np.arange(n))


@given(n=st.integers(10**6, 2**62), key=keys, data=st.data())
def test_a_huge_permutation_stays_in_range_and_repeats_nothing(
    n: int, key: tuple[int, ...], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, n - 1000))
    places = KeyedPermutation(n, key)(np.arange(first, first + 1000))
    assert places.min() >= 0 and places.max() < n
    assert len(np.unique(places)) == 1000


@given(n=st.integers(1, 300), key=keys, numbers=st.lists(st.integers(0, 299)))
def test_a_place_does_not_depend_on_what_else_is_asked(n: int, key: tuple[int, ...], numbers: list[int]) -> None:
    asked = np.array(numbers, dtype=np.int64) % n
    permutation = KeyedPermutation(n, key)
    assert np.array_equal(permutation(asked), permutation(np.arange(n))[asked])


def test_shapes_are_kept() -> None:
    permutation = KeyedPermutation(100, (0,))
    assert permutation(7).shape == ()
    assert permutation([]).shape == (0,)
    assert permutation(np.arange(12).reshape(3, 4)).shape == (3, 4)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_every_order_of_a_few_numbers_is_about_equally_likely(n: int) -> None:
    num_keys = 60 * math.factorial(n)
    seen = Counter(tuple(KeyedPermutation(n, (key,))(np.arange(n)).tolist()) for key in range(num_keys))
    assert len(seen) == math.factorial(n)
    # 60 expected, standard deviation 7.7: six of them is beyond chance for the 24 orders of four numbers.
    assert all(abs(count - 60) < 6 * 60**0.5 for count in seen.values())


@pytest.mark.parametrize("n", [1000, 4096, 4097, 100_003])
def test_neighbours_are_parted_and_order_is_lost(n: int) -> None:
    places = KeyedPermutation(n, (3, 1, 4))(np.arange(n))
    steps = np.abs(np.diff(places))
    assert (steps == 1).sum() < 12  # 2 expected of a random order
    assert steps.mean() == pytest.approx(n / 3, rel=0.05)
    assert abs(np.corrcoef(np.arange(n), places)[0, 1]) < 4 / n**0.5
    for bit in range(3):  # low bits of the number tell nothing about low bits of the place
        assert abs(np.mean((np.arange(n) ^ places) >> bit & 1) - 0.5) < 4 * 0.5 / n**0.5


def test_every_part_of_the_key_and_its_place_count() -> None:
    numbers = np.arange(1000)
    orders = [KeyedPermutation(1000, key)(numbers) for key in [(1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 1, 3), (1, 2)]]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 10  # 1 expected of unrelated orders


def test_orders_are_the_same_on_every_machine_and_in_every_release() -> None:
    assert KeyedPermutation(10, (1, 2, 3))(np.arange(10)).tolist() == [6, 1, 5, 7, 2, 8, 3, 0, 4, 9]
    assert KeyedPermutation(10**12, (0,))([0, 1, 10**12 - 1]).tolist() == [138939711962, 712730570613, 56629776101]
    assert stable_hash("order", 0, "medical") == 0x83C3F0290E1E1034
    assert mix64(np.arange(2, dtype=np.uint64), np.uint64(0)).tolist() == [0, 0x5692161D100B05E5]


def test_a_hash_tells_types_and_borders_apart() -> None:
    lists: list[tuple[int | str, ...]] = [(1,), ("1",), (1, 2), (12,), ("a", "b"), ("a\nb",), ("a'", "b"), (), ("",)]
    assert len({stable_hash(*parts) for parts in lists}) == len(lists)
    assert stable_hash(np.int64(7)) == stable_hash(7)
    assert stable_hash("médical ") != stable_hash("medical ")


@pytest.mark.parametrize("n", [0, -1, 2**62 + 1])
def test_an_impossible_size_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="1 <= n"):
        KeyedPermutation(n, (0,))


@pytest.mark.parametrize("number", [-1, 10])
def test_a_number_outside_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=r"do not lie in \[0, 10\)"):
        KeyedPermutation(10, (0,))([0, number])
