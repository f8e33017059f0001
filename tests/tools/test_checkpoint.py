"""`megacpt checkpoint`: what it says, and that it never removes what a run needs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from megacpt_tools.cli import main
from tests.checkpoint.states import save_checkpoint


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four checkpoints, the second a milestone, and the rest of a failed save."""
    for step in range(1, 5):
        save_checkpoint(
            tmp_path,
            step,
            milestones=["pre_anneal"] if step == 2 else [],
            layout={"pipeline": 2, "tensor": 1},
            versions={"megacpt": "1"},
            recipe={"name": "small"},
        )
    (tmp_path / "checkpoints" / "step_000005.partial").mkdir()
    (tmp_path / "checkpoints" / "step_000009.set_aside").mkdir()
    return tmp_path


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_dir())


def test_list_and_show(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "list", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"step_000002 +200 +[\d.]+ KiB +pipeline 2 x tensor 1 +pre_anneal", lines[2].rstrip())
    assert lines[5].startswith("step_000005.partial: a save that did not finish")
    assert lines[6].startswith("step_000009.set_aside: the run went another way")
    assert main(["checkpoint", "show", str(run / "checkpoints" / "step_000002")]) == 0
    shown = capsys.readouterr().out
    assert "written by  pipeline 2, tensor 1" in shown
    assert "tensors     2, each with master, exp_avg, exp_avg_sq" in shown


def test_verify(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "verify", str(run)]) == 0
    flip(run / "checkpoints" / "step_000003" / "tensors" / "exp_avg-00000.safetensors")
    assert main(["checkpoint", "verify", str(run)]) == 1
    said = capsys.readouterr().out
    assert "step_000003: damaged" in said and "its SHA-256 differs" in said and "step_000004: intact" in said


def test_prune_says_first_and_does_then(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(run)
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1"]) == 0
    assert capsys.readouterr().out.count("would remove") == 3
    assert names(run) == before
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1", "--set-aside", "--yes"]) == 0
    assert names(run) == ["step_000002", "step_000004"]


def test_prune_takes_a_save_that_is_under_way_its_name_first(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Completed with a part of its files gone it would be the newest checkpoint, and damaged."""
    named: list[bool] = []
    partial = run / "checkpoints" / "step_000005.partial"
    monkeypatch.setattr(shutil, "rmtree", lambda path: named.append(partial.exists() and partial.samefile(path)))
    assert main(["checkpoint", "prune", str(run), "--keep-last", "4", "--yes"]) == 0
    assert named and not any(named) and not partial.exists()


def test_prune_spares_the_newest_intact(run: Path) -> None:
    (run / "checkpoints" / "step_000004" / "state.json").write_text("{")
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1", "--yes"]) == 0
    assert names(run)[:3] == ["step_000002", "step_000003", "step_000004"]


def test_prune_removes_nothing_where_nothing_is_intact(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (run / "checkpoints").glob("step_00000?"):
        flip(path / "engine.json")
    before = names(run)
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1", "--yes"]) == 2
    assert "no checkpoint here is intact: nothing is removed" in capsys.readouterr().err
    assert names(run) == before
    assert main(["checkpoint", "prune", str(run), "--keep-last", "0"]) == 2
