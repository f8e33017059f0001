"""The watchdog: who hangs, where, and that nothing happens while all is well."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from megacpt.trainer.watchdog import HUNG, Watchdog


class GaveUp(Exception):
    """Instead of the end of the process."""


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("it gave up"))
    dog = Watchdog(tmp_path, 0, 1, timeout_seconds=0.4)
    dog.start()
    for step in range(8):
        dog.note(f"step {step}")
        time.sleep(0.1)
    assert (tmp_path / "rank_0000.json").exists()
    dog.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_end_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, what was armed last would end a run that is well."""
    written = threading.Semaphore(0)

    def full(*_: object) -> None:
        written.release()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Watchdog, "_write", full)
    dog = Watchdog(tmp_path, 0, 1, timeout_seconds=600)
    dog._period_seconds = 0.01
    dog.start()
    for _ in range(3):
        assert written.acquire(timeout=20), "it ended at the first error"
    dog.close()


def test_without_a_timeout_there_is_no_watchdog(tmp_path: Path) -> None:
    dog = Watchdog(tmp_path, 0, 1, timeout_seconds=None)
    dog.start()
    dog.note("step 1")
    dog.close()
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_waits_names_the_silent_and_those_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise GaveUp

    monkeypatch.setattr(os, "_exit", end)
    dogs = [Watchdog(tmp_path, rank, 4, timeout_seconds=0.4) for rank in range(3)]
    for dog in dogs:
        dog._stacks = (tmp_path / f"{id(dog)}.txt").open("w")
    dogs[1].note("step 7")
    dogs[1]._write("step 7", 0.0)
    time.sleep(0.5)  # rank 1 writes no more
    dogs[2]._write("Evaluation after step 7", 9.0)
    dogs[0].note("step 8")
    dogs[0]._write("step 8", 11.0)
    with pytest.raises(GaveUp):
        dogs[0]._give_up("step 8", 11.0)
    assert codes == [HUNG]
    said = capsys.readouterr().err
    assert "hung: nothing new for 11 s in 'step 8'" in said
    assert "rank 1 (" in said and "is frozen or gone" in said and "last in 'step 7'" in said
    assert "is in 'Evaluation after step 7' since 9 s" in said
    assert "rank 3 is gone" in said
    assert "test_watchdog.py" in (tmp_path / f"{id(dogs[0])}.txt").read_text()


def test_ranks_of_several_hosts_that_wait_together_suspect_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dogs = [Watchdog(tmp_path, rank, 2, timeout_seconds=0.4) for rank in range(2)]
    for host, dog in zip(("n7", "n8"), dogs, strict=True):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        dog.note("step 3")
        dog._write("step 3", 9.0)
    assert dogs[0]._others() == ["all ranks wait in the same place: is the network between n7, n8 cut?"]
