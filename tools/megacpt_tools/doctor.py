"""`megacpt doctor`: the versions that matter on this machine, and whether what a recipe names belongs together."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, TypeAlias

from megacpt.errors import USER_ERROR
from megacpt.units import counted

if TYPE_CHECKING:
    from rich.console import Console

Row: TypeAlias = tuple[str, str, str]
"""Name, verdict, text."""

TESTED = {
    "python": "==3.11.*",
    "torch": "==2.13.*",
    "deepspeed": "==0.19.*",
    "transformers": "==5.23.*",
    "triton": "==3.7.*",
    "numpy": "==2.4.*",
    "safetensors": "==0.8.*",
    "tokenizers": "==0.23.*",
    "ninja": "==1.13.*",
    "liger-kernel": "==0.8.*",
}
"""The versions that the tests run with. setup.py allows more: others are expected to work, and are marked."""
OPTIONAL = ("flash-attn", "liger-kernel")
STYLES = {"ok": "green", "warning": "yellow", "error": "red", "not tested": "yellow", "not checked": "dim"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--recipe", metavar="NAME", help="a shipped recipe's name, or a path: checked too")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="change a key of the recipe"
    )
    parser.add_argument(
        "--world-size", type=int, metavar="N", help="the number of processes (default: as the layout needs)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Show versions and findings; 2 if something has to be mended before the recipe can run, else 0."""
    from rich.console import Console

    console = Console()
    rows = list(versions())
    _show(console, "versions", rows)
    if arguments.recipe is not None:
        from megacpt.observe.quiet import quiet
        from megacpt.recipe import least_world_size, load_recipe, resolve

        recipe = load_recipe(arguments.recipe, arguments.overrides)
        world_size = least_world_size(recipe) if arguments.world_size is None else arguments.world_size
        resolved = resolve(recipe, world_size)
        with quiet():
            from megacpt.assemble.preflight import examine

            findings = [(finding.name, finding.verdict, finding.text) for finding in examine(resolved)]
        _show(console, f"{recipe.name}, on {counted(resolved.world_size, 'process')}", findings)
        rows += findings
    return USER_ERROR if any(verdict == "error" for _, verdict, _ in rows) else 0


def versions() -> Iterator[Row]:
    """Name, verdict and version of what decides how and whether a run works here."""
    import torch
    from packaging.specifiers import SpecifierSet

    from megacpt import __version__
    from megacpt.parallel.preflight import versions as installed

    found = installed() | {name: _version(name) for name in ("ninja", *OPTIONAL)}
    yield "megacpt", "ok", __version__
    for name, version in found.items():
        if name == "megacpt":
            continue
        if version == "none":
            yield name, "ok" if name in OPTIONAL else "error", "not installed"
        elif name in TESTED and version in SpecifierSet(TESTED[name]):
            yield name, "ok", version
        else:
            yield name, "not tested", f"{version} (tested: {TESTED.get(name, 'none')})"
    if torch.cuda.is_available():
        yield "GPUs", "ok", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
        yield "CUDA", "ok", f"{torch.version.cuda}, NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}"
    else:
        yield "GPUs", "ok", "none: runs on CPUs, by gloo"
    compiler = shutil.which("g++")
    if compiler is None:
        yield "g++", "error", "not found: DeepSpeed compiles parts of itself with it"
    else:
        told = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
        yield "g++", "ok", told.partition("\n")[0]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _show(console: Console, title: str, rows: Sequence[Row]) -> None:
    """A table; in a pipe a line for each row, of any length."""
    from rich.table import Table
    from rich.text import Text

    if not console.is_terminal:
        print(title, *(f"{name}: {verdict}: {text}" for name, verdict, text in rows), sep="\n")
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
    for name, verdict, text in rows:
        table.add_row(Text(name, "cyan"), Text(verdict, STYLES[verdict]), Text(text))
    console.print(table, "")
