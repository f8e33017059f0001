"""Files of lines on disks that fill."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from megacpt.observe.lines import LineFile
from tests.disks import file_size_limit


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_what_a_full_disk_does_not_take_is_written_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel takes a part of the line that fills the disk, and nothing of the next ones."""
    lines = LineFile(tmp_path / "metrics.jsonl")
    with file_size_limit(29):
        for step in range(5):
            lines.append({"step": step})
    assert numbers(lines.path) == [0, 1], "no torn line stays"
    assert capsys.readouterr().err.count("wait in memory") == 1
    lines.append({"step": 5})
    assert numbers(lines.path) == [0, 1, 2, 3, 4, 5]


def test_lines_that_wait_are_cut_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = LineFile(tmp_path / "metrics.jsonl")
    lines.append({"step": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LineFile, "_write", full)
        lines.append({"step": 2})
        lines.append({"step": 3})
    lines.cut_back(2)
    lines.append({"step": 3})
    assert numbers(lines.path) == [1, 2, 3]
