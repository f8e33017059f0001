"""`megacpt mixture`: what it learns from run folders, and which it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megacpt.continual.controllers.agent import Agent
from megacpt.continual.skills_graph import SkillsGraph
from megacpt_tools.cli import main
from tests.tools.report_runs import STEPS, write_run


def pilot(folder: Path, losses: dict[str, list[float]], mixtures: dict[int, dict[str, float]]) -> Path:
    """A run folder whose mixtures are known."""
    write_run(folder, losses)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line | ({"mixture": mixtures[line["step"]]} if line["step"] in mixtures else {}) for line in lines]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_a_graph_is_learned_from_one_pilot_a_domain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    medical = pilot(tmp_path / "m", {"medical": [3.0, 2.5, 2.0], "general": [2.0, 1.9, 1.8]}, {1: {"medical": 1.0}})
    general = pilot(tmp_path / "g", {"medical": [3.0, 3.1, 3.2], "general": [2.0, 1.8, 1.6]}, {1: {"general": 1.0}})
    graph = tmp_path / "graph.json"
    assert main(["mixture", "learn-graph", str(medical), str(general), "--output", str(graph)]) == 0
    assert SkillsGraph.load(graph) == SkillsGraph(("medical", "general"), ((1.0, 0.5), (0.0, 1.0)))
    assert "medical helps general 0.50" in capsys.readouterr().out


def test_a_pilot_of_two_domains_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = pilot(tmp_path / "both", {"medical": [3.0, 2.5, 2.0]}, {1: {"medical": 0.5, "general": 0.5}})
    assert main(["mixture", "learn-graph", str(both), "--output", str(tmp_path / "graph.json")]) == 2
    assert "a pilot of a skills graph trains on one domain (found 2 domains" in capsys.readouterr().err


def test_an_agent_is_trained_on_pilots_that_changed_their_mixture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    for number, share in enumerate((0.2, 0.5, 0.9)):  # what is given to medical is learned; general only stays
        first, second = {"medical": share, "general": 1 - share}, {"medical": 1 - share, "general": share}
        medical = [3.0, 3.0 - share, 3.0 - share - (1 - share)]
        runs.append(pilot(tmp_path / f"{number}", {"medical": medical, "general": [2.0] * 3}, {1: first, 3: second}))
    arguments = ["mixture", "train-agent", *map(str, runs), "--output", str(tmp_path / "agent"), "--value", "general=2"]
    assert main(arguments) == 0
    assert STEPS == (0, 2, 4) and "3 pilots, 6 decisions" in capsys.readouterr().out
    offsets = Agent.load(tmp_path / "agent").offsets
    assert offsets["medical"] > offsets["general"]
