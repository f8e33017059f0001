"""`megacpt report`: one run, or several compared, as a page that holds everything it shows."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, also of runs that are going on")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the page to write (default: report.html in the first run folder)"
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="MODEL",
        help="also measure how far the checkpoints' layers are from this base model",
    )
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="also write every chart as a PNG file")


def run(arguments: argparse.Namespace) -> int:
    """Write the page and print its path."""
    if arguments.base:
        from megacpt_tools.report.drift import measure_drift

        for folder in arguments.runs:
            measure_drift(folder, arguments.base)
    print(write(arguments.runs, arguments.output or arguments.runs[0] / "report.html", arguments.figures))
    return 0


def write(folders: list[Path], output: Path, figures: Path | None = None) -> Path:
    """Write the report of runs.

    Args:
        folders: their run folders.
        output: the HTML file.
        figures: a folder for the charts as PNG; None writes none.

    Returns:
        `output`.

    Raises:
        CheckpointError: a folder is no run's.
    """
    import vl_convert

    from megacpt_tools.report.charts import LIGHT, resolved
    from megacpt_tools.report.page import render
    from megacpt_tools.report.records import RunRecords, told_apart

    html, specs = render(told_apart([RunRecords.read(folder) for folder in folders]))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(html, encoding="utf-8")
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for name, spec in specs.items():
            picture = resolved(spec, LIGHT) | {"width": 640, "background": LIGHT["--paper"], "padding": 12}
            (figures / f"{name}.png").write_bytes(vl_convert.vegalite_to_png(picture, scale=2))
    return output
