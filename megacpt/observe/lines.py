"""Files of JSON lines that grow as a run goes, and outlive a disk that is full for a while."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from megacpt.observe.log import logger


class LineFile:
    """Appends objects to a file, one a line.

    Each time is one write to a file opened for appending, so a killed process leaves at most one torn line, the last.
    Opening the file anew costs microseconds against a step of seconds and leaves nothing to close. Lines that the disk
    does not take wait in memory and are written with the next one: a full disk does not end a run.

    Args:
        path: of the file, in a folder that exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[bytes] = []

    def append(self, values: Mapping[str, Any]) -> None:
        """Add a line."""
        self._waiting.append(orjson.dumps(values) + b"\n")
        try:
            self._write(b"".join(self._waiting))
        except OSError as error:
            if len(self._waiting) == 1:
                logger().warning("%s: %s. The run goes on, its lines wait in memory.", self.path, error.strerror)
        else:
            self._waiting.clear()

    def _write(self, lines: bytes) -> None:
        with self.path.open("ab", buffering=0) as file:
            end = file.tell()
            if file.write(lines) < len(lines):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def cut_back(self, last_step: int) -> None:
        """Drop the lines whose `step` is a later one."""
        lines = [*read_json_lines(self.path), *map(orjson.loads, self._waiting)]
        if not self.path.exists():
            return
        replacement = self.path.with_suffix(".jsonl.new")
        with replacement.open("wb") as file:
            file.write(b"".join(orjson.dumps(line) + b"\n" for line in lines if line["step"] <= last_step))
            file.flush()
            os.fsync(file.fileno())
        replacement.replace(self.path)
        self._waiting.clear()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, if there is one, without a torn last line.

    Any other line that is not JSON is left out with a warning.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    objects = []
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                objects.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            if number < len(lines):
                logger().warning("%s:%d is not JSON and is dropped", path, number)
    return objects
