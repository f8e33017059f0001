"""The checkpoints of a run: written aside, completed by a rename, found again by what is complete.

checkpoints/step_000120/        complete: the folder got this name only after everything in it was on disk
    state.json                  step, tokens, layout, fingerprints
    engine/                     weights as safetensors slices, DeepSpeed's optimizer state
checkpoints/step_000180.partial a save that never finished: ignored, and removed by the next save
checkpoints/latest              the name of the newest complete checkpoint
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from megacpt.errors import CheckpointError

STATE = "state.json"
LATEST = "latest"
PARTIAL = ".partial"
_NAME = re.compile(r"step_(\d+)")


class CheckpointFolder:
    """The `checkpoints` folder of a run. Only rank 0 calls what writes.

    Args:
        folder: run folder / "checkpoints"; need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, step: int) -> Path:
        """The folder to write the checkpoint of `step` into; leftovers of unfinished saves are removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"*{PARTIAL}"):
            shutil.rmtree(leftover)
        partial = self.partial(step)
        partial.mkdir()
        return partial

    def partial(self, step: int) -> Path:
        """Where the checkpoint of `step` is written before it is complete."""
        return self.folder / f"step_{step:06d}{PARTIAL}"

    def commit(self, step: int, state: dict[str, Any], keep_last: int) -> Path:
        """Complete the checkpoint of `step`, point `latest` at it, and drop the oldest beyond `keep_last`."""
        partial, final = self.partial(step), self.folder / f"step_{step:06d}"
        (partial / STATE).write_text(json.dumps(state, indent=2) + "\n")
        for path in partial.rglob("*"):
            if path.is_file():
                _sync(path)
        if final.exists():  # the same step saved again, after a resume from an older checkpoint
            (self.folder / LATEST).unlink(missing_ok=True)
            self._discard(final)
        partial.rename(final)
        _sync(self.folder)
        aside = self.folder / f"{LATEST}{PARTIAL}.txt"
        aside.write_text(f"{final.name}\n")
        _sync(aside)
        aside.rename(self.folder / LATEST)
        _sync(self.folder)
        others = [path for path in self.complete() if path != final]
        for old in others[: max(0, len(others) + 1 - keep_last)]:
            self._discard(old)
        return final

    def _discard(self, checkpoint: Path) -> None:
        """Remove a checkpoint; first its name, so that a half-removed one is never taken for complete."""
        shutil.rmtree(checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}-discarded{PARTIAL}")))

    def set_aside_after(self, step: int) -> None:
        """Rename the checkpoints beyond `step`, from which the run is about to take another way: they stay readable by
        name, but are no longer of the run."""
        for path in self.complete():
            if int(path.name.removeprefix("step_")) > step:
                aside = path.with_name(f"{path.name}.set_aside")
                if aside.exists():
                    shutil.rmtree(aside)
                path.rename(aside)

    def complete(self) -> list[Path]:
        """All complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and (path / STATE).is_file()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))

    def newest(self) -> Path | None:
        """The newest complete checkpoint."""
        complete = self.complete()
        return complete[-1] if complete else None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state.json of a complete checkpoint.

    Raises:
        CheckpointError: this is no complete checkpoint.
    """
    path = checkpoint / STATE
    if not path.is_file():
        raise CheckpointError(
            "this is no complete checkpoint",
            where=str(checkpoint),
            expected=f"a folder with {STATE}",
            hint="Name a folder like RUN/checkpoints/step_000120.",
        )
    return dict(json.loads(path.read_text()))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the newest of a run folder.

    Raises:
        CheckpointError: there is none.
    """
    if (path / STATE).is_file():
        return path
    newest = CheckpointFolder(path / "checkpoints").newest()
    if newest is None:
        raise CheckpointError(
            "no complete checkpoint here",
            where=str(path),
            expected="a run folder or one of its checkpoints/step_NNNNNN",
        )
    return newest


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
