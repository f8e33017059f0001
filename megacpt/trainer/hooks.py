"""What is done between steps: showing and keeping records, evaluating, checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from megacpt.checkpoint.saving import Saver, SaveRecord
from megacpt.engine.engine import Engine
from megacpt.evaluate.evaluator import EvaluationInterrupted, Evaluator
from megacpt.observe.events import Events
from megacpt.observe.log import logger
from megacpt.observe.record import EvaluationRecord, StepRecord
from megacpt.observe.sinks import Sink
from megacpt.trainer.loop import Hook
from megacpt.units import rounded_bytes

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
    """Saves every so many steps, at milestones, and after the last step.

    Args:
        engine: holds the weights and the optimizer's state.
        saver: writes them.
        state: step -> what else state.json holds.
        tokens: step -> tokens trained after it.
        events: where it is noted what became of each save.
        every_steps: None: not on the way.
        milestones: name -> tokens: the last checkpoint that has not gone beyond them is kept under this name.
        at_start: save before the first step, unless this run has that checkpoint: there is something to roll back to.
        at_end: save after the last step done.
        is_branch: the run goes on from a checkpoint that is not in its own folder.
        is_unfinished: whether something is left to the next start, which needs a checkpoint then, `at_end` or not.
        saved: told how many seconds a save took, from its beginning until it was complete.
    """

    def __init__(
        self,
        engine: Engine,
        saver: Saver,
        state: Callable[[int], dict[str, Any]],
        tokens: Callable[[int], int],
        events: Events,
        *,
        every_steps: int | None,
        milestones: Mapping[str, int],
        at_end: bool,
        at_start: bool = False,
        is_branch: bool = False,
        is_unfinished: Callable[[], bool] = lambda: False,
        saved: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.at_start, self.is_branch, self.is_unfinished, self.saved = at_start, is_branch, is_unfinished, saved
        self.engine = engine
        self.saver = saver
        self.state = state
        self.tokens = tokens
        self.events = events
        self.every_steps, self.milestones, self.at_end = every_steps, milestones, at_end
        self._saved_step: int | None = None

    def __enter__(self) -> Checkpointing:
        return self

    def __exit__(self, *_: object) -> None:
        """Complete a save in the background, whatever training ended with."""
        self.finish()

    def before_training(self, step: int) -> None:
        self._saved_step = step if step and not self.is_branch else None
        if self.at_start:
            self.save(step)

    def after_step(self, record: StepRecord) -> None:
        self._note(self.saver.poll())
        if self._names(record.step) or (self.every_steps is not None and record.step % self.every_steps == 0):
            self.save(record.step)

    def rewind(self, step: int) -> None:
        if self.saver.channel.is_main:
            self.saver.folder.set_aside_after(step)
        self._saved_step = step

    def after_training(self, step: int, stopped: bool) -> None:
        if self.at_end or stopped or (step and self.is_unfinished()):  # before the first step nothing is lost
            self.save(step)
        self.finish()

    def save(self, step: int) -> None:
        """Write the checkpoint of the present step, unless it is written; a failure is told, and the run goes on."""
        self.finish()
        if self._saved_step == step:
            return
        state = self.state(step) | {"milestones": self._names(step)}
        self._note(self.saver.save(state, self.engine.counters(), self.engine.held()))

    def _names(self, step: int) -> list[str]:
        """The milestones that the checkpoint of a step is."""
        return [name for name, end in self.milestones.items() if self.tokens(step) <= end < self.tokens(step + 1)]

    def finish(self) -> None:
        """Wait until a save in the background is complete."""
        self._note(self.saver.wait())

    def _note(self, record: SaveRecord | None) -> None:
        if record is None:
            return
        self.events.write("checkpoint", **{key: value for key, value in asdict(record).items() if value is not None})
        if record.path is not None:
            self._saved_step = record.step
            self.saved(record.seconds)
            size, times = rounded_bytes(record.num_bytes), (record.seconds, record.stall_seconds)
            logger().info("checkpoint %s: %s in %.1f s, training stood still for %.1f s", record.path, size, *times)
        elif self.saver.channel.is_main:
            logger().warning("there is no checkpoint of step %d: %s. The run goes on.", record.step, record.error)
