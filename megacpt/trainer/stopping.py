"""Stopping before the end, with a checkpoint: on a signal to any one rank, or before a time limit.

Schedulers send SIGTERM or SIGUSR1 (Slurm: `--signal`) some minutes before they kill. A handler only notes the signal;
the ranks agree on it once a step, so all stop after the same step, save, and leave with `INTERRUPTED`. A time limit
needs no signal: rank 0 reckons, from the slowest step and the slowest save so far, when the last moment is.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

from megacpt.parallel.agreement import Agreement

INTERRUPTED = 75
"""The exit code of a run that stopped early, with a checkpoint, and goes on with `--resume auto`: EX_TEMPFAIL of
sysexits.h. slurm/train.sbatch requeues on it."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
UNMEASURED_SAVE_SECONDS = 120.0
"""What a save is taken to last until one has been measured."""


class Reason(IntEnum):
    """Why to stop. The larger wins when ranks disagree."""

    NONE = 0
    TIME_LIMIT = 1
    SIGNAL = 2


class Stopping:
    """Whether to stop. Its methods but `saved` are collective.

    Args:
        agreement: of all ranks.
        signalled: whether a signal came to this process.
        deadline: the moment, in seconds since the epoch, at which the scheduler kills; None: none. Only that of rank 0
            needs to be right.
        num_saves: how many a stop may have to wait for: its own, and one in the background that it comes upon.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        agreement: Agreement,
        signalled: Callable[[], bool] = lambda: False,
        deadline: float | None = None,
        num_saves: int = 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._num_saves = num_saves
        self._agreement = agreement
        self._signalled = signalled
        self._deadline = deadline
        self._clock = clock
        self._slowest_save_seconds: float | None = None
        self._slowest_step_seconds = 0.0
        self._step_began: float | None = None
        self.reason = Reason.NONE

    def begin_step(self) -> None:
        """Tell the others whether this rank wants to stop; the time since the last call was a step with its hooks."""
        now = self._clock()
        if self._step_began is not None:
            self._slowest_step_seconds = max(self._slowest_step_seconds, now - self._step_began)
        self._step_began = now
        self._agreement.propose(self._wish(now))

    def end_step(self) -> None:
        """Learn whether any rank wanted to stop when the step began."""
        self.reason = max(self.reason, Reason(self._agreement.largest()))

    @property
    def agreed(self) -> bool:
        """Whether the ranks have agreed to stop. It stays so."""
        return self.reason is not Reason.NONE

    def now(self) -> bool:
        """Whether any rank wants to stop, asked and answered at once: for what takes as long as many steps."""
        if not self.agreed:
            self._agreement.propose(self._wish(self._clock()))
            self.end_step()
        return self.agreed

    def saved(self, seconds: float) -> None:
        """A checkpoint took so long."""
        self._slowest_save_seconds = max(seconds, self._slowest_save_seconds or 0.0)

    def _wish(self, now: float) -> Reason:
        if self._signalled():
            return Reason.SIGNAL
        save = UNMEASURED_SAVE_SECONDS if self._slowest_save_seconds is None else 1.5 * self._slowest_save_seconds
        # Two steps: the one that begins now, and the one after it, when the agreement is next asked.
        needed = 2 * self._slowest_step_seconds + self._num_saves * save
        is_last_moment = self._deadline is not None and now + needed > self._deadline
        return Reason.TIME_LIMIT if is_last_moment else Reason.NONE


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Take note of `STOP_SIGNALS` instead of dying of them; yields whether one has come. For the main thread.

    A second signal changes nothing: who wants the process dead at once sends SIGKILL.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
