"""SIGKILL of any rank at random moments, again and again in the life of one run: it ends as the run that nobody killed.

The short form kills once. The long form, marked slow, kills fifty times, with saves in the foreground and in the
background; what the run was doing each time is printed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from megacpt.checkpoint.folder import CheckpointFolder, damage
from tests.distributed import RankFailure, run_ranks
from tests.long_form import cases
from tests.parity.runs import evaluations_of, metrics_of, train, write_recipe

LAYOUTS: dict[str, tuple[dict[str, Any], bool]] = {
    "pipeline 2, saving in the background": ({"pipeline": 2}, True),
    "data 2, saving in the foreground": ({"zero_stage": 1}, False),
}


NEVER = 1e6
"""Seconds."""


def train_until_killed(
    rank: int, arguments: list[str], victim: int, delay_seconds: float, note: Path
) -> tuple[int, float]:
    """The body of a rank: the training command; its exit code, and the seconds that it took.

    The victim notes what it does after a while, and dies of SIGKILL.
    """
    begun, is_done = time.monotonic(), threading.Event()

    def kill() -> None:
        if not is_done.wait(delay_seconds):
            note.write_text(doing())
            os.kill(os.getpid(), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    if rank == victim:
        killer.start()
    try:
        return train(rank, arguments), time.monotonic() - begun
    finally:
        is_done.set()
        if rank == victim:
            killer.join()


def doing() -> str:
    """What the training of this process is at."""
    if any(thread.name == "checkpoint" for thread in threading.enumerate()):
        return "write in the background"
    main = threading.main_thread().ident
    calls = {call.name for call in traceback.extract_stack(sys._current_frames()[main or 0])}
    if "fit" not in calls:
        return "start or end"
    names = {"save": "save", "finish": "save", "evaluate": "evaluation"}
    return next((what for name, what in names.items() if name in calls), "step")


@pytest.fixture(scope="module", params=cases(LAYOUTS, always=list(LAYOUTS)[:1]))
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, Any]:
    """A recipe on two ranks with eight saves, how long its run takes, in seconds, and its records."""
    parallel, asynchronous = LAYOUTS[request.param]
    recipe = write_recipe(
        tmp_path_factory.mktemp("run"),
        parallel=parallel,
        checkpoint={"every": "12.5%", "asynchronous": asynchronous},
    )
    outcomes = run_ranks(2, train_until_killed, ["--recipe", str(recipe)], 0, NEVER, recipe.parent / "killed")
    assert {code for code, _ in outcomes} == {0}
    return recipe, min(seconds for _, seconds in outcomes), (metrics_of(recipe), evaluations_of(recipe))


@pytest.mark.parametrize(
    "seed, num_kills", [(0, 1), *(pytest.param(seed, 6, marks=pytest.mark.slow) for seed in range(1, 5))]
)
def test_a_run_killed_at_random_moments_is_undisturbed(
    seed: int, num_kills: int, undisturbed: tuple[Path, float, Any]
) -> None:
    recipe, run_seconds, expected = undisturbed
    chance, kills, note = random.Random(seed), Counter[str](), recipe.parent / "killed"
    for life in count():
        run = recipe.parent / "runs" / f"{seed}-{life}"
        arguments = ["--recipe", str(recipe), "--set", f"name={run.name}", "--resume", "auto"]
        while True:
            delay_seconds = chance.uniform(0.0, run_seconds) if kills.total() < num_kills else NEVER
            try:
                outcomes = run_ranks(2, train_until_killed, arguments, chance.randrange(2), delay_seconds, note)
            except RankFailure:
                kills[note.read_text()] += 1
                note.unlink()
                assert all(damage(path) == [] for path in CheckpointFolder(run / "checkpoints").complete())
            else:
                break
        assert {code for code, _ in outcomes} == {0}
        assert (metrics_of(recipe, run.name), evaluations_of(recipe, run.name)) == expected
        if kills.total() == num_kills:
            break
    print(f"killed in {', '.join(f'{what}: {number}' for what, number in kills.items())}")
