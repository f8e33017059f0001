"""The skills graph: what pilots show of it, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacpt.continual.curves import Curve
from megacpt.continual.skills_graph import SkillsGraph, learn_skills_graph
from megacpt.errors import DataError


def falls(nats: float, tokens: int = 1000) -> Curve:
    return Curve((0, tokens), (5.0, 5.0 - nats))


def test_is_the_gain_of_others_relative_to_one_s_own() -> None:
    pilots = {
        "copy": {"copy": falls(2.0), "add": falls(0.5), "bystander": falls(9.0)},
        "add": {"copy": falls(-1.0), "add": falls(1.0)},
    }
    graph = learn_skills_graph(pilots)
    assert graph.skills == ("copy", "add")
    assert graph.effects == ((1.0, 0.5), (0.0, 1.0))


def test_pilots_are_compared_after_equally_many_tokens() -> None:
    graph = learn_skills_graph(
        {"a": {"a": falls(2.0, 2000), "b": falls(2.0, 2000)}, "b": {"a": falls(0), "b": falls(1)}}
    )
    assert graph.effect("a", "b") == 1.0


def test_survives_its_file_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    graph = SkillsGraph(("a", "b"), ((1.0, 0.25), (0.0, 1.0)))
    graph.save(tmp_path / "graph.json")
    assert SkillsGraph.load(tmp_path / "graph.json") == graph
    for text in ("", "{}", '{"skills": ["a", "b"], "effects": [[1, 0]]}', '{"skills": ["a"], "effects": [[NaN]]}'):
        (tmp_path / "wrong.json").write_text(text)
        with pytest.raises(DataError):
            SkillsGraph.load(tmp_path / "wrong.json")


@pytest.mark.parametrize(
    "pilots, message",
    [
        ({"a": {"a": falls(1.0)}, "b": {"a": falls(1.0), "b": falls(1.0)}}, "no held-out loss of b"),
        ({"a": {"a": falls(-0.1)}}, "has not lowered its own loss"),
    ],
)
def test_pilots_that_show_nothing_are_refused(pilots: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        learn_skills_graph(pilots)
