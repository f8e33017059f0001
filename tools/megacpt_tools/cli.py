"""The `megacpt` command: tools that work beside training, each in a module of its own.

A new one is a row in COMMANDS and a module with two functions:

    configure(parser)       declare arguments
    run(arguments) -> int   do it; returns the exit code

Only the chosen module is imported, and modules import what is heavy inside `run`, so `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from megacpt import __version__
from megacpt.errors import USER_ERROR, CommandParser, MegacptError

COMMANDS = {
    "shards": ("megacpt_tools.shards", "build, inspect, verify and decontaminate shards of tokens"),
    "doctor": ("megacpt_tools.doctor", "show the versions here, and check all of a recipe that needs no training"),
    "report": ("megacpt_tools.report", "show what a run learned and forgot, or compare runs, as one page"),
    "watch": ("megacpt_tools.watch", "show a run in the terminal as it goes on"),
    "tasks": ("megacpt_tools.tasks", "measure downstream tasks of a run's checkpoint, for its report"),
    "probe": ("megacpt_tools.probe", "measure what a model has learned by heart: recall of texts, canaries"),
    "merge": ("megacpt_tools.merge", "add instruction tuning to a trained base, interpolate or average models"),
    "checkpoint": ("megacpt_tools.checkpoint", "list, verify, show and prune the checkpoints of a run"),
    "stream": ("megacpt_tools.stream", "show which rows a run reads when, and where two runs part"),
    "export": ("megacpt_tools.export", "write a run or checkpoint as a Hugging Face folder"),
    "quickstart": ("megacpt_tools.quickstart", "train a small model on medical text, everything included"),
    "mixture": ("megacpt_tools.mixture", "learn from pilot runs how to mix: a skills graph, an agent"),
    "debug-data": ("megacpt_tools.debug_data", "make the shards of the recipe debug-tiny"),
}

INTERRUPTED, BROKEN_PIPE = 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. What a user can mend is printed as one line, with exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    parser = CommandParser("megacpt", description="Tools for the continual pre-training of language models.")
    parser.add_argument("--version", action="version", version=f"megacpt {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if argv and argv[0] == name:
            chosen = import_module(module)
            chosen.configure(command)
            command.set_defaults(run=chosen.run)
    arguments = parser.parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has read enough; what is left unwritten goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except MegacptError as error:
        print(f"megacpt: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        print(f"megacpt: {f'{error.filename}: {error.strerror}' if error.filename else error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("megacpt: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
