"""Where records go: JSON lines (always), TensorBoard, Weights & Biases. Only rank 0 has sinks.

The JSON lines are the run's own record and are kept exact: after a kill and a resume they hold each step once, as if
the run had never stopped. The dashboards are copies for looking at.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from megacpt.errors import LaunchError
from megacpt.observe.lines import LineFile, read_json_lines
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

    Args:
        folder: the run folder; made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = LineFile(folder / "metrics.jsonl")
        self._evaluations = LineFile(folder / "evaluations.jsonl")

    def write_step(self, record: StepRecord) -> None:
        """Append to `metrics.jsonl`."""
        self._metrics.append(record.to_dict())

    def write_evaluation(self, record: EvaluationRecord) -> None:
        """Append to `evaluations.jsonl`."""
        self._evaluations.append(record.to_dict())

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
        for path in (self._metrics.path, self._evaluations.path):
            if (origin / path.name).exists():
                shutil.copyfile(origin / path.name, path)

    def resume(self, step: int, last_evaluation: int | None = None) -> None:
        """Drop what was written after `step`, the step of the checkpoint from which the run goes on.

        Args:
            step: the last step whose record stays.
            last_evaluation: the last step whose evaluation stays, `step` by default; one less where an evaluation of
                `step` would only be there because the run stopped at it.
        """
        self._metrics.cut_back(step)
        self._evaluations.cut_back(step if last_evaluation is None else last_evaluation)

    def evaluations(self) -> list[EvaluationRecord]:
        """The evaluations written so far, oldest first."""
        return [EvaluationRecord.from_dict(line) for line in read_json_lines(self._evaluations.path)]


class TensorBoard:
    """Scalars in TensorBoard event files, with the step as their x; on a full disk, none until the next start.

    Args:
        folder: where the event files go.
        resume_step: the step from which the run goes on; events after it are hidden from then on.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        self._folder = folder
        self._open(None if resume_step is None else resume_step + 1)

    def _open(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here, for it costs a second that not every run pays

        self._writer: SummaryWriter | None = None
        with self._outlived():
            self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)

    @contextmanager
    def _outlived(self) -> Iterator[None]:
        """Around what writes: a disk that fails ends these copies, not the run."""
        try:
            yield
        except OSError as error:
            self._writer = None
            logger().warning("%s: %s. TensorBoard gets nothing more until the next start.", self._folder, error)

    def write_step(self, record: StepRecord) -> None:
        """Add the scalars of a step."""
        self._write(record)

    def write_evaluation(self, record: EvaluationRecord) -> None:
        """Add the scalars of an evaluation, and have them on disk at once: they are few and looked at."""
        self._write(record)
        with self._outlived():
            if self._writer is not None:
                self._writer.flush()

    def rewind(self, step: int) -> None:
        """Hide the events after `step`."""
        self.close()
        self._open(step + 1)

    def close(self, *, failed: bool = False) -> None:
        """Write what is buffered and close the file."""
        with self._outlived():
            if self._writer is not None:
                self._writer.close()

    def _write(self, record: StepRecord | EvaluationRecord) -> None:
        with self._outlived():
            for name, value in record.scalars().items():
                if self._writer is not None:
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
