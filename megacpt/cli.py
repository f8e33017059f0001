"""The training command: recipe in, run out.

Without torch until the recipe is known to be good, so that `--dry-run` answers on a login node and a mistake costs a
second, not a job.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from megacpt import __version__
from megacpt.assemble.schedule import schedule
from megacpt.assemble.stages import layers_per_stage, stage_bounds
from megacpt.errors import USER_ERROR, CommandParser, MegacptError
from megacpt.recipe import Resolved, least_world_size, load_recipe, resolve, show

if TYPE_CHECKING:
    from rich.text import Text

KEYBOARD_INTERRUPT = 130
_NUM_RATES = 200
_SILENT_SECONDS = 10.0
"""How long a rank with an error waits for rank 0 to have said the same."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = CommandParser("train.py", description="Continue the pre-training of a language model.")
    parser.add_argument(
        "--recipe", required=True, metavar="NAME", help="a shipped recipe's name, or a path to a YAML file"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="change a key: lr.peak=2e-5"
    )
    parser.add_argument(
        "--resume",
        metavar="FROM",
        help="auto (the newest checkpoint of the run, if any), a run folder, or a checkpoint",
    )
    parser.add_argument(
        "--accept", action="append", default=[], metavar="KEY", help="a key that may differ from the checkpoint's"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check and explain the recipe; train nothing, need no GPU"
    )
    parser.add_argument(
        "--world-size",
        type=int,
        metavar="N",
        help="with --dry-run: the number of processes (default: as the layout needs)",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # passed by the deepspeed launcher
    parser.add_argument(
        "--time-limit",
        type=duration_seconds,
        metavar="[D-]HH:MM:SS",
        help="save and stop in time before so much time has passed (default: what Slurm says in SLURM_JOB_END_TIME)",
    )
    parser.add_argument("--version", action="version", version=f"megacpt {__version__}")
    arguments = parser.parse_args(argv)
    if arguments.world_size is not None and not arguments.dry_run:
        parser.error("--world-size is for --dry-run; a launcher starts the processes: deepspeed --num_gpus N, torchrun")
    return arguments


def duration_seconds(text: str) -> float:
    """A length of time as Slurm writes it in full, [D-]HH:MM:SS, in seconds."""
    if (parts := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not [D-]HH:MM:SS, such as 23:50:00")
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def deadline(arguments: argparse.Namespace, now: float) -> float | None:
    """When the run has to have ended, in seconds since the epoch; None: no matter when."""
    if arguments.time_limit is not None:
        return now + arguments.time_limit
    end = os.environ.get("SLURM_JOB_END_TIME")
    return float(end) if end else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code. A user's mistake is one line on rank 0, without a traceback."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        return _dry_run(arguments) if arguments.dry_run else _train(arguments)
    except MegacptError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("interrupted, without saving: --resume auto goes on from the last checkpoint", file=sys.stderr)
        return KEYBOARD_INTERRUPT


def _dry_run(arguments: argparse.Namespace) -> int:
    import rich.console

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    fewest = least_world_size(recipe)
    resolved = resolve(recipe, fewest if arguments.world_size is None else arguments.world_size)
    shape = resolved.architecture
    layers = None if shape is None else layers_per_stage(stage_bounds(recipe, shape), shape.num_layers)
    console = rich.console.Console()
    show(resolved, console, layers)
    if arguments.world_size is None:
        console.print(" These are the fewest processes; --world-size N plans another number.", style="dim")
    if not console.options.ascii_only:
        console.print(_curve_of_rates(resolved, min(console.width, 100)))
    return 0


def _curve_of_rates(resolved: Resolved, width: int) -> Text:
    """The learning rate over the tokens of the run."""
    from megacpt.observe.plot import terminal_plot

    rate, end = schedule(resolved.rates), resolved.total_tokens
    tokens = sorted(
        {*(end * i // _NUM_RATES for i in range(_NUM_RATES + 1)), *(bend.tokens for bend in rate.milestones())}
    )
    return terminal_plot([(tokens, [rate(position) for position in tokens])], width, 12)


def _train(arguments: argparse.Namespace) -> int:
    end = deadline(arguments, time.time())
    atexit.register(gc.freeze)  # the interpreter would look through a million imported objects: seconds before it ends
    os.umask(os.umask(0) | 0o002)  # containers often have a umask of 0: a run is nobody else's to change
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    resolved: Resolved = resolve(recipe, int(os.environ.get("WORLD_SIZE", "1")))
    from megacpt.observe.quiet import quiet
    from megacpt.trainer.stopping import INTERRUPTED, stop_signals

    with quiet(), stop_signals() as signalled:
        from megacpt.engine.processes import join_world, leave_world
        from megacpt.run import Start, run

        world = join_world()
        try:
            is_finished = run(resolved, world, Start(arguments.resume, tuple(arguments.accept), signalled, end))
        except Exception as error:
            if isinstance(error, MegacptError):
                error.where = recipe.placed(error.where)
            if world.owns_processes and world.world_size > 1:
                _leave_at_once(error, signalled)
            raise
        finally:
            leave_world(world)
    return 0 if is_finished else INTERRUPTED


def _leave_at_once(error: Exception, signalled: Callable[[], bool]) -> NoReturn:
    """Say what was wrong and end this process, one of many, as it stands.

    An orderly exit waits for the collectives that this rank has begun, and there the others wait for it, for as long
    as the watchdog lets them; a launcher ends them once one rank is gone. Most of a user's mistakes are met by all
    ranks together: then rank 0 says it, and its end brings the others a signal.
    """
    from megacpt.observe.log import logger

    if isinstance(error, MegacptError):
        end = time.monotonic() + (_SILENT_SECONDS if os.environ["RANK"] != "0" else 0.0)
        while time.monotonic() < end and not signalled():
            time.sleep(0.1)
        if not signalled() or os.environ["RANK"] == "0":
            logger().error("%s", error)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(USER_ERROR if isinstance(error, MegacptError) else 1)
