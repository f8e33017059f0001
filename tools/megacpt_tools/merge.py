"""`megacpt merge`: sums of models, streamed from and to Hugging Face folders on any machine, without a GPU."""

from __future__ import annotations

import argparse
from pathlib import Path

from megacpt.errors import ModelError

OPTIONS = {"scale": "residual", "share": "lerp", "weights": "average"}
"""Option -> the kind of merge that uses it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument(
        "--residual",
        nargs=3,
        type=Path,
        metavar=("TRAINED", "INSTRUCT", "BASE"),
        help="TRAINED + scale * (INSTRUCT - BASE): instruction tuning carried over to a base that was trained on",
    )
    kinds.add_argument(
        "--lerp",
        nargs=2,
        type=Path,
        metavar=("BASE", "TRAINED"),
        help="a point between two models: share 0 is BASE, 1 is TRAINED",
    )
    kinds.add_argument("--average", nargs="+", type=Path, metavar="MODEL", help="the mean of models")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="the folder to write; new or empty"
    )
    parser.add_argument("--scale", type=float, help="with --residual (1)")
    parser.add_argument("--share", type=float, help="with --lerp (0.5)")
    parser.add_argument(
        "--weights", type=float, nargs="+", metavar="W", help="with --average: one for each (equal ones)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the sum."""
    from megacpt.checkpoint.merge import average, lerp, merge, residual
    from megacpt_tools.progress import tensor_progress

    for option, kind in OPTIONS.items():
        if getattr(arguments, option) is not None and not getattr(arguments, kind):
            raise ModelError("this kind of merge does not use the option", where=f"--{option}", expected=f"--{kind}")
    if arguments.residual:
        trained, instruct, base = arguments.residual
        terms, files_from = (
            residual(trained, instruct, base, 1.0 if arguments.scale is None else arguments.scale),
            instruct,
        )
    elif arguments.lerp:
        base, trained = arguments.lerp
        terms, files_from = lerp(base, trained, 0.5 if arguments.share is None else arguments.share), trained
    else:
        terms, files_from = average(arguments.average, arguments.weights), arguments.average[-1]
    with tensor_progress("merging") as progress:
        merge(terms, arguments.output, files_from=files_from, progress=progress)
    print(f"wrote {arguments.output}: " + " ".join(f"{factor:+g} x {folder}" for folder, factor in terms))
    return 0
