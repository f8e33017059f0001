"""How fast a run trains, and how long it has to go."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Throughput:
    """Tokens per second over the last steps.

    Only what happens inside `step` is timed, so evaluations and checkpoints do not look like slow training. The very
    first step compiles, allocates and warms up; it counts only until there is a second one. On a GPU the body of a
    step has to wait for the device (reading the loss does), else the time of a launch is measured.

    Args:
        window_steps: number of steps that the rate is a mean of.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, window_steps: int = 20, clock: Callable[[], float] = time.monotonic) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=window_steps)
        self._clock = clock
        self._num_steps = 0

    @contextmanager
    def step(self, tokens: int) -> Iterator[None]:
        """Time a training step of `tokens` tokens; a step that raises does not count."""
        start = self._clock()
        yield
        if self._num_steps == 1:
            self._steps.clear()
        self._num_steps += 1
        self._steps.append((tokens, self._clock() - start))

    @property
    def tokens_per_second(self) -> float:
        """The rate over the window; 0 before the first step."""
        seconds = sum(seconds for _, seconds in self._steps)
        return sum(tokens for tokens, _ in self._steps) / seconds if seconds else 0.0
