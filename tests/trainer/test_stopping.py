"""When a run stops before its end: a signal to any rank, or the last moment before a time limit."""

from __future__ import annotations

import os
import signal

from megacpt.parallel.agreement import Agreement
from megacpt.trainer.stopping import UNMEASURED_SAVE_SECONDS, Reason, Stopping, stop_signals
from tests.distributed import run_ranks


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def steps_until_stop(deadline: float, step_seconds: float, save_seconds: float | None) -> int:
    clock = Clock()
    stopping = Stopping(Agreement(1), deadline=deadline, clock=clock)
    if save_seconds is not None:
        stopping.saved(save_seconds)
    num_steps = 0
    while True:
        stopping.begin_step()
        clock.now += step_seconds
        num_steps += 1
        stopping.end_step()
        if stopping.agreed:
            assert stopping.reason is Reason.TIME_LIMIT
            return num_steps


def test_the_last_step_leaves_time_for_the_slowest_save() -> None:
    num_steps = steps_until_stop(deadline=2000.0, step_seconds=10.0, save_seconds=100.0)
    assert 1000.0 + num_steps * 10.0 + 1.5 * 100.0 <= 2000.0
    assert 1000.0 + (num_steps + 2) * 10.0 + 1.5 * 100.0 > 2000.0, "it stopped earlier than it had to"


def test_a_save_that_was_not_measured_is_taken_to_be_slow() -> None:
    num_steps = steps_until_stop(deadline=2000.0, step_seconds=10.0, save_seconds=None)
    assert 1000.0 + num_steps * 10.0 + UNMEASURED_SAVE_SECONDS <= 2000.0


def test_a_save_in_the_background_is_waited_for_too() -> None:
    clock = Clock()
    for num_saves, is_time in ((1, False), (2, True)):
        stopping = Stopping(Agreement(1), deadline=clock.now + 2.5 * 100.0, num_saves=num_saves, clock=clock)
        stopping.saved(100.0)
        assert stopping.now() is is_time


def test_without_a_limit_and_a_signal_it_goes_on() -> None:
    stopping = Stopping(Agreement(1))
    stopping.begin_step()
    stopping.end_step()
    assert not stopping.now()
    assert stopping.reason is Reason.NONE


def test_the_handler_only_takes_note_and_the_old_one_comes_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with stop_signals() as signalled:
        assert not signalled()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signalled()
    assert signal.getsignal(signal.SIGUSR1) is before


def agree(rank: int) -> list[bool]:
    signals = iter([False, False, True, False])
    stopping = Stopping(Agreement(3), signalled=lambda: next(signals) and rank == 1)
    stopped = []
    for _ in range(4):
        stopping.begin_step()
        stopping.end_step()
        stopped.append(stopping.agreed)
    return stopped


def test_a_signal_to_one_rank_stops_all_after_the_same_step() -> None:
    assert run_ranks(3, agree) == [[False, False, True, True]] * 3
