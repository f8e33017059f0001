"""The rate of a run, with a clock of the test's own."""

import contextlib

import pytest

from megacpt.observe.throughput import Throughput


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def run(meter: Throughput, clock: Clock, tokens: int, seconds: float) -> None:
    with meter.step(tokens):
        clock.seconds += seconds


def test_only_steps_are_timed() -> None:
    clock = Clock()
    meter = Throughput(clock=clock)
    assert meter.tokens_per_second == 0
    for _ in range(3):
        run(meter, clock, tokens=100, seconds=2)
        clock.seconds += 1000
    assert meter.tokens_per_second == 50


def test_the_first_step_counts_only_until_there_is_a_second() -> None:
    clock = Clock()
    meter = Throughput(clock=clock)
    run(meter, clock, tokens=100, seconds=50)
    assert meter.tokens_per_second == 2
    run(meter, clock, tokens=100, seconds=1)
    run(meter, clock, tokens=100, seconds=1)
    assert meter.tokens_per_second == 100


def test_old_steps_leave_the_window() -> None:
    clock = Clock()
    meter = Throughput(window_steps=2, clock=clock)
    for seconds in (1, 1, 100, 5, 5):
        run(meter, clock, tokens=10, seconds=seconds)
    assert meter.tokens_per_second == 2


def test_a_step_that_fails_does_not_count() -> None:
    clock = Clock()
    meter = Throughput(clock=clock)
    with contextlib.suppress(ValueError), meter.step(100):
        clock.seconds += 1
        raise ValueError
    assert meter.tokens_per_second == 0
    run(meter, clock, tokens=10, seconds=1)
    assert meter.tokens_per_second == pytest.approx(10)
