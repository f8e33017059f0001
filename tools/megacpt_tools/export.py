"""`megacpt export`: a run's weights as a Hugging Face folder, on any machine, one tensor at a time."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", type=Path, metavar="RUN", help="a run folder (its newest checkpoint) or a checkpoint")
    parser.add_argument("target", type=Path, metavar="OUTPUT", help="the folder to write; new or empty")
    parser.add_argument("--average", action="store_true", help="the running average of optimizer.average_decay")
    parser.add_argument("--max-file-size", default="5GB", metavar="SIZE", help="of one safetensors file (default: 5GB)")


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and say which checkpoint it is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from megacpt.checkpoint.export import export
    from megacpt.optim.adamw import AVERAGE
    from megacpt.parallel.fragments import MASTER
    from megacpt.units import parse_bytes

    columns = (TextColumn("exporting"), BarColumn(), MofNCompleteColumn(), TextColumn("tensors"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        checkpoint = export(
            arguments.source,
            arguments.target,
            kind=AVERAGE if arguments.average else MASTER,
            max_file_bytes=parse_bytes(arguments.max_file_size),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print(f"wrote {checkpoint} to {arguments.target}")
    return 0
