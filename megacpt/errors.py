"""The errors a user may meet.

Every one says what went wrong and, as far as it is known, where (file, line and key), what was found, what was
expected and what to do. A command prints the text alone, without a traceback; a bug of ours is any other exception.
A mistake on the command line is answered in the same way.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

Value = TypeVar("Value")

USER_ERROR = 2
"""The exit code of a mistake that the user can mend."""


class MegacptError(Exception):
    """Something that the user can mend.

    Args:
        message: one sentence: what went wrong.
        where: file and line, key path, rank: whatever leads to the place.
        found: what stood there.
        expected: what should have stood there.
        hint: what to do.
    """

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        found: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.found = found
        self.expected = expected
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        if self.found is not None:
            text += f" (found {self.found}"
            text += f", expected {self.expected})" if self.expected is not None else ")"
        elif self.expected is not None:
            text += f" (expected {self.expected})"
        return f"{text}. {self.hint}" if self.hint else text


class RecipeError(MegacptError):
    """A recipe that cannot be run: an unknown key, a wrong value, values that contradict each other."""


class DataError(MegacptError):
    """Text, shards or manifests that cannot be read, or do not belong together."""


class ModelError(MegacptError):
    """A model that cannot be loaded, cut or exported faithfully."""


class CheckpointError(MegacptError):
    """A checkpoint that is missing, incomplete, or of another run."""


class ForgettingError(MegacptError):
    """A domain was forgotten beyond its budget, and the recipe says to stop."""


class TrainingError(MegacptError):
    """A run that goes wrong in a way that going on, or starting again from its last checkpoint, does not mend."""


class LaunchError(MegacptError):
    """A world of processes that does not fit the recipe, or the machine."""


class CommandParser(argparse.ArgumentParser):
    """A parser whose error is one line; argparse's own puts the whole usage above it."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"formatter_class": _Help, **settings})

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave."""
        self.exit(USER_ERROR, f"{self.prog}: {message}. See {self.prog} --help.\n")


def as_argument(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """`parse` as the type of an argument: argparse would keep the words of its ValueError to itself."""

    def parsed(text: str) -> Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


class _Help(argparse.HelpFormatter):
    """Leaves room for the names of commands: argparse measures them without their indent."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment
