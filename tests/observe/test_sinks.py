"""Where records go, and what a resumed run finds there."""

import errno
import json
import math
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from megacpt.errors import LaunchError
from megacpt.observe.record import DomainEvaluation, DomainLoss, EvaluationRecord, GradientAlignment, StepRecord
from megacpt.observe.sinks import JsonLines, TensorBoard, Wandb, closing_all


def step(number: int, loss: float = 3.0, mfu: float | None = None) -> StepRecord:
    return StepRecord(number, 100 * number, loss, 1.5, 1e-5, 530.0, {"medical": DomainLoss(loss, 80)}, mfu=mfu)


def evaluation(number: int, loss: float = 3.0) -> EvaluationRecord:
    domains = {"medical": DomainEvaluation(loss, 1.1, 500), "general": DomainEvaluation(loss, None, 500)}
    return EvaluationRecord(number, 100 * number, domains)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_hold_one_object_per_record(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "run")
    sink.write_step(step(1))
    sink.write_step(step(2, mfu=0.4))
    sink.write_evaluation(evaluation(2))
    first, second = lines(tmp_path / "run" / "metrics.jsonl")
    assert first == {
        "step": 1,
        "tokens": 100,
        "loss": 3.0,
        "grad_norm": 1.5,
        "learning_rate": 1e-5,
        "tokens_per_second": 530.0,
        "domains": {"medical": {"loss": 3.0, "tokens": 80}},
    }
    assert second["mfu"] == 0.4
    assert lines(tmp_path / "run" / "evaluations.jsonl") == [
        {
            "step": 2,
            "tokens": 200,
            "domains": {
                "medical": {"loss": 3.0, "bits_per_byte": 1.1, "tokens": 500},
                "general": {"loss": 3.0, "tokens": 500},
            },
        }
    ]


def test_losses_are_written_to_the_last_bit(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path)
    sink.write_step(step(1, loss=2.0 / 3))
    assert lines(tmp_path / "metrics.jsonl")[0]["loss"] == 2.0 / 3


def test_a_resumed_run_leaves_the_files_of_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, cut = JsonLines(tmp_path / "whole"), JsonLines(tmp_path / "cut")
    for sink, last in ((whole, 10), (cut, 7)):
        sink.write_evaluation(evaluation(0))
        for number in range(1, last + 1):
            sink.write_step(step(number, loss=1 / number))
            if number % 5 == 0:
                sink.write_evaluation(evaluation(number, loss=1 / number))
    with (tmp_path / "cut" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 8, "tok')
    resumed = JsonLines(tmp_path / "cut")
    resumed.resume(4)
    for number in range(5, 11):
        resumed.write_step(step(number, loss=1 / number))
        if number % 5 == 0:
            resumed.write_evaluation(evaluation(number, loss=1 / number))
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {"metrics.jsonl", "evaluations.jsonl"}


def test_a_run_without_files_can_resume(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path)
    sink.resume(3)
    assert sink.evaluations() == []


def test_a_spoilt_line_is_dropped_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sink = JsonLines(tmp_path)
    sink.write_step(step(1))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\x00\x00\n")
    sink.write_step(step(2))
    sink.resume(2)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]
    assert "metrics.jsonl:2 is not JSON" in capsys.readouterr().err


def test_evaluations_are_read_back(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path)
    sink.write_evaluation(evaluation(0))
    sink.write_evaluation(evaluation(5, loss=math.nan))
    first, second = sink.evaluations()
    assert first == evaluation(0)
    assert math.isnan(second.domains["medical"].loss)
    aligned = replace(evaluation(6), alignment={"general": GradientAlignment(0.25, (0.5, -0.5))})
    sink.write_evaluation(aligned)
    assert sink.evaluations()[2] == aligned
    assert aligned.scalars()["evaluation/alignment/general"] == 0.25


def test_tensorboard_holds_the_scalars_of_every_domain(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    sink.write_step(step(1))
    sink.write_step(step(2, loss=2.0))
    sink.write_evaluation(evaluation(2))
    sink.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss/medical")] == [(1, 3.0), (2, 2.0)]
    assert events.Scalars("evaluation/bits_per_byte/medical")[0].step == 2
    assert "evaluation/bits_per_byte/general" not in events.Tags()["scalars"]
    assert "train/mfu" not in events.Tags()["scalars"]


def test_tensorboard_hides_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    for number in (1, 2, 3):
        sink.write_step(step(number))
    sink.close()
    resumed = TensorBoard(tmp_path, resume_step=1)
    resumed.write_step(step(2, loss=9.0))
    resumed.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 3.0), (2, 9.0)]


class FakeWandb(types.ModuleType):
    """Stands in for the wandb package: keeps what it was given."""

    Error = ValueError

    def __init__(self) -> None:
        super().__init__("wandb")
        self.given: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.exit_codes: list[int] = []

    def init(self, **given: Any) -> "FakeWandb":
        self.given.append(given)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


def test_wandb_goes_on_in_the_run_that_the_folder_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for _ in range(2):
        sink = Wandb(tmp_path / "run", {"project": "cpt"}, {"seed": 0})
        sink.write_step(step(3))
        sink.close()
    first, second = wandb.given
    assert first == second
    assert (first["project"], first["name"], first["resume"], first["config"]) == ("cpt", "run", "allow", {"seed": 0})
    assert wandb.logged[0] == (3, step(3).scalars())
    assert wandb.exit_codes == [0, 0]


def test_a_run_that_raises_closes_all_its_sinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    board = TensorBoard(tmp_path / "board")
    with pytest.raises(RuntimeError, match="in a step"), closing_all([board, Wandb(tmp_path, {}, {})]):
        board.write_step(step(1))
        raise RuntimeError("in a step")
    assert wandb.exit_codes == [1]
    assert EventAccumulator(str(tmp_path / "board")).Reload().Scalars("train/loss")[0].value == 3.0


def test_a_missing_wandb_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(LaunchError, match=r"logging\.wandb.*pip install 'megacpt\[wandb\]'"):
        Wandb(tmp_path, {}, {})


def test_a_run_that_wandb_does_not_take_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> FakeWandb:
        raise FakeWandb.Error("No API key configured.\nMore lines.")

    wandb = FakeWandb()
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(LaunchError, match=r"^logging\.wandb: .*found No API key configured\)\. Set WANDB_API_KEY"):
        Wandb(tmp_path, {}, {})


def test_a_disk_that_fails_ends_tensorboard_and_not_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    sink = TensorBoard(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
        for number in (1, 2):
            sink.write_step(step(number))
            sink.write_evaluation(evaluation(number))
    sink.close()
    assert capsys.readouterr().err.count("TensorBoard gets nothing more") == 1
