"""Saving a checkpoint on all ranks together, in the foreground or in the background, whatever the disk does.

Every rank copies what it owns into host memory; from there it is written, by the training thread or by one of its own
while training goes on. All ranks agree on the outcome: either the checkpoint is complete, or the attempt is undone and
reported, and the run goes on with the checkpoint that it had.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.folder import STATE, CheckpointFolder, Retention
from megacpt.checkpoint.state import ENGINE, Snapshot, engine_index
from megacpt.errors import CheckpointError
from megacpt.parallel.fragments import Held

T = TypeVar("T")
HEADERS_BYTES = 2**20
"""Room for what is not tensors, on each rank."""


@dataclass(frozen=True)
class SaveRecord:
    """What became of a save.

    Attributes:
        step, tokens: where the run stood.
        num_bytes: of the tensors of all ranks.
        milestones: names under which the checkpoint is kept for good.
        stall_seconds: how long training stood still for it.
        seconds: from its beginning until it was complete.
        path: the checkpoint; None: the save failed.
        error: why it failed.
    """

    step: int
    tokens: int
    num_bytes: int
    milestones: tuple[str, ...]
    stall_seconds: float
    seconds: float
    path: str | None
    error: str | None


class Saver:
    """Saves checkpoints, one at a time.

    Args:
        folder: where they go.
        channel: to the other ranks; nobody else may use it while a save is written in the background.
        retention: which ones stay.
        asynchronous: write in the background.
    """

    def __init__(
        self, folder: CheckpointFolder, channel: Channel, retention: Retention, *, asynchronous: bool = False
    ) -> None:
        self.folder = folder
        self.channel = channel
        self.retention = retention
        self.asynchronous = asynchronous
        self._save: _Save | None = None
        self._thread: threading.Thread | None = None

    def save(self, state: dict[str, Any], counters: dict[str, int], held: Iterable[Held]) -> SaveRecord | None:
        """Save a checkpoint; in the background, return as soon as training may go on. Collective.

        Args:
            state: what state.json holds: "step", "tokens", "milestones" and more. Only rank 0's is used.
            counters, held: the engine's.

        Returns:
            what became of it, or None while it is being written.

        Raises:
            RuntimeError: an earlier one is still being written; `wait` for it first.
        """
        if self._save is not None:
            raise RuntimeError("a checkpoint is still being written")
        begun = time.monotonic()
        snapshot, error = _attempt(lambda: Snapshot(held))
        answers = self.channel.gather((snapshot.num_bytes() if snapshot else 0, error))
        num_bytes = sum(size for size, _ in answers)
        if self.channel.is_main:
            error = _first_error(error for _, error in answers)
            if error is None:
                needed_bytes = num_bytes + HEADERS_BYTES * len(answers)
                _, error = _attempt(lambda: self.folder.begin(state["step"], needed_bytes))
        num_bytes, error = self.channel.broadcast((num_bytes, error))
        # A copy: what training still changes must not change while it is written.
        self._save = _Save(self, deepcopy(state), counters, num_bytes, begun)
        if snapshot is None or error is not None:
            self._save.outcome = None, error
        elif self.asynchronous:
            self._thread = threading.Thread(target=self._save.run, args=(snapshot,), name="checkpoint", daemon=True)
            self._thread.start()
            self._save.stall_seconds = time.monotonic() - begun
            return None
        else:
            self._save.run(snapshot)
        self._save.stall_seconds = time.monotonic() - begun
        return self.wait()

    def poll(self) -> SaveRecord | None:
        """What became of the save in the background, once that is known here; None until then."""
        if self._thread is None or self._thread.is_alive():
            return None
        return self.wait()

    def wait(self) -> SaveRecord | None:
        """Wait for the save in the background, if there is one; what became of it."""
        save, thread = self._save, self._thread
        self._save = self._thread = None
        if save is None:
            return None
        if thread is not None:
            begun = time.monotonic()
            thread.join()
            save.stall_seconds += time.monotonic() - begun
        return save.record()


class _Save:
    """One save after its snapshot: write, agree, complete or undo."""

    def __init__(
        self, saver: Saver, state: dict[str, Any], counters: dict[str, int], num_bytes: int, begun: float
    ) -> None:
        self.saver = saver
        self.state = state
        self.counters = counters
        self.num_bytes = num_bytes
        self.begun = begun
        self.seconds = self.stall_seconds = 0.0
        self.outcome: tuple[Path | None, str | None] = None, None
        self.failure: BaseException | None = None

    def run(self, snapshot: Snapshot) -> None:
        """Everything that needs no training thread."""
        try:
            self.outcome = self._write(snapshot)
        except BaseException as failure:  # other ranks are gone: raised where training waits for us
            self.failure = failure
        self.seconds = time.monotonic() - self.begun

    def _write(self, snapshot: Snapshot) -> tuple[Path | None, str | None]:
        folder, channel, step = self.saver.folder, self.saver.channel, self.state["step"]
        answers = channel.gather(_attempt(lambda: snapshot.write(folder.partial(step), channel.rank)))
        path, error = None, _first_error(error for _, error in answers)
        if channel.is_main:
            notes = [note for note, _ in answers if note is not None]
            files = {name: record for note in notes for name, record in note["files"].items()}
            if error is None:
                documents = {STATE: self.state, ENGINE: engine_index(self.counters, notes)}
                path, error = _attempt(lambda: folder.commit(step, documents, files))
            if path is None:
                folder.abandon(step)
            else:
                _attempt(lambda: folder.prune(self.saver.retention, [path]))  # what cannot be removed is tried again
        return channel.broadcast((path, error))

    def record(self) -> SaveRecord:
        """What became of it."""
        if self.failure is not None:
            raise self.failure
        path, error = self.outcome
        return SaveRecord(
            step=self.state["step"],
            tokens=self.state["tokens"],
            num_bytes=self.num_bytes,
            milestones=tuple(self.state.get("milestones", ())),
            stall_seconds=self.stall_seconds,
            seconds=self.seconds,
            path=None if path is None else str(path),
            error=error,
        )


def _attempt(action: Callable[[], T]) -> tuple[T | None, str | None]:
    """What an action gives, or what was wrong: whatever a disk or a full memory answers with."""
    try:
        return action(), None
    except (OSError, SafetensorError, MemoryError, RuntimeError, CheckpointError) as error:
        text = str(error).strip().partition("\n")[0]
        return None, text if isinstance(error, CheckpointError) else f"{type(error).__name__}: {text}"


def _first_error(errors: Iterable[str | None]) -> str | None:
    """The first rank's that has one, and which rank that is."""
    return next((f"rank {rank}: {error}" for rank, error in enumerate(errors) if error), None)
