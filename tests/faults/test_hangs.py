"""A rank that is frozen, or never comes: the others say who it is, and end."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from megacpt.trainer.watchdog import HUNG
from tests.distributed import free_port
from tests.faults.ranks import start
from tests.parity.runs import metrics_of, write_recipe


def test_a_frozen_rank_is_named_and_ends_the_run(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        parallel={"pipeline": 2},
        training={"tokens": 36 * 8 * 16},
        evaluation={"every": None, "at_start": False},
        guard={"hang_timeout_seconds": 4},
    )
    port = free_port()
    ranks = [start(rank, recipe, port) for rank in range(2)]
    metrics = tmp_path / "runs" / "small" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
        assert ranks[0].poll() is None, ranks[0].stderr.read() if ranks[0].stderr else ""
        time.sleep(0.05)
    ranks[1].send_signal(signal.SIGSTOP)
    _, said = ranks[0].communicate(timeout=100)
    ranks[1].kill()
    ranks[1].communicate()
    assert ranks[0].returncode == HUNG, said
    assert "hung: nothing new for" in said
    assert f"pid {ranks[1].pid}) is frozen or gone" in said
    assert "train_step" in (tmp_path / "runs" / "small" / "ranks" / "rank_0000.stacks.txt").read_text()
    assert len(metrics_of(recipe)) >= 3


def test_a_rank_that_never_comes_is_named(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, parallel={"data": 2})
    short = "import megacpt.engine.processes as p; p._meet.__defaults__ = (3.0,)"
    port = free_port()
    alone = start(0, recipe, port, code=short)
    _, said = alone.communicate(timeout=100)
    assert alone.returncode == 2, said
    assert "1 of 2 ranks did not come within 3 s (found no rank 1)" in said


@pytest.mark.slow
def test_clocks_that_differ_are_warned_of_once(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, evaluation={"every": None, "at_start": False, "at_end": False})
    ahead = """
import time
from types import SimpleNamespace
import megacpt.parallel.preflight as preflight
preflight.time = SimpleNamespace(time=lambda: time.time() + 3600)
"""
    port = free_port()
    ranks = [start(0, recipe, port), start(1, recipe, port, code=ahead)]
    said = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert "warning: the nodes' clocks differ by 3" in said[0] and "clocks" not in said[1]


@pytest.mark.slow
def test_a_rank_that_fails_does_not_wait_for_the_others(tmp_path: Path) -> None:
    """In a step, when it has begun to ask the others whether to stop: an orderly exit would wait for their answer."""
    recipe = write_recipe(tmp_path, parallel={"data": 2}, evaluation={"every": None, "at_start": False})
    fail = """
from megacpt.engine.pipelined import PipelinedEngine
def fail(*_): raise MemoryError("out of memory")
PipelinedEngine.train_step = fail
"""
    port = free_port()
    ranks = [start(0, recipe, port), start(1, recipe, port, code=fail)]
    try:
        _, said = ranks[1].communicate(timeout=240)
        assert ranks[1].returncode == 1, said
        assert "out of memory" in said
    finally:
        ranks[0].kill()
        ranks[0].communicate()
