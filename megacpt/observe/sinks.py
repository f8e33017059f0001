"""Where records go: JSON lines (always), TensorBoard, Weights & Biases. Only rank 0 has sinks.

The JSON lines are the run's own record and are kept exact: after a kill and a resume they hold each step once, as if
the run had never stopped. The dashboards are copies for looking at.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import orjson

from megacpt.errors import LaunchError
from megacpt.observe.log import logger
from megacpt.observe.record import EvaluationRecord, StepRecord


class Sink(Protocol):
    """Something that keeps or shows the records of a run."""

    def write_step(self, record: StepRecord) -> None:
        """Take the record of an optimizer step."""

    def write_evaluation(self, record: EvaluationRecord) -> None:
        """Take the record of an evaluation."""

    def rewind(self, step: int) -> None:
        """Forget what came after `step`: the run was taken back to it."""

    def close(self, *, failed: bool = False) -> None:
        """Finish: the run has ended, or failed."""


@contextmanager
def closing_all(sinks: Sequence[Sink]) -> Iterator[None]:
    """Close sinks in the end, each whatever becomes of the others; an exception tells them that the run failed."""
    with ExitStack() as stack:
        for sink in reversed(sinks):
            stack.push(_closing(sink))
        yield


def _closing(sink: Sink) -> Callable[[type[BaseException] | None, object, object], None]:
    return lambda kind, error, trace: sink.close(failed=kind is not None)


class JsonLines:
    """`metrics.jsonl` and `evaluations.jsonl` in the run folder, one object a line.

    A line is one write to a file opened for appending, so a killed process leaves at most one torn line, the last.
    Opening the file anew for every line costs microseconds against a step of seconds and leaves nothing to close.

    Args:
        folder: the run folder; made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = folder / "metrics.jsonl"
        self._evaluations = folder / "evaluations.jsonl"

    def write_step(self, record: StepRecord) -> None:
        """Append to `metrics.jsonl`."""
        _append(self._metrics, record.to_dict())

    def write_evaluation(self, record: EvaluationRecord) -> None:
        """Append to `evaluations.jsonl`."""
        _append(self._evaluations, record.to_dict())

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`."""
        self.resume(step)

    def close(self, *, failed: bool = False) -> None:
        """Nothing is held open."""

    def take_over(self, origin: Path) -> None:
        """Begin with the records of another run, of which this one is a branch, in place of what is here.

        Args:
            origin: the other's run folder.
        """
        for path in (self._metrics, self._evaluations):
            if (origin / path.name).exists():
                shutil.copyfile(origin / path.name, path)

    def resume(self, step: int, last_evaluation: int | None = None) -> None:
        """Drop what was written after `step`, the step of the checkpoint from which the run goes on.

        Args:
            step: the last step whose record stays.
            last_evaluation: the last step whose evaluation stays, `step` by default; one less where an evaluation of
                `step` would only be there because the run stopped at it.
        """
        last = {self._metrics: step, self._evaluations: step if last_evaluation is None else last_evaluation}
        for path, last_step in last.items():
            if path.exists():
                kept = b"".join(
                    orjson.dumps(line) + b"\n" for line in read_json_lines(path) if line["step"] <= last_step
                )
                replacement = path.with_suffix(".jsonl.new")
                with replacement.open("wb") as file:
                    file.write(kept)
                    file.flush()
                    os.fsync(file.fileno())
                replacement.replace(path)

    def evaluations(self) -> list[EvaluationRecord]:
        """The evaluations written so far, oldest first."""
        return [EvaluationRecord.from_dict(line) for line in read_json_lines(self._evaluations)]


def _append(path: Path, values: Mapping[str, Any]) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(orjson.dumps(values) + b"\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, if there is one, without a torn last line.

    Any other line that is not JSON is left out with a warning.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    objects = []
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                objects.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            if number < len(lines):
                logger().warning("%s:%d is not JSON and is dropped", path, number)
    return objects


class TensorBoard:
    """Scalars in TensorBoard event files, with the step as their x.

    Args:
        folder: where the event files go.
        resume_step: the step from which the run goes on; events after it are hidden from then on.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        self._folder = folder
        self._open(None if resume_step is None else resume_step + 1)

    def _open(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here, for it costs a second that not every run pays

        self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)

    def write_step(self, record: StepRecord) -> None:
        """Add the scalars of a step."""
        self._write(record)

    def write_evaluation(self, record: EvaluationRecord) -> None:
        """Add the scalars of an evaluation, and have them on disk at once: they are few and looked at."""
        self._write(record)
        self._writer.flush()

    def rewind(self, step: int) -> None:
        """Hide the events after `step`."""
        self._writer.close()
        self._open(step + 1)

    def close(self, *, failed: bool = False) -> None:
        """Write what is buffered and close the file."""
        self._writer.close()

    def _write(self, record: StepRecord | EvaluationRecord) -> None:
        for name, value in record.scalars().items():
            self._writer.add_scalar(name, value, global_step=record.step)


def import_wandb(where: str = "logging.wandb") -> ModuleType:
    """The package, which is only needed where it is asked for.

    Raises:
        LaunchError: it is not installed.
    """
    try:
        return import_module("wandb")
    except ImportError as error:
        raise LaunchError(
            "Weights & Biases was asked for, but wandb cannot be imported",
            where=where,
            found=error,
            hint="Run pip install 'megacpt[wandb]', or take logging.wandb out of the recipe.",
        ) from error


class Wandb:
    """Scalars and the recipe in Weights & Biases.

    The id of the W&B run is kept in the run folder, so that a resumed run goes on in the same chart. W&B ignores steps
    that it has already seen; a resumed run repeats them with the same numbers.

    Args:
        folder: the run folder.
        settings: what `wandb.init` takes beside what is set here: project, entity, group, tags, mode, ...
        config: the recipe, as plain values.

    Raises:
        LaunchError: if wandb is not installed, or does not take the run: no key, no network.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        wandb = import_wandb()
        folder.mkdir(parents=True, exist_ok=True)
        id_file = folder / "wandb_id"
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(8), encoding="utf-8")
        run_id = id_file.read_text(encoding="utf-8").strip()
        defaults = {"name": folder.name, "dir": str(folder), "id": run_id, "resume": "allow", "config": dict(config)}
        try:
            self._run = wandb.init(**(defaults | dict(settings)))
        except wandb.Error as error:
            raise LaunchError(
                "Weights & Biases does not take the run",
                where="logging.wandb",
                found=str(error).partition("\n")[0].removesuffix("."),
                hint="Set WANDB_API_KEY or call `wandb login`; or take logging.wandb.mode: offline.",
            ) from error

    def write_step(self, record: StepRecord) -> None:
        """Log the scalars of a step."""
        self._run.log(record.scalars(), step=record.step)

    def write_evaluation(self, record: EvaluationRecord) -> None:
        """Log the scalars of an evaluation."""
        self._run.log(record.scalars(), step=record.step)

    def rewind(self, step: int) -> None:
        """Nothing: W&B keeps what it has seen, and ignores steps until there are new ones."""

    def close(self, *, failed: bool = False) -> None:
        """Wait until everything is sent; W&B shows a run that failed as one."""
        self._run.finish(exit_code=int(failed))
