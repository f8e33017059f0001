"""Going back: to which checkpoint, with which data, and what is left of what was decided since."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.folder import CheckpointFolder
from megacpt.data.history import History
from megacpt.data.loader import Loader
from megacpt.data.stream import Stream, exhausted_at
from megacpt.errors import TrainingError
from megacpt.observe.events import Events
from megacpt.trainer.guard import Guard, GuardSettings, Rollback
from megacpt.trainer.rollback import Rollbacks
from tests.checkpoint.states import save_checkpoint
from tests.data.memory_corpus import MemoryCorpus, stream_of

SAVED = (2, 4, 6)


class Run:
    """What a rollback acts on; checkpoints of `SAVED` in a folder."""

    def __init__(self, folder: Path) -> None:
        corpora = {name: MemoryCorpus([5] * 400) for name in ("new", "old")}
        self.loader = Loader(stream_of(corpora, {"new": 3, "old": 1}, 16, 4), prefetch_steps=0)
        self.guard = Guard(GuardSettings("rollback", 8, 8.0, 1, 0, 3, 9), Events(), self.loader)
        history, guard = self.loader.stream.history.to_json(), self.guard.state()
        self.checkpoints = {step: save_checkpoint(folder, step, data=history, guard=guard) for step in SAVED}
        self.restored: list[Path] = []
        self.rewound: list[int] = []
        self.roll_back = Rollbacks(
            self.restored.append,
            CheckpointFolder(folder / "checkpoints"),
            Channel(),
            lambda checkpoint, state: History.from_json(state["data"]),
            self.bounded,
            self.loader,
            self.guard,
            Events(),
            finish_saving=lambda: None,
            rewind=self.rewound.append,
        )

    def bounded(self, rows: Stream, step: int) -> tuple[int, Stream]:
        """Old text ends when it was read twice, which is where the run ends."""
        found = exhausted_at(rows, {"old": 2.0}, 999)
        assert found is not None
        step, _ = found
        return step, rows.with_history(rows.history.set_weights(step, {"new": 1}))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    with run.loader:
        yield run


def test_goes_back_before_the_first_bad_step_and_leaves_its_samples_out(run: Run) -> None:
    assert run.roll_back(Rollback(before_step=6, jump_from_step=5, jump_to_step=7))[0] == 4
    assert run.restored == [run.checkpoints[4]] and run.rewound == [4]
    # Steps 5 to 7 had the samples 16 to 27, of 4 rows a step.
    assert [run.loader.stream.history.first_sample(step) for step in (3, 4, 5)] == [12, 28, 32]


def test_what_was_decided_since_is_forgotten_and_jumps_are_not(run: Run) -> None:
    run.roll_back(Rollback(6, 6, 6))
    run.loader.set_weights(6, {"new": 1, "old": 1})
    run.roll_back(Rollback(6, 6, 6))
    history = run.loader.stream.history
    assert history.shares(9) == {"new": 0.75, "old": 0.25}
    assert [(jump.at_step, jump.num_samples) for jump in history.jumps] == [(5, 4), (5, 4)]


def test_a_domain_that_is_left_out_of_is_exhausted_sooner(run: Run) -> None:
    undisturbed, _ = run.bounded(run.loader.stream, 0)
    step, last_step = run.roll_back(Rollback(6, 4, 9))
    assert (step, last_step) == (4, undisturbed - 5), "six steps were left out, and one of them is done again"
    history = run.loader.stream.history
    assert history.shares(last_step - 1) == {"new": 0.75, "old": 0.25} and history.shares(last_step) == {"new": 1}


@pytest.mark.parametrize("file", ["tensors/master-00000.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over(file: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.checkpoints[4] / file).write_bytes(b"")
    assert run.roll_back(Rollback(6, 5, 7))[0] == 2
    assert run.restored == [run.checkpoints[2]]
    assert "warning: a damaged checkpoint is passed over for step_000002" in capsys.readouterr().err


def test_without_an_intact_checkpoint_the_run_ends_and_says_why(run: Run) -> None:
    for step in (2, 4):
        (run.checkpoints[step] / "engine.json").unlink()
    with pytest.raises(TrainingError, match=r"no checkpoint to roll back to \(found .*step_000004.*; .*step_000002"):
        run.roll_back(Rollback(6, 5, 7))
    assert run.restored == []
