"""`events.jsonl`: what happened to a run besides its steps, in the order of the clock.

Unlike the metrics it is never cut back: a step that was skipped, undone by a kill and skipped again is there twice.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from megacpt.observe.lines import LineFile

EVENTS_FILE = "events.jsonl"


class Events:
    """Appends to `events.jsonl`.

    Args:
        folder: the run folder; None: this rank keeps no events.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._lines = None if folder is None else LineFile(folder / EVENTS_FILE)

    def write(self, kind: str, **values: object) -> None:
        """Add an event: its kind, the time, and what there is to know of it as JSON values."""
        if self._lines is not None:
            self._lines.path.parent.mkdir(parents=True, exist_ok=True)
            self._lines.append({"event": kind, "time": datetime.now(UTC).isoformat(timespec="seconds"), **values})
