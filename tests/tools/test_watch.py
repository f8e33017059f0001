"""A run in the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacpt_tools import cli
from tests.tools.report_runs import write_run


@pytest.mark.parametrize("arguments", [["--once"], []], ids=["once", "until the end"])
def test_a_finished_run_is_shown_as_it_stands(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["watch", str(write_run(tmp_path / "plain")), *arguments]) == 0
    shown = capsys.readouterr().out
    assert "plain  4K of 4K tokens  step 4" in shown
    general = next(line.split() for line in shown.splitlines() if line.startswith("general"))
    assert general == ["general", "replay", "2.0000", "2.0625", "+0.0625", "damage"]
