"""`megacpt checkpoint`: what checkpoints a run has, whether they are intact, and which may go."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from megacpt.errors import as_argument
from megacpt.units import parse_tokens, rounded_bytes


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="action")
    for name, help_text in {
        "list": "a line for each checkpoint of a run, and what else lies there",
        "verify": "compare every file with the size and SHA-256 that it was saved with",
        "show": "what a checkpoint holds",
    }.items():
        command = commands.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
        command.add_argument("folder", type=Path, metavar="RUN", help="a run folder or a checkpoint")
    prune = commands.add_parser(
        "prune",
        help="remove checkpoints, and what failed saves left",
        description="Remove checkpoints beyond those to keep, and what failed saves left. Milestones stay, and so does "
        "the newest intact checkpoint.",
    )
    prune.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    prune.add_argument("--keep-last", type=int, required=True, metavar="N", help="so many of the newest stay")
    prune.add_argument(
        "--keep-every-tokens",
        type=as_argument(parse_tokens),
        metavar="TOKENS",
        help="and the first one at or after each multiple of this",
    )
    prune.add_argument("--set-aside", action="store_true", help="also remove checkpoints that the run has turned from")
    prune.add_argument("--yes", action="store_true", help="do it; without, only say what would be removed")


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for; `verify` gives 1 where it finds damage."""
    return {"list": _list, "verify": _verify, "show": _show, "prune": _prune}[arguments.action](arguments)


def _checkpoints(path: Path) -> list[Path]:
    """The checkpoint that `path` is, or all complete ones of a run, oldest first."""
    from megacpt.checkpoint.folder import CheckpointFolder, find_checkpoint

    newest = find_checkpoint(path)
    return [newest] if newest == path else CheckpointFolder(path / "checkpoints").complete()


def _leftovers(folder: Path) -> list[Path]:
    from megacpt.checkpoint.folder import PARTIAL

    return sorted(path for path in folder.glob(f"*{PARTIAL}") if path.is_dir())


def _list(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from megacpt.checkpoint.folder import SET_ASIDE, read_manifest, read_state

    table = Table(box=None, pad_edge=False)
    for heading in ("checkpoint", "tokens", "size", "layout", "kept as"):
        table.add_column(heading, justify="right" if heading in ("tokens", "size") else "left")
    checkpoints = _checkpoints(arguments.folder)
    for path in checkpoints:
        state = read_state(path)
        size = sum(file["bytes"] for file in read_manifest(path).values())
        layout = " x ".join(f"{axis} {degree}" for axis, degree in state["layout"].items())
        table.add_row(path.name, f"{state['tokens']:,}", rounded_bytes(size), layout, ", ".join(state["milestones"]))
    console = Console()
    console.print(table)
    folder = checkpoints[0].parent
    for path in _leftovers(folder):
        console.print(f"{path.name}: a save that did not finish; the next save removes it")
    for path in sorted(folder.glob(f"*{SET_ASIDE}")):
        console.print(f"{path.name}: the run went another way from an older checkpoint")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from megacpt.checkpoint.folder import damage

    num_damaged = 0
    for path in _checkpoints(arguments.folder):
        found = damage(path)
        num_damaged += bool(found)
        print(f"{path.name}: {'damaged' if found else 'intact'}")
        for line in found:
            print(f"  {line}")
    return 1 if num_damaged else 0


def _show(arguments: argparse.Namespace) -> int:
    from megacpt.checkpoint.folder import find_checkpoint, read_manifest, read_state
    from megacpt.checkpoint.state import StoredState

    path = find_checkpoint(arguments.folder)
    state, stored = read_state(path), StoredState(path)
    facts: dict[str, Any] = {
        "checkpoint": path,
        "step": f"{state['step']:,}",
        "tokens": f"{state['tokens']:,}",
        "kept as": ", ".join(state["milestones"]) or "-",
        "written by": ", ".join(f"{axis} {degree}" for axis, degree in state["layout"].items()),
        "versions": ", ".join(f"{name} {version}" for name, version in state["versions"].items()),
        "tensors": f"{len(list(stored)):,}, each with {', '.join(stored.kinds)}",
        "counters": json.dumps(stored.counters),
        "size": rounded_bytes(sum(file["bytes"] for file in read_manifest(path).values())),
        "recipe": state["recipe"]["name"],
    }
    for name, value in facts.items():
        print(f"{name:<11} {value}")
    return 0


def _prune(arguments: argparse.Namespace) -> int:
    from megacpt.checkpoint.folder import SET_ASIDE, CheckpointFolder, Retention, damage
    from megacpt.errors import CheckpointError

    folder = CheckpointFolder(arguments.folder / "checkpoints")
    if arguments.keep_last < 1:
        raise CheckpointError("a run needs a checkpoint to go on from", where="--keep-last", expected="at least 1")
    newest_intact = next((path for path in reversed(folder.complete()) if not damage(path)), None)
    if newest_intact is None:
        raise CheckpointError("no checkpoint here is intact: nothing is removed", where=str(folder.folder))
    retention = Retention(arguments.keep_last, arguments.keep_every_tokens)
    removed = folder.superfluous(retention, [newest_intact])
    others = _leftovers(folder.folder)
    if arguments.set_aside:
        others += sorted(folder.folder.glob(f"*{SET_ASIDE}"))
    for path in removed + others:
        print(f"{'removing' if arguments.yes else 'would remove'} {path}")
    if arguments.yes:
        for path in removed + others:
            with suppress(FileNotFoundError):  # a save that was under way is complete now, or has removed it
                folder.discard(path)
    return 0
