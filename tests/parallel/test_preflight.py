"""Ranks that differ are refused by name."""

from __future__ import annotations

import time
from unittest import mock

import pytest

from megacpt.errors import LaunchError
from megacpt.parallel.preflight import compare_ranks, digest, versions
from tests.distributed import run_ranks

AHEAD_SECONDS = 1e6


def compare(rank: int) -> tuple[str, float]:
    """The body of a rank: what it says to a difference of rank 2, and how far apart the clocks are, rank 2's ahead."""
    now = time.time
    with mock.patch.object(time, "time", lambda: now() + (AHEAD_SECONDS if rank == 2 else 0.0)):
        skew_seconds = compare_ranks({"torch": "2.13", "the data": "a"}, 3)
    try:
        compare_ranks({"torch": "2.13", "the data": "b" if rank == 2 else "a"}, 3)
    except LaunchError as error:
        return str(error), skew_seconds
    return "", skew_seconds


def test_the_rank_that_differs_is_named_on_all() -> None:
    ((said, skew_seconds),) = set(run_ranks(3, compare))
    assert said.startswith("rank 2: the ranks do not agree about the data (found b, expected a")
    assert skew_seconds == pytest.approx(AHEAD_SECONDS, rel=0.5)


def test_equal_values_have_equal_digests_whatever_their_order() -> None:
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_the_versions_name_what_computes() -> None:
    assert {"python", "torch", "deepspeed", "transformers"} <= versions().keys()
