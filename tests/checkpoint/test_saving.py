"""A save on several ranks: complete everywhere, or undone everywhere and outlived."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megacpt.checkpoint import state
from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.folder import CheckpointFolder, Retention, damage, read_state
from megacpt.checkpoint.saving import Saver, SaveRecord
from megacpt.checkpoint.state import StoredState
from megacpt.parallel.fragments import Fragment, Held
from megacpt.parallel.slices import Slice
from tests.checkpoint.states import held_of, random_tensors
from tests.disks import file_size_limit
from tests.distributed import run_ranks

COUNTERS = {"optimizer_updates": 3}


def saver(folder: Path, asynchronous: bool = False, keep_last: int = 9) -> Saver:
    return Saver(CheckpointFolder(folder), Channel(), Retention(keep_last), asynchronous=asynchronous)


def save(saver: Saver, step: int) -> SaveRecord:
    """Save a small state and wait for it."""
    record = saver.save({"step": step, "tokens": step}, COUNTERS, held_of(random_tensors(seed=step))) or saver.wait()
    assert record is not None
    return record


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_saved_is_complete_and_intact(asynchronous: bool, tmp_path: Path) -> None:
    record = save(saver(tmp_path, asynchronous), 7)
    assert (record.step, record.error, record.path) == (7, None, str(tmp_path / "step_000007"))
    assert record.num_bytes == 3 * 4 * 1007
    assert 0 < record.stall_seconds <= record.seconds + 1
    path = tmp_path / "step_000007"
    assert damage(path) == [] and read_state(path)["step"] == 7
    assert torch.equal(StoredState(path).whole("a"), random_tensors(seed=7)["a"])
    assert names(tmp_path) == ["latest", "step_000007"]


def test_in_the_background_it_is_the_state_of_the_moment_that_is_saved(tmp_path: Path) -> None:
    """Training changes the tensors while they wait to be written."""
    writer, may_write = saver(tmp_path, asynchronous=True), threading.Event()
    held = held_of(random_tensors())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "save_file", after(may_write, save_file))
        assert writer.save({"step": 1, "tokens": 1}, COUNTERS, held) is None
        assert writer.poll() is None
        with pytest.raises(RuntimeError, match="still being written"):
            writer.save({"step": 2, "tokens": 2}, COUNTERS, held)
        for part in held:
            part.values["master"].zero_()
        assert names(tmp_path) == ["step_000001.partial"]
        may_write.set()
        record = writer.wait()
    assert record is not None and record.error is None
    assert torch.equal(StoredState(tmp_path / "step_000001").whole("a"), random_tensors()["a"])
    assert writer.poll() is None and writer.wait() is None


def after(event: threading.Event, function: Callable[..., Any]) -> Callable[..., Any]:
    def waiting(*args: Any, **kwargs: Any) -> Any:
        event.wait(20)
        return function(*args, **kwargs)

    return waiting


def failing(number: int, after_calls: int = 0) -> Callable[..., Any]:
    """A function of the file system that answers with this error from some call on."""
    left = [after_calls]
    real = state.file_record

    def fail(path: Path) -> dict[str, Any]:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        return real(path)

    return fail


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("place", ["state.file_record", "folder.file_record", "folder._sync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_loses_nothing(
    number: int, place: str, asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = saver(tmp_path, asynchronous, keep_last=1)
    save(writer, 1)
    with monkeypatch.context() as patch:
        patch.setattr(f"megacpt.checkpoint.{place}", failing(number, after_calls=1))
        record = save(writer, 2)
    assert record.path is None and record.error is not None and os.strerror(number) in record.error
    assert names(tmp_path) == ["latest", "step_000001"]
    assert damage(tmp_path / "step_000001") == []
    assert save(writer, 3).error is None
    assert names(tmp_path) == ["latest", "step_000003"]


def test_a_file_that_the_kernel_cuts_off_fails_the_save(tmp_path: Path) -> None:
    writer = saver(tmp_path)
    save(writer, 1)
    with file_size_limit(3000):
        record = save(writer, 2)
    assert record.path is None and record.error is not None and "rank 0: SafetensorError" in record.error
    assert names(tmp_path) == ["latest", "step_000001"]


def test_old_ones_that_cannot_be_removed_do_not_fail_the_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    writer = saver(tmp_path, keep_last=1)
    save(writer, 1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        assert save(writer, 2).error is None
    assert CheckpointFolder(tmp_path).complete()[-1].name == "step_000002"


def save_slices(rank: int, folder: Path, failing_rank: int | None) -> tuple[str | None, str | None, list[str]]:
    """The body of a rank: save my half of a matrix; on one rank the disk may be full. Then once more, in peace."""
    piece = Slice(0, rank, 2)
    whole = torch.arange(24.0).view(6, 4)
    held = [Held(Fragment("w", (6, 4), piece, 0, 12), {"master": piece.cut(whole).reshape(-1)})]
    writer = saver(folder, asynchronous=True)
    with pytest.MonkeyPatch.context() as patch:
        if rank == failing_rank:
            patch.setattr(state, "file_record", failing(errno.ENOSPC))
        assert writer.save({"step": 1, "tokens": 1}, COUNTERS, held) is None
        first = writer.wait()
    left = names(folder)
    writer.save({"step": 2, "tokens": 2}, COUNTERS, held)
    second = writer.wait()
    assert first is not None and second is not None
    return first.error, second.path, left


def test_ranks_agree_on_what_became_of_a_save(tmp_path: Path) -> None:
    outcomes = run_ranks(2, save_slices, tmp_path, 1)
    assert outcomes[0] == outcomes[1]
    error, path, left = outcomes[0]
    assert error is not None and error.startswith("rank 1: OSError: [Errno 28]")
    assert left == [] and path is not None
    assert torch.equal(StoredState(Path(path)).whole("w"), torch.arange(24.0).view(6, 4))
    places = json.loads((Path(path) / "engine.json").read_text())["tensors"]["w"]["fragments"]
    assert [place["rank"] for place in places] == [0, 1]
