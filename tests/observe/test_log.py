"""Who speaks in a run of many ranks."""

import pytest

from megacpt.observe import log


@pytest.fixture(autouse=True)
def no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log._formatter(), "stage", None)


def speak(capsys: pytest.CaptureFixture[str]) -> list[str]:
    log.logger().info("weights loaded from %s", "here")
    log.logger().warning("disk almost full")
    log.warn_once("%d epochs", 5)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_rank_0_speaks_plainly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert speak(capsys) == ["weights loaded from here", "warning: disk almost full", "warning: 5 epochs"]


def test_other_ranks_only_warn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "3")
    assert speak(capsys) == ["[rank 3] warning: disk almost full"]


def test_a_warning_names_the_stage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "3")
    log.name_stage(1)
    assert speak(capsys) == ["[rank 3, stage 1] warning: disk almost full"]
