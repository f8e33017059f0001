"""Hooks: at which steps something is evaluated, saved or written, and in which order."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any, cast

import pytest

from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.folder import CheckpointFolder, Retention
from megacpt.checkpoint.saving import Saver
from megacpt.engine.engine import Engine
from megacpt.evaluate.evaluator import Evaluator
from megacpt.observe.events import Events as EventLog
from megacpt.trainer.hooks import Checkpointing, Evaluation, Reporting
from megacpt.trainer.loop import Hook
from tests.trainer.records import TOKENS_PER_STEP, Events, NotingEngine, NotingEvaluator, NotingSink, record_of


def go_through(hook: Hook, first: int, last: int) -> None:
    """What a trainer does with a hook."""
    hook.before_training(first)
    for step in range(first + 1, last + 1):
        hook.after_step(record_of(step))
    hook.after_training(last, stopped=False)


def evaluated(first: int, last: int, **settings: Any) -> list[int]:
    """The steps that are evaluated."""
    events: Events = []
    sink = NotingSink()
    settings = {"occasions": range(0, 99, 3), "at_start": True, "at_end": True, **settings}
    hook = Evaluation(cast(Evaluator, NotingEvaluator(events)), [sink], lambda step: step * TOKENS_PER_STEP, **settings)
    go_through(hook, first, last)
    assert events == [("evaluate", record.step, record.tokens) for record in sink.evaluations]
    assert all(record.tokens == record.step * TOKENS_PER_STEP for record in sink.evaluations)
    return [record.step for record in sink.evaluations]


@pytest.mark.parametrize(
    "first, last, settings, steps",
    [
        (0, 7, {}, [0, 3, 6, 7]),
        (0, 6, {}, [0, 3, 6]),
        (0, 7, {"at_start": False}, [3, 6, 7]),
        (0, 7, {"at_end": False}, [0, 3, 6]),
        (0, 7, {"occasions": ()}, [0, 7]),
        (0, 7, {"occasions": (), "at_start": False, "at_end": False}, []),
        (0, 0, {}, [0]),
        (0, 0, {"at_start": False}, [0]),
        (0, 0, {"at_start": False, "at_end": False}, []),
    ],
)
def test_when_a_run_is_evaluated(first: int, last: int, settings: dict[str, Any], steps: list[int]) -> None:
    assert evaluated(first, last, **settings) == steps


@pytest.mark.parametrize(
    "first, last, steps",
    [
        (4, 7, [6, 7]),  # never the start again
        (3, 7, [6, 7]),  # evaluated before the checkpoint of the same step was written
        (6, 6, []),
        (7, 7, [7]),
    ],
)
def test_when_a_resumed_run_is_evaluated(first: int, last: int, steps: list[int]) -> None:
    assert evaluated(first, last) == steps


def checkpointing(tmp_path: Path, *, asynchronous: bool = False, keep_last: int = 2, **settings: Any) -> Checkpointing:
    values: dict[str, Any] = {"every_steps": 3, "at_end": True, "milestones": {}} | settings
    saver = Saver(CheckpointFolder(tmp_path), Channel(), Retention(keep_last), asynchronous=asynchronous)
    return Checkpointing(
        cast(Engine, NotingEngine([])),
        saver,
        lambda step: {"step": step, "tokens": step * TOKENS_PER_STEP},
        lambda step: step * TOKENS_PER_STEP,
        EventLog(tmp_path),
        **values,
    )


def saves(folder: Path) -> list[dict[str, Any]]:
    """What events.jsonl says of checkpoints."""
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def names(folder: Path) -> list[str]:
    return [path.name for path in CheckpointFolder(folder).complete()]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "first, last, settings, steps",
    [
        (0, 7, {}, [3, 6, 7]),
        (0, 6, {}, [3, 6]),
        (0, 7, {"at_end": False}, [3, 6]),
        (0, 7, {"every_steps": None}, [7]),
        (3, 7, {}, [6, 7]),
        (6, 6, {}, []),
        (7, 7, {}, []),  # a checkpoint of that step is what it resumed from
        (0, 0, {}, [0]),  # so that a run of no steps can be exported
        (0, 0, {"at_end": False}, []),
    ],
)
def test_when_a_run_is_saved(
    first: int, last: int, settings: dict[str, Any], steps: list[int], asynchronous: bool, tmp_path: Path
) -> None:
    hook = checkpointing(tmp_path, asynchronous=asynchronous, **settings)
    go_through(hook, first, last)
    assert [save["step"] for save in saves(tmp_path)] == steps
    assert all("error" not in save and save["stall_seconds"] > 0 for save in saves(tmp_path))
    assert names(tmp_path) == [f"step_{step:06d}" for step in steps][-2:]


@pytest.mark.parametrize("end, step", [(5 * 64, 5), (5 * 64 + 1, 5), (6 * 64 - 1, 5), (64, 1)])
def test_a_milestone_is_the_last_checkpoint_before_its_end(end: int, step: int, tmp_path: Path) -> None:
    go_through(checkpointing(tmp_path, keep_last=1, milestones={"pre_anneal": end}), 0, 9)
    assert [save["step"] for save in saves(tmp_path) if save["milestones"] == ["pre_anneal"]] == [step]
    assert names(tmp_path) == [f"step_{step:06d}", "step_000009"]


@pytest.mark.parametrize("steps", [[5], [5, 5]], ids=["by another hook alone", "and when it is due"])
def test_whoever_saves_a_milestone_s_step_saves_the_milestone(steps: list[int], tmp_path: Path) -> None:
    """The alarm for forgetting saves before the step is over, and may end the run."""
    hook = checkpointing(tmp_path, milestones={"pre_anneal": 5 * 64})
    for step in steps:
        hook.save(step)
    assert [(save["step"], save["milestones"]) for save in saves(tmp_path)] == [(5, ["pre_anneal"])]


def test_a_branch_has_its_first_checkpoint_from_a_stop_or_for_rollbacks(tmp_path: Path) -> None:
    for at_start in (False, True):
        folder = tmp_path / str(at_start)
        hook = checkpointing(folder, is_branch=True, at_start=at_start)
        hook.before_training(4)
        assert names(folder) == ["step_000004"] * at_start
        hook.after_training(4, stopped=True)
        assert names(folder) == ["step_000004"]


def test_an_evaluation_that_is_left_at_the_end_needs_a_checkpoint(tmp_path: Path) -> None:
    for last, is_left, saved in ((7, False, []), (0, True, []), (7, True, ["step_000007"])):
        hook = checkpointing(tmp_path, every_steps=None, at_end=False, is_unfinished=lambda is_left=is_left: is_left)
        hook.before_training(0)
        hook.after_training(last, stopped=False)
        assert names(tmp_path) == saved


def test_a_save_is_completed_though_training_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), checkpointing(tmp_path, asynchronous=True) as hook:
        hook.after_step(record_of(3))
        raise ZeroDivisionError
    assert names(tmp_path) == ["step_000003"]


def test_a_failed_save_is_told_and_outlived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    hook = checkpointing(tmp_path)
    go_through(hook, 0, 3)
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "commit", full)
        hook.after_step(record_of(6))
    assert "there is no checkpoint of step 6: OSError: [Errno 28] No space left on device" in capsys.readouterr().err
    assert ["error" in save for save in saves(tmp_path)] == [False, True]
    assert names(tmp_path) == ["step_000003"]
    hook.after_training(6, stopped=False)
    assert names(tmp_path) == ["step_000003", "step_000006"], "the end tries again"


def test_a_stopped_run_is_saved_but_not_evaluated(tmp_path: Path) -> None:
    events: Events = []
    saving = checkpointing(tmp_path, every_steps=None, at_end=False)
    evaluating = Evaluation(
        cast(Evaluator, NotingEvaluator(events)),
        [],
        lambda step: 0,
        occasions=range(2, 9, 2),
        at_start=False,
        at_end=True,
    )
    for hook in (saving, evaluating):
        hook.before_training(0)
        hook.after_training(3, stopped=True)
    assert names(tmp_path) == ["step_000003"]
    assert not events
    assert not evaluating.is_due


def test_an_evaluation_that_was_left_is_made_up_at_the_next_start() -> None:
    events: Events = []
    settings: dict[str, Any] = {"occasions": range(2, 9, 2), "at_start": True, "at_end": True}
    left = Evaluation(
        cast(Evaluator, NotingEvaluator(events)), [], lambda step: 0, interrupted=lambda: True, **settings
    )
    left.before_training(2)
    left.after_step(record_of(4))
    assert left.is_due and not events
    resumed = Evaluation(cast(Evaluator, NotingEvaluator(events)), [], lambda step: 0, is_due=True, **settings)
    resumed.before_training(4)
    assert events == [("evaluate", 4, 0)]
    assert not resumed.is_due


def test_a_rewound_run_saves_and_evaluates_its_steps_again(tmp_path: Path) -> None:
    events: Events = []
    sink = NotingSink()
    saving = checkpointing(tmp_path, at_start=True)
    evaluating = Evaluation(
        cast(Evaluator, NotingEvaluator(events)), [sink], lambda step: 0, occasions=[3], at_start=False, at_end=False
    )
    hooks: list[Hook] = [Reporting([sink]), evaluating, saving]
    for hook in hooks:
        hook.before_training(0)
    for step in (1, 2, 3, 4):
        for hook in hooks:
            hook.after_step(record_of(step))
    for hook in hooks:
        hook.rewind(0)
    assert (tmp_path / "step_000003.set_aside").is_dir()
    for step in (1, 2, 3):
        for hook in hooks:
            hook.after_step(record_of(step))
    assert [save["step"] for save in saves(tmp_path)] == [0, 3, 3]
    assert [record.step for record in sink.steps] == [1, 2, 3]
    assert [record.step for record in sink.evaluations] == [3]


def test_every_step_is_reported_to_every_sink() -> None:
    sinks = [NotingSink(), NotingSink()]
    go_through(Reporting(sinks), 2, 5)
    assert [[record.step for record in sink.steps] for sink in sinks] == [[3, 4, 5]] * 2
