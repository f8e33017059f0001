"""`megacpt stream`: replaying a run's rows from its checkpoint, and comparing two runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacpt.data.history import CorpusRecord, History, Settings, Stage
from megacpt_tools import stream
from megacpt_tools.cli import main
from tests.checkpoint.states import save_checkpoint

TEXTS = {name: CorpusRecord(801, 9, shards=("one",)) for name in ("law", "web")}
PLAN = [Stage(0, Settings({"law": 1, "web": 1}, 8, 4)), Stage(320, Settings({"law": 1}, 16, 4))]


def checkpoint(run: Path, history: History, step: int = 30) -> str:
    save_checkpoint(run, step=step, data=history.to_json())
    return str(run)


def history() -> History:
    return History.begin(0, PLAN, TEXTS)


def test_show_lists_samples_and_those_that_nobody_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = checkpoint(tmp_path / "run", history().jump(2, 3))
    assert main(["stream", "show", run, "--from", "6", "--count", "6"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["sample", "step", "domain", "epoch", "row"]
    assert [line.split()[:2] for line in lines] == [
        ["6", "2"], ["7", "2"], ["8", "never"], ["9", "never"], ["10", "never"], ["11", "3"],
    ]  # fmt: skip
    for line in lines:
        _, _, domain, epoch, row, start, _, stop = line.split()
        assert domain in TEXTS and epoch == "0" and (int(start), int(stop)) == (int(row) * 8, int(row) * 8 + 8)


def test_show_goes_on_to_any_number_and_not_beyond_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = checkpoint(tmp_path / "run", history())
    assert main(["stream", "show", run, "--from", "1T", "--count", "7"]) == 0
    whole = capsys.readouterr().out
    monkeypatch.setattr(stream, "_SAMPLES_AT_A_TIME", 3)
    assert main(["stream", "show", run, "--from", "1T", "--count", "7"]) == 0
    assert capsys.readouterr().out == whole and len(whole.splitlines()) == 8
    assert main(["stream", "show", run, "--from", "2T"]) == 2
    assert "no run has so many samples (found 2,000,000,000,016, expected at most" in capsys.readouterr().err


def test_history_tells_what_happened_and_what_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = checkpoint(tmp_path / "run", history().jump(2, 3, "a spike").accept(4, "domain law: changed"), step=5)
    assert main(["stream", "history", run]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(maxsplit=3)[3] == "domain law: 9 documents, 801 tokens in 1 shard"
    assert lines[2].endswith("law 50.0%, web 50.0%; 4 rows x 8, from token 0")
    assert lines[3].endswith("3 samples left out: a spike") and lines[4].endswith("accepted: domain law: changed")
    assert lines[5].endswith("planned: law 100.0%; 4 rows x 16, from token 320")


def test_diff_finds_the_first_step_that_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = checkpoint(tmp_path / "run", history())
    same = checkpoint(tmp_path / "same", history(), step=12)
    assert main(["stream", "diff", run, same]) == 0
    assert "the same rows in all 12 steps" in capsys.readouterr().out
    jumped = checkpoint(tmp_path / "jumped", history().jump(7, 1))
    assert main(["stream", "diff", run, jumped]) == 1
    assert "the same rows in 7 steps; they differ in step 8" in capsys.readouterr().out
    # Weights that change the same samples: nothing differs where a domain's turn is the only one.
    later = checkpoint(tmp_path / "later", history().set_weights(20, {"law": 5}))
    assert main(["stream", "diff", run, later]) == 0


def test_diff_tells_other_text_from_added_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = checkpoint(tmp_path / "run", history())
    changed = history().replan(6, PLAN, TEXTS | {"web": CorpusRecord(801, 9, shards=("another",))})
    assert main(["stream", "diff", run, checkpoint(tmp_path / "changed", changed)]) == 1
    said = capsys.readouterr().out
    assert "the same rows in 6 steps; they differ in step 7" in said and "the text of domain web is another" in said
    begun_otherwise = History.begin(0, PLAN, TEXTS | {"web": CorpusRecord(801, 9, shards=("another",))})
    assert main(["stream", "diff", run, checkpoint(tmp_path / "begun", begun_otherwise)]) == 1
    assert "the same rows in 0 steps" in capsys.readouterr().out
    longer = history().replan(6, PLAN, TEXTS | {"web": CorpusRecord(1601, 18, shards=("one", "two"))})
    assert main(["stream", "diff", run, checkpoint(tmp_path / "longer", longer)]) == 1
    assert "is another" not in capsys.readouterr().out
    inserted = History.begin(0, PLAN, TEXTS | {"insertions": CorpusRecord(3, 1, shards=("three",))})
    assert main(["stream", "diff", run, checkpoint(tmp_path / "inserted", inserted)]) == 0
    assert "what is inserted differs" in capsys.readouterr().out


def test_what_holds_no_history_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "show", str(tmp_path)]) == 2
    assert "no complete checkpoint here" in capsys.readouterr().err
