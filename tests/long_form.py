"""Which cases of a test every run tries, and which only its long form (`pytest -m slow`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest
from _pytest.mark import ParameterSet


def cases(every: Iterable[object], *, always: Collection[object]) -> list[ParameterSet]:
    """The cases of a `parametrize`, those not in `always` marked slow; a tuple is a case of several arguments."""
    return [_case(case if isinstance(case, tuple) else (case,), str(case), case in always) for case in every]


def _case(arguments: tuple[object, ...], name: str, always: bool) -> ParameterSet:
    return pytest.param(*arguments, marks=() if always else pytest.mark.slow, id=name)
