"""How a long command says how far it is: a bar in a terminal, a line now and then in the log of a build."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from megacpt.units import counted, format_seconds

if TYPE_CHECKING:
    from megacpt_tools.builder import BuildProgress

LINE_EVERY_SECONDS = 10.0


@contextmanager
def build_progress(stream: TextIO | None = None) -> Iterator[Callable[[BuildProgress], None]]:
    """A function to hand to `build_shards`; what it prints goes to `stream` (stderr)."""
    stream = stream or sys.stderr
    start_seconds = time.monotonic()

    def counts(progress: BuildProgress) -> str:
        rate = progress.tokens / max(time.monotonic() - start_seconds, 1e-9)
        return f"{counted(progress.documents, 'document')}  {progress.tokens:,} tokens  {rate / 1e6:.2f} M tokens/s"

    if stream.isatty():
        columns = BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
        with Progress(*columns, console=Console(file=stream), transient=True) as bar:
            task = bar.add_task("")
            yield lambda progress: bar.update(
                task, completed=progress.done_bytes, total=progress.total_bytes or None, description=counts(progress)
            )
        return

    last_seconds = start_seconds

    def line(progress: BuildProgress) -> None:
        nonlocal last_seconds
        now = time.monotonic()
        if now - last_seconds < LINE_EVERY_SECONDS:
            return
        last_seconds = now
        text = counts(progress)
        if progress.total_bytes:  # a dataset of the hub does not say how long it is
            left_bytes = progress.total_bytes - progress.done_bytes
            left_seconds = (now - start_seconds) * left_bytes / max(progress.done_bytes, 1)
            text = f"{progress.done_bytes / progress.total_bytes:4.0%}  {text}  {format_seconds(left_seconds)} left"
        print(text, file=stream, flush=True)

    yield line


@contextmanager
def tensor_progress(verb: str) -> Iterator[Callable[[int, int], None]]:
    """A function of (tensors done, tensors in all) that draws a bar on stderr, if that is a terminal."""
    console = Console(stderr=True)
    columns = TextColumn(verb), BarColumn(), MofNCompleteColumn(), TextColumn("tensors"), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
