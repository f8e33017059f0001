"""The checkpoints of a run: whatever moment a save dies at, what is found is complete."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from megacpt.checkpoint import folder as module
from megacpt.checkpoint.folder import CheckpointFolder, Retention, damage, find_checkpoint, read_state
from megacpt.checkpoint.state import file_record
from megacpt.errors import CheckpointError


def save(checkpoints: CheckpointFolder, step: int, keep_last: int = 9, content: str = "weights", **state: Any) -> Path:
    """A save on rank 0: begin, write, commit, prune."""
    partial = checkpoints.begin(step)
    (partial / "tensors").mkdir()
    (partial / "tensors" / "weights").write_text(content)
    files = {"tensors/weights": file_record(partial / "tensors" / "weights")}
    path = checkpoints.commit(step, {"state.json": {"step": step, "tokens": 100 * step} | state}, files)
    checkpoints.prune(Retention(keep_last), [path])
    return path


def names(checkpoints: CheckpointFolder) -> list[str]:
    return [path.name for path in checkpoints.complete()]


def latest(checkpoints: CheckpointFolder) -> str:
    return (checkpoints.folder / "latest").read_text().strip()


@pytest.fixture
def checkpoints(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "run" / "checkpoints")


def test_an_empty_run_has_none(checkpoints: CheckpointFolder) -> None:
    assert checkpoints.complete() == [] and checkpoints.newest() is None


def test_a_commit_completes(checkpoints: CheckpointFolder) -> None:
    path = save(checkpoints, 120)
    assert path == checkpoints.folder / "step_000120" == checkpoints.newest()
    assert read_state(path) == {"step": 120, "tokens": 12000}
    assert damage(path) == []
    assert (path / "tensors" / "weights").read_text() == "weights"
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["latest", "step_000120"]
    assert latest(checkpoints) == "step_000120"


def test_newest_is_by_number(checkpoints: CheckpointFolder) -> None:
    for step in (1_000_000, 999_999, 8):
        save(checkpoints, step)
    assert names(checkpoints) == ["step_000008", "step_999999", "step_1000000"]
    newest = checkpoints.newest()
    assert newest is not None and newest.name == "step_1000000"


@pytest.mark.parametrize("keep_last, kept", [(1, ["step_000004"]), (2, ["step_000003", "step_000004"])])
def test_the_oldest_are_dropped(keep_last: int, kept: list[str], checkpoints: CheckpointFolder) -> None:
    for step in range(1, 5):
        save(checkpoints, step, keep_last)
    assert names(checkpoints) == kept


def test_a_step_saved_again_replaces_the_old(checkpoints: CheckpointFolder) -> None:
    save(checkpoints, 3, content="old")
    path = save(checkpoints, 3, content="new")
    assert (path / "tensors" / "weights").read_text() == "new"
    assert names(checkpoints) == ["step_000003"]


def test_leftovers_are_no_checkpoints_and_are_removed(checkpoints: CheckpointFolder) -> None:
    save(checkpoints, 1)
    (checkpoints.begin(2) / "manifest.json").write_text("{}")
    assert names(checkpoints) == ["step_000001"]
    again = checkpoints.begin(2)
    assert list(again.iterdir()) == []
    checkpoints.begin(3)
    assert not again.exists()


def test_a_folder_without_its_manifest_is_damaged(checkpoints: CheckpointFolder) -> None:
    """It is not as if there were none: a run with such a checkpoint must not be begun anew."""
    path = save(checkpoints, 1)
    (path / "manifest.json").unlink()
    assert names(checkpoints) == ["step_000001"] and len(damage(path)) == 1
    with pytest.raises(CheckpointError, match=r"step_000001: this is no complete checkpoint"):
        read_state(path)


class Killed(BaseException):
    """The process dies here."""


FILE_OPERATIONS = [(Path, "mkdir"), (Path, "write_text"), (Path, "rename"), (shutil, "rmtree"), (module, "_sync")]


class Killer:
    """Counts operations on the file system; dies before one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done = 0
        self.last: int | None = None
        for owner, name in FILE_OPERATIONS:
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, operation: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self.done == self.last:
                raise Killed
            self.done += 1
            return operation(*args, **kwargs)

        return counted

    @contextmanager
    def after(self, num_operations: int) -> Iterator[None]:
        """Inside, so many operations are done and no more."""
        self.done, self.last = 0, num_operations
        yield
        self.last = None


@pytest.mark.parametrize("step", [3, 2], ids=["a new step", "the same step again"])
def test_a_save_killed_anywhere_loses_nothing(
    step: int, checkpoints: CheckpointFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each operation in turn: what is found then is whole, and the next save mends the rest."""
    save(checkpoints, 1)
    save(checkpoints, 2)
    (checkpoints.begin(2) / "leftover").write_text("of an older crash")
    template = tmp_path / "template"
    shutil.copytree(checkpoints.folder, template)
    killer = Killer(monkeypatch)
    save(checkpoints, step, keep_last=1)
    for num_survived in range(1, killer.done):
        shutil.rmtree(checkpoints.folder)
        shutil.copytree(template, checkpoints.folder)
        with killer.after(num_survived), pytest.raises(Killed):
            save(checkpoints, step, keep_last=1)
        newest = checkpoints.newest()
        assert newest is not None
        assert read_state(newest)["step"] >= (1 if step == 2 else 2)
        assert all((path / "tensors" / "weights").is_file() for path in checkpoints.complete())
        if (checkpoints.folder / "latest").exists():
            assert latest(checkpoints) in names(checkpoints)
        assert save(checkpoints, step, keep_last=1) == checkpoints.newest()
        assert latest(checkpoints) == names(checkpoints)[0] == f"step_{step:06d}"
        assert len(names(checkpoints)) == 1
        assert not list(checkpoints.folder.glob("*.partial"))


def test_a_checkpoint_disappears_at_once(checkpoints: CheckpointFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing its files takes time; a kill in between leaves nothing that looks complete."""
    save(checkpoints, 1)
    seen: list[list[str]] = []
    monkeypatch.setattr(shutil, "rmtree", lambda path: seen.append(names(checkpoints)))
    save(checkpoints, 2, keep_last=1)
    assert seen == [["step_000002"]]


def test_leftovers_that_cannot_be_removed_do_not_fail_a_save(
    checkpoints: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that another process holds open stay on NFS until it closes them."""
    leftover = checkpoints.begin(1)

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    save(checkpoints, 2)
    save(checkpoints, 2)
    assert names(checkpoints) == ["step_000002"] and latest(checkpoints) == "step_000002"
    assert leftover.exists()


def test_what_was_just_saved_is_kept(checkpoints: CheckpointFolder) -> None:
    """After a resume from an older checkpoint, newer ones may lie there."""
    for step in (1, 4, 6):
        save(checkpoints, step)
    path = save(checkpoints, 2, keep_last=1)
    assert names(checkpoints) == ["step_000002", "step_000006"]
    assert latest(checkpoints) == path.name


def test_everything_is_on_disk_before_the_name_is_given(
    checkpoints: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    at_rename: dict[str, list[str]] = {}
    rename = Path.rename

    def note_rename(self: Path, target: Path) -> Path:
        at_rename[target.name] = [path.name for path in synced]
        return rename(self, target)

    monkeypatch.setattr(module, "_sync", synced.append)
    monkeypatch.setattr(Path, "rename", note_rename)
    save(checkpoints, 1)
    assert at_rename["step_000001"] == ["manifest.json", "tensors", "step_000001.partial"]
    assert at_rename["latest"][-1].startswith("latest")
    assert "checkpoints" in at_rename["latest"]


def test_find_checkpoint_takes_a_run_or_a_checkpoint(checkpoints: CheckpointFolder) -> None:
    first, second = save(checkpoints, 1), save(checkpoints, 2)
    run = checkpoints.folder.parent
    assert find_checkpoint(run) == second
    assert find_checkpoint(first) == first
    (first / "state.json").write_text('{"step": 1, "milestones": ["pre_anneal"]}')
    assert find_checkpoint(checkpoints.folder / "pre_anneal") == first
    with pytest.raises(CheckpointError, match="no complete checkpoint here"):
        find_checkpoint(checkpoints.folder / "post_anneal")
    with pytest.raises(CheckpointError, match="no complete checkpoint here"):
        find_checkpoint(checkpoints.folder.parent.parent)


def test_state_is_plain_json(checkpoints: CheckpointFolder) -> None:
    path = save(checkpoints, 7)
    assert json.loads((path / "state.json").read_text()) == {"step": 7, "tokens": 700}


KEPT = [
    (Retention(1), [4]),
    (Retention(3), [2, 3, 4]),
    (Retention(1, keep_every_tokens=200), [2, 4]),
    (Retention(1, keep_every_tokens=150), [2, 3, 4]),
    (Retention(1, keep_every_tokens=1000), [4]),
]


@pytest.mark.parametrize("retention, kept", KEPT)
def test_what_is_kept(retention: Retention, kept: list[int], checkpoints: CheckpointFolder) -> None:
    for step in range(1, 5):
        save(checkpoints, step)
        checkpoints.prune(retention)
    assert names(checkpoints) == [f"step_{step:06d}" for step in kept]


def test_milestones_are_kept_for_good(checkpoints: CheckpointFolder) -> None:
    for step in range(1, 5):
        save(checkpoints, step, keep_last=1, milestones=["pre_anneal"] if step == 2 else [])
    assert names(checkpoints) == ["step_000002", "step_000004"]


def test_a_full_disk_is_noticed_before_anything_is_written(checkpoints: CheckpointFolder) -> None:
    save(checkpoints, 1)
    with pytest.raises(CheckpointError, match=r"no room for a checkpoint \(found \S+ GiB free, expected 9\.31e\+08"):
        checkpoints.begin(2, needed_bytes=10**18)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["latest", "step_000001"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["tensors/weights", "state.json", "manifest.json"])
@pytest.mark.parametrize("spoil", [truncate, flip, Path.unlink], ids=["truncated", "a bit flipped", "gone"])
def test_damage_is_found(spoil: Callable[[Path], None], file: str, checkpoints: CheckpointFolder) -> None:
    path = save(checkpoints, 1)
    spoil(path / file)
    (line,) = damage(path)
    assert str(path / file) in line


def test_ranks_share_the_work_of_looking(checkpoints: CheckpointFolder) -> None:
    path = save(checkpoints, 1)
    for file in ("tensors/weights", "state.json"):
        flip(path / file)
    assert [len(damage(path, share=(i, 2))) for i in range(2)] == [1, 1]
    assert len(damage(path, wanted=lambda file: file.startswith("tensors/"))) == 1
