"""A watchdog: a run that hangs says which rank did what, and ends, so that the scheduler can start it again.

Every rank notes what it does, and a thread of it writes that into a file of its own in the run folder, every quarter of
the timeout or 30 seconds. A rank that has noted nothing new for too long writes the stacks of all its threads, says
which ranks are silent (their processes are frozen or gone: their files grow old) and what the others wait in, and
leaves with `HUNG`. The launcher then ends the ranks that are left, a frozen one too.

Files, not messages: they need no rank to answer, and stay for the post-mortem. Their ages are compared by the file
system's clock, so the clocks of nodes need not agree.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from megacpt.observe.log import logger

HUNG = 70
"""The exit code of a rank that gave up waiting: EX_SOFTWARE of sysexits.h."""

SLOW = 4.0
"""Start-up, evaluations and saves may take so many times the timeout of a step."""


class Watchdog:
    """Watches this rank from `start` to `close`.

    Args:
        folder: for the ranks' files; made if it does not exist.
        rank, world_size: of this process.
        timeout_seconds: how long a step may take; None: nothing is watched.
    """

    def __init__(self, folder: Path, rank: int, world_size: int, timeout_seconds: float | None) -> None:
        self._folder, self._rank, self._world_size = folder, rank, world_size
        self._timeout_seconds = timeout_seconds
        self._period_seconds = min(30.0, (timeout_seconds or 0.0) / 4)
        self._noted = ("start", time.monotonic(), SLOW)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="megacpt-watchdog", daemon=True)

    def note(self, activity: str, patience: float = 1.0) -> None:
        """Say what this rank does from now on, and that it may take `patience` times the timeout."""
        self._noted = (activity, time.monotonic(), patience)

    def start(self) -> None:
        """Begin to watch."""
        if self._timeout_seconds is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._stacks = self._file(self._rank, "stacks.txt").open("w")
            self._thread.start()

    def close(self) -> None:
        """End it, and remove this rank's files."""
        if self._timeout_seconds is None:
            return
        self._end.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        self._stacks.close()
        for name in ("stacks.txt", "json"):
            self._file(self._rank, name).unlink(missing_ok=True)

    def _file(self, rank: int, name: str) -> Path:
        return self._folder / f"rank_{rank:04d}.{name}"

    def _watch(self) -> None:
        assert self._timeout_seconds is not None
        while not self._end.wait(self._period_seconds):
            activity, since, patience = self._noted
            seconds = time.monotonic() - since
            with suppress(OSError):  # a full or slow disk: this rank looks frozen to the others, and watches on
                self._write(activity, seconds)
            # Should this thread never run again, because some code keeps the interpreter to itself, this one fires.
            limit = self._timeout_seconds * patience
            faulthandler.dump_traceback_later(2 * limit, exit=True, file=self._stacks)
            if seconds > limit:
                self._give_up(activity, seconds)

    def _write(self, activity: str, seconds: float) -> None:
        values = {"activity": activity, "seconds": round(seconds), "host": socket.gethostname(), "pid": os.getpid()}
        self._file(self._rank, "json").write_text(json.dumps(values))

    def _give_up(self, activity: str, seconds: float) -> None:
        faulthandler.dump_traceback(self._stacks, all_threads=True)
        logger().error(
            "hung: nothing new for %d s in '%s'; %s. Stacks: %s",
            seconds,
            activity,
            "; ".join(self._others()),
            self._folder,
        )
        os._exit(HUNG)

    def _others(self) -> list[str]:
        """What is known of the ranks that do not wait in the same place as this one."""
        mine = self._file(self._rank, "json").stat().st_mtime
        found, hosts = [], set()
        for rank in range(self._world_size):
            path = self._file(rank, "json")
            try:
                age = mine - path.stat().st_mtime
                values = json.loads(path.read_text())
            except (OSError, json.JSONDecodeError):
                found.append(f"rank {rank} is gone")
                continue
            hosts.add(values["host"])
            where = f"rank {rank} ({values['host']}, pid {values['pid']})"
            if age > 3 * self._period_seconds:
                found.append(f"{where} is frozen or gone since {age:.0f} s, last in '{values['activity']}'")
            elif values["activity"] != self._noted[0]:
                found.append(f"{where} is in '{values['activity']}' since {values['seconds']} s")
        between = f": is the network between {', '.join(sorted(hosts))} cut?" if len(hosts) > 1 else ""
        return found or [f"all ranks wait in the same place{between}"]
