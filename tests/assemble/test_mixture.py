"""Recipe -> controller: each name, its keys, and its defaults."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megacpt.assemble.mixture import ceilings, controller
from megacpt.continual.controllers.agent import Agent
from megacpt.continual.controllers.constrained import Constrained
from megacpt.continual.controllers.controller import Controller
from megacpt.continual.controllers.ddk import DDK
from megacpt.continual.controllers.prioritised import Prioritised
from megacpt.continual.controllers.random_walk import RandomWalk
from megacpt.continual.controllers.skill_it import SkillIt
from megacpt.continual.controllers.topic_perplexity import TopicPerplexity
from megacpt.continual.skills_graph import SkillsGraph
from megacpt.data.loader import Loader
from megacpt.data.mixture import Mixture
from megacpt.errors import RecipeError
from megacpt.recipe.rules import CONTROLLER_KEYS
from tests.assemble.recipes import resolved
from tests.data.memory_corpus import MemoryCorpus, stream_of

GRAPH = SkillsGraph(("law", "web"), ((1.0, 0.5), (0.0, 1.0)))


def chosen(folder: Path, mixture: str, *overrides: str) -> Controller | None:
    held_out = ["data.domains.web.held_out=web-held-out", "forgetting={web: 0.02}"]
    return controller(resolved(folder, f"mixture={mixture}", *held_out, *overrides).recipe)


def test_a_static_mixture_has_none(tmp_path: Path) -> None:
    assert chosen(tmp_path, "{}") is None


@pytest.mark.parametrize(
    "mixture, expected",
    [
        ("{controller: ddk}", DDK()),
        ("{controller: ddk, smoothing: 0.3, reference: {law: 2.5}}", DDK(0.3, {"law": 2.5})),
        ("{controller: topic_perplexity, step_size: 0.1}", TopicPerplexity(0.1)),
        ("{controller: constrained, max_replay: 0.3}", Constrained({"web": 0.02}, ("web",), max_replay=0.3)),
        ("{controller: random_walk}", RandomWalk(7)),
        ("{controller: skill_it, graph: GRAPH, window: 2}", SkillIt(GRAPH, window=2)),
    ],
)
def test_a_controller_has_the_recipe_s_numbers(mixture: str, expected: Controller, tmp_path: Path) -> None:
    GRAPH.save(tmp_path / "graph.json")
    assert chosen(tmp_path, mixture.replace("GRAPH", str(tmp_path / "graph.json")), "seed=7") == expected


def test_prioritised_knows_what_is_replayed(tmp_path: Path) -> None:
    books = "data.domains.books={role: replay, shards: b, held_out: b, weight: 1}"
    assert chosen(tmp_path, "{controller: prioritised, exponent: 2}", books) == Prioritised(("web", "books"), 2.0)


def test_an_agent_is_loaded(tmp_path: Path) -> None:
    Agent(np.array([1.0, 2.0, 3.0, 4.0]), {"law": 0.5}).save(tmp_path / "agent")
    agent = chosen(tmp_path, f"{{controller: agent, agent: {tmp_path / 'agent'}}}")
    assert isinstance(agent, Agent) and agent.theta.tolist() == [1, 2, 3, 4]


def test_a_graph_of_other_domains_is_refused(tmp_path: Path) -> None:
    SkillsGraph(("law",), ((1.0,),)).save(tmp_path / "graph.json")
    with pytest.raises(RecipeError, match=r"mixture\.graph: the skills graph does not know every .*no web"):
        chosen(tmp_path, f"{{controller: skill_it, graph: {tmp_path / 'graph.json'}}}")


def test_no_share_reads_a_domain_more_often_than_it_may(tmp_path: Path) -> None:
    run = resolved(tmp_path, "training.tokens=1280", "data.domains.law.max_epochs=0.5")
    corpora = {"law": MemoryCorpus([5] * 130), "web": MemoryCorpus([5] * 130)}
    with Loader(stream_of(corpora, {"law": 3, "web": 1}, 16, 8), prefetch_steps=0) as loader:
        assert ceilings(run, loader, 0) == pytest.approx({"law": 325 / 1280, "web": 4 * 650 / 1280})
        law = 0.5 - loader.stream.report(3)[0].epochs
        assert ceilings(run, loader, 3)["law"] == pytest.approx(max(law, 0) * 650 / (1280 - 3 * 128))


def test_the_rules_know_the_keys_of_every_controller() -> None:
    kinds: dict[str, Any] = {
        "ddk": DDK, "topic_perplexity": TopicPerplexity, "skill_it": SkillIt, "prioritised": Prioritised,
        "constrained": Constrained, "random_walk": RandomWalk,
    }  # fmt: skip
    for name, kind in kinds.items():
        fields = {field.name for field in dataclasses.fields(kind)} - {"seed", "replay", "budgets"}
        assert fields == CONTROLLER_KEYS[name], name


def test_every_global_batch_has_its_replay() -> None:
    for weights, num_rows in (({"new": 0.95, "old": 0.05}, 512), ({"new": 0.82, "a": 0.045, "b": 0.135}, 64)):
        mixture = Mixture(weights)
        counts = np.diff([mixture.counts(batch * num_rows) for batch in range(501)], axis=0)
        assert np.abs(counts - num_rows * np.array([weights[name] for name in mixture.names])).max() < 2
