"""Ranks that differ are refused by name."""

from __future__ import annotations

from megacpt.errors import LaunchError
from megacpt.parallel.preflight import compare_ranks, digest, versions
from tests.distributed import run_ranks


def compare(rank: int) -> str:
    compare_ranks({"torch": "2.13", "the data": "a"}, 3)
    try:
        compare_ranks({"torch": "2.13", "the data": "b" if rank == 2 else "a"}, 3)
    except LaunchError as error:
        return str(error)
    return ""


def test_the_rank_that_differs_is_named_on_all() -> None:
    said = set(run_ranks(3, compare))
    assert len(said) == 1
    assert said.pop().startswith("rank 2: the ranks do not agree about the data (found b, expected a")


def test_equal_values_have_equal_digests_whatever_their_order() -> None:
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_the_versions_name_what_computes() -> None:
    assert {"python", "torch", "deepspeed", "transformers"} <= versions().keys()
