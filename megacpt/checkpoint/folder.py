"""The checkpoints of a run: written aside, completed by a manifest and a rename, found again by what is complete.

checkpoints/step_000120/        complete: the folder got this name only after everything in it was on disk
    state.json                  step, tokens, layout, milestones, the data's history, the recipe
    engine.json, tensors/       master weights and optimizer state (`megacpt.checkpoint.state`)
    manifest.json               size and SHA-256 of every file; written last
checkpoints/step_000180.partial a save that never finished: ignored, and removed by the next save
checkpoints/latest              the name of the newest complete checkpoint
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacpt.checkpoint.state import file_record
from megacpt.errors import CheckpointError

STATE = "state.json"
MANIFEST = "manifest.json"
LATEST = "latest"
PARTIAL = ".partial"
SET_ASIDE = ".set_aside"
FORMAT = 2
_NAME = re.compile(r"step_(\d+)")

Files = dict[str, dict[str, Any]]
"""Path inside a checkpoint -> {"bytes", "sha256"}."""


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay.

    Attributes:
        keep_last: so many of the newest.
        keep_every_tokens: of every so many tokens the first checkpoint at or after; None: no others.
    """

    keep_last: int
    keep_every_tokens: int | None = None

    def kept(self, states: Sequence[dict[str, Any]]) -> list[bool]:
        """Which of these checkpoints stay, given their states, oldest first. Those with milestones always do."""
        kept = []
        spans_seen = {0}
        for index, state in enumerate(states):
            span = state["tokens"] // self.keep_every_tokens if self.keep_every_tokens else 0
            is_new_span = span not in spans_seen
            spans_seen.add(span)
            kept.append(is_new_span or bool(state.get("milestones")) or index >= len(states) - self.keep_last)
        return kept


class CheckpointFolder:
    """The `checkpoints` folder of a run. Only rank 0 calls what writes.

    Args:
        folder: run folder / "checkpoints"; need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, step: int, needed_bytes: int = 0) -> Path:
        """The folder to write the checkpoint of `step` into; leftovers of unfinished saves are removed.

        Raises:
            CheckpointError: the disk has no room for `needed_bytes`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"*{PARTIAL}"):
            shutil.rmtree(leftover, ignore_errors=True)  # what another process holds open is tried again
        free_bytes = shutil.disk_usage(self.folder).free
        if free_bytes < needed_bytes:
            raise CheckpointError(
                "the disk has no room for a checkpoint",
                where=str(self.folder),
                found=f"{free_bytes / 2**30:.3g} GiB free",
                expected=f"{needed_bytes / 2**30:.3g} GiB",
                hint="Free some, or keep fewer: checkpoint.keep_last, `megacpt checkpoint prune`.",
            )
        partial = self.partial(step)
        partial.mkdir()
        return partial

    def partial(self, step: int) -> Path:
        """Where the checkpoint of `step` is written before it is complete."""
        return self.folder / f"step_{step:06d}{PARTIAL}"

    def abandon(self, step: int) -> None:
        """Remove what a failed save left, as far as the disk lets us; the next save tries again."""
        shutil.rmtree(self.partial(step), ignore_errors=True)

    def commit(self, step: int, documents: dict[str, Any], files: Files) -> Path:
        """Complete the checkpoint of `step` and point `latest` at it.

        Args:
            step: of the checkpoint.
            documents: name -> content of the JSON files that are left to write, the state among them.
            files: what is there already, flushed to disk.
        """
        partial, final = self.partial(step), self.folder / f"step_{step:06d}"
        for name, content in documents.items():
            (partial / name).write_text(json.dumps(content, indent=1) + "\n")
            files = files | {name: file_record(partial / name)}
        manifest = {"format": FORMAT, "files": files, "sha256": _digest(files)}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        _sync(partial / MANIFEST)
        for folder in (*(path for path in partial.iterdir() if path.is_dir()), partial):
            _sync(folder)
        is_again = final.exists()  # the same step saved again, after a resume from an older checkpoint
        if is_again:
            (self.folder / LATEST).unlink(missing_ok=True)
            final.rename(_discarded(final))
        partial.rename(final)
        _sync(self.folder)
        aside = self.folder / f"{LATEST}{PARTIAL}.txt"
        aside.write_text(f"{final.name}\n")
        _sync(aside)
        aside.rename(self.folder / LATEST)
        _sync(self.folder)
        if is_again:
            shutil.rmtree(_discarded(final), ignore_errors=True)  # what cannot be removed is tried again
        return final

    def prune(self, retention: Retention, spared: Collection[Path] = ()) -> list[Path]:
        """Remove the `superfluous` checkpoints; returns them."""
        removed = self.superfluous(retention, spared)
        for path in removed:
            self.discard(path)
        return removed

    def superfluous(self, retention: Retention, spared: Collection[Path] = ()) -> list[Path]:
        """The complete checkpoints that `retention` does not keep, but for the `spared`."""
        complete = self.complete()
        kept = retention.kept([_standing(path) for path in complete])
        return [path for path, stays in zip(complete, kept, strict=True) if not stays and path not in spared]

    def discard(self, checkpoint: Path) -> None:
        """Remove a checkpoint; first its name, so that a half-removed one is never taken for complete."""
        shutil.rmtree(checkpoint.rename(_discarded(checkpoint)))

    def set_aside_after(self, step: int) -> None:
        """Rename the checkpoints beyond `step`, from which the run is about to take another way: they stay readable by
        name, but are no longer of the run."""
        for path in self.complete():
            if step_of(path) > step:
                aside = path.with_name(f"{path.name}{SET_ASIDE}")
                if aside.exists():
                    shutil.rmtree(aside)
                path.rename(aside)

    def complete(self) -> list[Path]:
        """All complete checkpoints, oldest first: what has such a name. `damage` says whether they are intact."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=step_of)

    def newest(self) -> Path | None:
        """The newest complete checkpoint."""
        complete = self.complete()
        return complete[-1] if complete else None


def step_of(checkpoint: Path) -> int:
    """The steps done before a complete checkpoint was saved, by its name."""
    return int(checkpoint.name.removeprefix("step_"))


def _discarded(checkpoint: Path) -> Path:
    """What a checkpoint is called while it is removed."""
    return checkpoint.with_name(f"{checkpoint.name}-discarded{PARTIAL}")


def _standing(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's state; one that cannot be read has no claim to stay but its number."""
    try:
        return read_state(checkpoint)
    except CheckpointError:
        return {"tokens": 0}


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state.json of a complete checkpoint.

    Raises:
        CheckpointError: this is no complete checkpoint.
    """
    if not (checkpoint / MANIFEST).is_file():
        raise CheckpointError(
            "this is no complete checkpoint",
            where=str(checkpoint),
            expected=f"a folder with {MANIFEST}",
            hint="Name a folder like RUN/checkpoints/step_000120.",
        )
    try:
        return dict(json.loads((checkpoint / STATE).read_text()))
    except (OSError, ValueError) as error:
        raise CheckpointError("the checkpoint's state cannot be read", where=str(checkpoint / STATE)) from error


def read_manifest(checkpoint: Path) -> Files:
    """The files of a checkpoint as its manifest lists them.

    Raises:
        CheckpointError: the manifest is missing or damaged.
    """
    path = checkpoint / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        files: Files = manifest["files"]
        if manifest["sha256"] == _digest(files):
            return files
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError("the checkpoint's manifest cannot be read", where=str(path)) from error
    raise CheckpointError("the checkpoint's manifest is damaged", where=str(path))


def damage(
    checkpoint: Path,
    *,
    share: tuple[int, int] = (0, 1),
    wanted: Callable[[str], bool] = lambda file: True,
) -> list[str]:
    """What is wrong with a checkpoint's files, a line each; none if all have the size and content of the save.

    Args:
        checkpoint: its folder.
        share: (i, n): look at every n-th file from the i-th, so that n ranks together look at all.
        wanted: which files to look at.
    """
    try:
        files = read_manifest(checkpoint)
    except CheckpointError as error:
        return [str(error)]
    found = []
    for name in list(filter(wanted, files))[share[0] :: share[1]]:
        expected, path = files[name], checkpoint / name
        try:
            size_bytes = path.stat().st_size
            if size_bytes != expected["bytes"]:
                found.append(f"{path} has {size_bytes:,} bytes instead of {expected['bytes']:,}")
                continue
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            found.append(f"{path} cannot be read: {error.strerror}")
            continue
        if content != expected["sha256"]:
            found.append(f"{path} is not what was saved (its SHA-256 differs)")
    return found


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, the milestone RUN/checkpoints/NAME, or the newest of a run folder.

    Raises:
        CheckpointError: there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    siblings = [] if path.exists() else CheckpointFolder(path.parent).complete()
    if kept := [checkpoint for checkpoint in siblings if path.name in _standing(checkpoint).get("milestones", ())]:
        return kept[-1]
    newest = CheckpointFolder(path / "checkpoints").newest()
    if newest is None:
        raise CheckpointError(
            "no complete checkpoint here",
            where=str(path),
            expected="a run folder, or one of its checkpoints/step_NNNNNN or checkpoints/MILESTONE",
        )
    return newest


def _digest(files: Files) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
