"""`megacpt export`: a run's weights as a Hugging Face folder, on any machine, one tensor at a time."""

from __future__ import annotations

import argparse
from pathlib import Path

from megacpt.errors import as_argument
from megacpt.units import parse_bytes


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", type=Path, metavar="RUN", help="a run folder (its newest checkpoint) or a checkpoint")
    parser.add_argument("target", type=Path, metavar="OUTPUT", help="the folder to write; new or empty")
    parser.add_argument("--average", action="store_true", help="the running average of optimizer.average_decay")
    parser.add_argument(
        "--max-file-size",
        type=as_argument(parse_bytes),
        default="5GB",
        metavar="SIZE",
        help="of one safetensors file (5GB)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and say which checkpoint it is."""
    from megacpt.checkpoint.export import export
    from megacpt.optim.adamw import AVERAGE
    from megacpt.parallel.fragments import MASTER
    from megacpt_tools.progress import tensor_progress

    with tensor_progress("exporting") as progress:
        checkpoint = export(
            arguments.source,
            arguments.target,
            kind=AVERAGE if arguments.average else MASTER,
            max_file_bytes=arguments.max_file_size,
            progress=progress,
        )
    print(f"wrote {checkpoint} to {arguments.target}")
    return 0
