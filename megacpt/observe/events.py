"""`events.jsonl`: what happened to a run besides its steps, in the order of the clock.

Unlike the metrics it is never cut back: a step that was skipped, undone by a kill and skipped again is there twice.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import orjson

EVENTS_FILE = "events.jsonl"


class Events:
    """Appends to `events.jsonl`.

    Args:
        folder: the run folder; None: this rank keeps no events.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def write(self, kind: str, **values: object) -> None:
        """Add an event: its kind, the time, and what there is to know of it as JSON values."""
        if self._folder is None:
            return
        line = orjson.dumps({"event": kind, "time": datetime.now(UTC).isoformat(timespec="seconds"), **values})
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / EVENTS_FILE).open("ab", buffering=0) as file:
            file.write(line + b"\n")
