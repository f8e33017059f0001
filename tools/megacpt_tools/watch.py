"""`megacpt watch`: a run in a terminal as it goes on, from another terminal or a login node that sees its folder."""

from __future__ import annotations

import argparse
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from megacpt.errors import as_argument
from megacpt.units import format_seconds, parse_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

    from megacpt_tools.report.records import RunRecords

EVERY_SECONDS = 5.0
_LATEST_STEPS = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument(
        "--every",
        type=as_argument(parse_seconds),
        default=EVERY_SECONDS,
        metavar="SECONDS",
        help="between two looks (5)",
    )
    parser.add_argument("--once", action="store_true", help="show how it stands and leave")


def run(arguments: argparse.Namespace) -> int:
    """Show the run until it has finished, or until it is interrupted; the run does not notice."""
    from rich.console import Console
    from rich.live import Live

    from megacpt_tools.report.records import RunRecords

    console = Console(highlight=False)
    records = RunRecords.read(arguments.run_folder)
    if arguments.once:
        console.print(picture(records, console.width))
        return 0
    with (
        suppress(KeyboardInterrupt),
        Live(picture(records, console.width), console=console, auto_refresh=False) as live,
    ):
        while not records.is_finished:
            time.sleep(arguments.every)
            records = RunRecords.read(arguments.run_folder)
            live.update(picture(records, console.width), refresh=True)
    return 0


def picture(records: RunRecords, width: int) -> RenderableType:
    """How a run stands: progress, every domain's loss and gap, and the curves of their changes."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from megacpt.observe.console import compact
    from megacpt.observe.plot import COLOURS, terminal_plot

    table = Table("domain", "role", "training loss", "held out", "change", "gap", box=None, pad_edge=False)
    curves = []
    for number, (name, role) in enumerate(records.roles.items()):
        style = COLOURS[number % len(COLOURS)]
        seen = [step["domains"][name]["loss"] for step in records.steps[-_LATEST_STEPS:] if name in step["domains"]]
        training = f"{sum(seen) / len(seen):.4f}" if seen and None not in seen else "-"
        cells = ["-", "-", ""]
        if name in records.curves:
            curve, gap = records.curves[name], records.gaps[name]
            cells = [f"{curve.last:.4f}", f"{gap.residual:+.4f}", str(gap.verdict)]
            curves.append((curve.tokens, curve.rises))
        table.add_row(Text(name, style), role, training, *cells)
    done = min(1.0, records.tokens / records.planned_tokens)
    line = Text.assemble(
        (records.name, "bold"), f"  {compact(records.tokens)} of {compact(records.planned_tokens)} tokens"
    )
    if records.steps:
        last = records.steps[-1]
        rate = last["tokens_per_second"]
        left = format_seconds((records.planned_tokens - records.tokens) / rate) if rate else "?"
        how = "finished" if records.is_finished else f"{left} left"
        line.append(f"  step {last['step']:,}  lr {last['learning_rate']:.2e}  {compact(rate)} tokens/s  {how}")
    parts: list[RenderableType] = [line, Padding(ProgressBar(total=1.0, completed=done), (0, 0)), table]
    if curves and len(curves[0][0]) > 1:
        parts += [Text("\nnats from the base model, over tokens", "dim"), terminal_plot(curves, min(width, 100), 14)]
    return Group(*parts)
