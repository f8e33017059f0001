"""What `megacpt doctor` prints and answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from megacpt.assemble import preflight
from megacpt.errors import USER_ERROR
from megacpt.recipe import Resolved
from megacpt_tools import cli, doctor

ROOT = Path(__file__).parents[2]


def test_the_tested_versions_are_those_that_the_tests_install() -> None:
    pins = re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements" / "constraints.txt").read_text(), re.MULTILINE)
    pinned = {name.replace("_", "-"): version for name, version in pins}
    assert doctor.TESTED.keys() - pinned.keys() <= {"python", "torch"}
    for name in doctor.TESTED.keys() & pinned.keys():
        assert pinned[name] in SpecifierSet(doctor.TESTED[name]), name
    assert Requirement(f"torch{doctor.TESTED['torch']}").specifier.contains("2.13.0+cpu")


def test_a_version_outside_the_tested_ones_is_marked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(doctor.TESTED, "numpy", "<2")
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "versions"
    assert any(re.fullmatch(r"numpy: not tested: \S+ \(tested: <2\)", line) for line in lines)


@pytest.mark.parametrize(("verdict", "code"), [("ok", 0), ("warning", 0), ("error", 2)])
def test_only_an_error_is_answered_with_2(
    verdict: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Resolved] = []

    def examine(resolved: Resolved) -> list[preflight.Finding]:
        seen.append(resolved)
        return [preflight.Finding("rope", verdict, "a line " * 40)]  # type: ignore[arg-type]

    monkeypatch.setattr(preflight, "examine", examine)
    arguments = ["--recipe", "llama3-8b-medical", "--world-size", "16", "--set", "seed=5"]
    assert cli.main(["doctor", *arguments]) == code
    (resolved,) = seen
    assert (resolved.world_size, resolved.recipe.seed) == (16, 5)
    assert f"rope: {verdict}: {'a line ' * 40}" in capsys.readouterr().out.splitlines()


def test_a_recipe_that_does_not_load_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--recipe", "no-such-recipe"]) == USER_ERROR
    assert capsys.readouterr().err.startswith("megacpt: ")
