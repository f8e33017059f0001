"""Every study of experiments/: its arms plan their runs, and its page shows its own results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from docs.marked import replace_part
from experiments.outcome import Outcome, table
from experiments.run import STUDIES, arms, fact_line
from megacpt.recipe import explain, load_recipe, resolve

FOLDERS = sorted(path.parent for path in STUDIES.glob("*/arms.yaml"))


@pytest.fixture(params=FOLDERS, ids=lambda path: path.name)
def study(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


def test_every_arm_plans_its_run_under_a_name_of_its_own(study: Path) -> None:
    names = set()
    for arm in arms(study):
        _, recipe_file, *settings = arm.arguments(seed=3)
        recipe = load_recipe(recipe_file, settings[1::2])
        assert recipe.seed == 3
        assert explain(resolve(recipe, 1))
        names.add(recipe.name)
    assert len(names) == len(arms(study))


def test_the_page_shows_the_results(study: Path) -> None:
    results = json.loads((study / "results.json").read_text(encoding="utf-8"))
    outcomes = [Outcome.from_json(run) for run in results["runs"]]
    assert {outcome.arm for outcome in outcomes} == {arm.name for arm in arms(study)}
    assert len({outcome.seed for outcome in outcomes}) >= 2
    page = (study / "README.md").read_text(encoding="utf-8")
    assert replace_part(page, "results", f"{table(outcomes)}\n\n{fact_line(results)}") == page
    assert results["command"] in page
    assert (study / "figure.svg").read_text(encoding="utf-8").startswith("<svg")


def test_every_study_is_listed() -> None:
    page = (STUDIES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+)/README\.md\)", page)) == {folder.name for folder in FOLDERS}
