"""A run that is told to stop, at any moment and through any rank, saves, says so by its exit code, and goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from megacpt.evaluate.evaluator import Evaluator
from megacpt.trainer.stopping import INTERRUPTED
from tests.distributed import run_ranks
from tests.parity.runs import evaluations_of, metrics_of, run_command, train, write_recipe


def signalled(rank: int, arguments: list[str], on_rank: int, number: signal.Signals, at_evaluation: int | None) -> int:
    """The body of a rank: the training command; one rank gets a signal, in an evaluation or after its third step."""
    run_folder = Path(arguments[arguments.index("--run-folder") + 1])
    del arguments[arguments.index("--run-folder") :]
    if rank == on_rank and at_evaluation is not None:
        _signal_in_evaluation(at_evaluation, number)
    elif rank == on_rank:
        threading.Thread(target=_signal_after, args=(run_folder / "metrics.jsonl", 3, number), daemon=True).start()
    return train(rank, arguments)


def _signal_in_evaluation(at_evaluation: int, number: signal.Signals) -> None:
    evaluate, calls = Evaluator.evaluate, []

    def evaluated(self, step, tokens, interrupted):  # type: ignore[no-untyped-def]
        calls.append(step)
        if len(calls) == at_evaluation:
            os.kill(os.getpid(), number)
        return evaluate(self, step, tokens, interrupted)

    Evaluator.evaluate = evaluated  # type: ignore[method-assign, assignment]


def _signal_after(metrics: Path, num_lines: int, number: signal.Signals) -> None:
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < num_lines:
        time.sleep(0.002)
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    "on_rank, number, at_evaluation",
    [
        (1, signal.SIGUSR1, None),  # the first stage of the pipeline and the last: both must reach the other
        pytest.param(0, signal.SIGTERM, None, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGTERM, 1, marks=pytest.mark.slow),  # of the base model
        (0, signal.SIGTERM, 2),  # on the way
        pytest.param(1, signal.SIGTERM, 3, marks=pytest.mark.slow),  # after the last step
    ],
)
def test_a_stopped_run_resumes_as_if_it_had_not_stopped(
    on_rank: int, number: signal.Signals, at_evaluation: int | None, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, parallel={"pipeline": 2}, checkpoint={"every": None})
    arguments = ["--recipe", str(recipe), "--set", "name=stopped", "--resume", "auto"]
    run_folder = ["--run-folder", str(tmp_path / "runs" / "stopped")]
    codes = run_ranks(2, signalled, [*arguments, *run_folder], on_rank, number, at_evaluation)
    assert codes == [INTERRUPTED] * 2
    if at_evaluation is None:
        assert len(metrics_of(recipe, "stopped")) < 8, "it was stopped too late to prove anything"
    assert run_ranks(2, train, arguments) == [0, 0]
    assert run_command(2, recipe) == [0, 0]
    assert metrics_of(recipe, "stopped") == metrics_of(recipe)
    assert evaluations_of(recipe, "stopped") == evaluations_of(recipe)
