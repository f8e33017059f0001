"""Joining the world: a process has a GPU of its own; locks that a kill left are removed, those in use waited for."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from megacpt.engine import processes
from megacpt.engine.processes import wait_for_compiler
from megacpt.errors import LaunchError


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    return lock


def test_a_stale_lock_is_removed_and_told(lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.utime(lock, (0, time.time() - 1000))
    wait_for_compiler(tmp_path, patience_seconds=999)
    assert not lock.exists()
    assert f"warning: removed {lock}" in capsys.readouterr().err


def test_a_lock_in_use_is_waited_for(lock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waiting = threading.Thread(target=wait_for_compiler, args=(tmp_path,))
    waiting.start()
    assert waiting.is_alive() and lock.exists()
    lock.unlink()
    waiting.join()
    assert capsys.readouterr().err == ""


def test_without_a_lock_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    wait_for_compiler(tmp_path / "absent")


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    one_gpu = SimpleNamespace(device_name=lambda: "cuda", device_count=lambda: 1)
    monkeypatch.setattr(processes, "get_accelerator", lambda: one_gpu)
    with pytest.raises(LaunchError, match=r"has no GPU.*found 1 GPUs.*expected at least 2"):
        processes.join_world()
