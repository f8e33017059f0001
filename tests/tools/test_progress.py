"""Plain lines where nobody watches."""

from __future__ import annotations

import io

import pytest

from megacpt_tools import progress
from megacpt_tools.builder import BuildProgress


def test_a_log_gets_lines_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    stream = io.StringIO()
    with progress.build_progress(stream) as on_progress:
        on_progress(BuildProgress(done_bytes=25, total_bytes=100, documents=1_000, tokens=2_000_000))
    line = stream.getvalue()
    assert line.startswith(" 25%  1,000 documents  2,000,000 tokens  ")
    assert "M tokens/s" in line
    assert line.endswith("left\n")
    on_progress(BuildProgress(done_bytes=0, total_bytes=0, documents=5, tokens=9))
    assert stream.getvalue().removeprefix(line).startswith("5 documents  9 tokens  ")


def test_a_log_is_not_flooded() -> None:
    stream = io.StringIO()
    with progress.build_progress(stream) as on_progress:
        for done_bytes in range(100):
            on_progress(BuildProgress(done_bytes, 100, 1, 1))
    assert stream.getvalue() == ""
