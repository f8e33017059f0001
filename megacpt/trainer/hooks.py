"""What is done between steps: showing and keeping records, evaluating, checkpointing."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from typing import Any

from megacpt.checkpoint.folder import CheckpointFolder
from megacpt.engine.engine import Engine
from megacpt.evaluate.evaluator import EvaluationInterrupted, Evaluator
from megacpt.observe.log import logger
from megacpt.observe.record import EvaluationRecord, StepRecord
from megacpt.observe.sinks import Sink
from megacpt.trainer.loop import Hook

__all__ = ["Checkpointing", "Evaluation", "Hook", "Reporting"]


class Reporting:
    """Hands each step's record to the sinks; ranks other than 0 have none.

    Args:
        sinks: where records go.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = sinks

    def before_training(self, step: int) -> None:
        """Nothing to say yet."""

    def after_step(self, record: StepRecord) -> None:
        for sink in self.sinks:
            sink.write_step(record)

    def rewind(self, step: int) -> None:
        for sink in self.sinks:
            sink.rewind(step)

    def after_training(self, step: int, stopped: bool) -> None:
        """The sinks are closed after the last evaluation, by who opened them."""


class Evaluation:
    """Evaluates before the first step, on the way, and after the last.

    Args:
        evaluator: measures.
        sinks: where the records go.
        tokens: step -> tokens trained on before it.
        occasions: the steps on the way.
        at_start, at_end: before the first step of the run; after the last one done.
        then: what else is done with each record, on every rank.
        interrupted: whether to leave an evaluation, asked before each of its domains; collective.
        is_due: an evaluation of the first step was left before.

    Attributes:
        is_due: an evaluation was left: the next start makes it up.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        sinks: Sequence[Sink],
        tokens: Callable[[int], int],
        *,
        occasions: Container[int],
        at_start: bool,
        at_end: bool,
        then: Sequence[Callable[[EvaluationRecord], None]] = (),
        interrupted: Callable[[], bool] = lambda: False,
        is_due: bool = False,
    ) -> None:
        self.interrupted, self.is_due = interrupted, is_due
        self.evaluator = evaluator
        self.sinks = sinks
        self.tokens = tokens
        self.occasions, self.at_start, self.at_end = occasions, at_start, at_end
        self.then = then
        self._evaluated_step: int | None = None

    def before_training(self, step: int) -> None:
        if self.is_due or (step == 0 and self.at_start):
            self._evaluate(step)
        else:
            self.rewind(step)

    def after_step(self, record: StepRecord) -> None:
        if record.step in self.occasions:
            self._evaluate(record.step)

    def rewind(self, step: int) -> None:
        self._evaluated_step = step if step > 0 and step in self.occasions else None

    def after_training(self, step: int, stopped: bool) -> None:
        if self.at_end and not stopped and self._evaluated_step != step:
            self._evaluate(step)

    def _evaluate(self, step: int) -> None:
        self.is_due = True
        try:
            record = self.evaluator.evaluate(step, self.tokens(step), self.interrupted)
        except EvaluationInterrupted:
            return
        self.is_due = False
        self._evaluated_step = step
        for sink in self.sinks:
            sink.write_evaluation(record)
        for look in self.then:
            look(record)


class Checkpointing:
    """Saves every so many steps, and after the last.

    Args:
        engine: holds the weights and the optimizer's state.
        folder: the run's checkpoints.
        state: step -> what state.json holds.
        every_steps: None: not on the way.
        keep_last: how many checkpoints stay.
        at_start: save before the first step of the run, so that there is something to roll back to.
        at_end: save after the last step done.
        saved: told how many seconds a save took.
        is_main: this is rank 0, which does what only one may do.
        barrier: waits for all ranks.
    """

    def __init__(
        self,
        engine: Engine,
        folder: CheckpointFolder,
        state: Callable[[int], dict[str, Any]],
        *,
        every_steps: int | None,
        keep_last: int,
        at_end: bool,
        is_main: bool,
        barrier: Callable[[], None],
        at_start: bool = False,
        saved: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.at_start, self.saved = at_start, saved
        self.engine = engine
        self.folder = folder
        self.state = state
        self.every_steps, self.keep_last, self.at_end = every_steps, keep_last, at_end
        self.is_main = is_main
        self.barrier = barrier
        self._saved_step: int | None = None

    def before_training(self, step: int) -> None:
        self._saved_step = step if step else None
        if self.at_start and step == 0:
            self.save(step)

    def after_step(self, record: StepRecord) -> None:
        if self.every_steps is not None and record.step % self.every_steps == 0:
            self.save(record.step)

    def rewind(self, step: int) -> None:
        if self.is_main:
            self.folder.set_aside_after(step)
        self._saved_step = step

    def after_training(self, step: int, stopped: bool) -> None:
        if self.at_end or stopped:
            self.save(step)

    def save(self, step: int) -> None:
        """Write the checkpoint of the present step, unless it is written."""
        if self._saved_step == step:
            return
        began = time.monotonic()
        if self.is_main:
            self.folder.begin(step)
        self.barrier()
        self.engine.save(self.folder.partial(step))
        self.barrier()
        if self.is_main:
            path = self.folder.commit(step, self.state(step), self.keep_last)
            logger().info("checkpoint %s", path)
        self._saved_step = step
        self.saved(time.monotonic() - began)
