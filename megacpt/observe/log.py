"""The log: rank 0 speaks, the other ranks only warn, and say who they are.

It goes to stderr, as plain lines. The console (results, tables) is on stdout.
"""

from __future__ import annotations

import functools
import logging
import os
import sys


class _OfThisRank(logging.Formatter):
    """A plain message; what is worse than INFO names its level, and the rank unless that is 0."""

    def __init__(self) -> None:
        super().__init__("%(message)s")
        self.stage: int | None = None

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno > logging.INFO:
            text = f"{record.levelname.lower()}: {text}"
        if _rank():
            stage = "" if self.stage is None else f", stage {self.stage}"
            text = f"[rank {_rank()}{stage}] {text}"
        return text


class _Stderr(logging.StreamHandler):
    """Writes to whatever sys.stderr is when a record comes, so that redirecting it works at any time."""

    @property
    def stream(self):  # type: ignore[no-untyped-def]
        return sys.stderr

    @stream.setter
    def stream(self, _: object) -> None:
        pass


def _rank() -> int:
    """This process's rank as its launcher (deepspeed, torchrun, srun) told it; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


@functools.cache
def _formatter() -> _OfThisRank:
    return _OfThisRank()


@functools.cache
def logger() -> logging.Logger:
    """The project's logger: INFO and above on rank 0, WARNING and above with a prefix on every other rank."""
    log = logging.getLogger("megacpt")
    handler = _Stderr()
    handler.setFormatter(_formatter())
    handler.addFilter(lambda record: record.levelno > logging.INFO or _rank() == 0)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    return log


def warn_once(message: str, *values: object) -> None:
    """Warn of what every rank finds alike: rank 0 says it."""
    if _rank() == 0:
        logger().warning(message, *values)


def name_stage(stage: int) -> None:
    """Have this process's warnings name its pipeline stage, once that is known."""
    _formatter().stage = stage
