"""Topic perplexity: the formula, and that a rise is answered within one interval."""

from __future__ import annotations

import math

import pytest

from megacpt.continual.controllers.topic_perplexity import TopicPerplexity
from tests.continual.controllers.learner import observe

PLAN = {"a": 0.5, "b": 0.3, "c": 0.2}


def test_is_the_paper_s_formula() -> None:
    before, now = {"a": math.log(10), "b": math.log(20), "c": math.log(5)}, {"a": math.log(12), "b": math.log(16)}
    now["c"] = before["c"]
    shares = TopicPerplexity(step_size=0.2).decide(observe(before, now, weights=PLAN), PLAN)
    unnormalised = [0.5 * (1 + 0.2 * 2 / 4), 0.3 * (1 - 0.2), 0.2]  # perplexities +2, -4, 0
    assert list(shares.values()) == pytest.approx([share / sum(unnormalised) for share in unnormalised])


def test_a_perplexity_that_rises_raises_the_share_at_once() -> None:
    before = {"a": 2.0, "b": 3.0, "c": 2.5}
    for name in PLAN:
        shares = TopicPerplexity().decide(observe(before, before | {name: before[name] + 0.1}, weights=PLAN), PLAN)
        assert shares[name] > PLAN[name]
        assert all(shares[other] < PLAN[other] for other in PLAN if other != name)


def test_nothing_changed_nothing_changes() -> None:
    losses = {"a": 2.0, "b": 3.0, "c": 2.5}
    assert TopicPerplexity().decide(observe(losses, losses, weights=PLAN), PLAN) == pytest.approx(PLAN)
    assert TopicPerplexity().decide(observe(losses, weights=PLAN), PLAN) == pytest.approx(PLAN)
