"""`megacpt merge`: what it is told to do is what it does."""

from __future__ import annotations

import pytest

from megacpt_tools import cli


@pytest.mark.parametrize(
    ("kind", "option"),
    [("--lerp a b", "--scale 1"), ("--residual a b c", "--share 0.5"), ("--lerp a b", "--weights 1 2")],
)
def test_an_option_of_another_kind_is_refused(kind: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["merge", *kind.split(), "--output", "c", *option.split()]) == 2
    assert f"{option.split()[0]}: this kind of merge does not use the option" in capsys.readouterr().err
