"""Shares of the tokens from weights and replay, and loss weights from shares and targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megacpt.recipe import Recipe, load_recipe, objective, token_shares
from megacpt.recipe.importance import importance
from megacpt.recipe.shares import PRETRAINING_MIXES

TEXT = """\
model: {path: some/model}
data:
  sequence_length: 64
  domains:
    medical: {role: new, shards: medical, weight: 3}
    law: {role: new, shards: law, weight: 1}
    books: {role: replay, shards: books, weight: 2}
    github: {role: replay, shards: github, weight: 2}
    web: {role: anchor, held_out: web}
batch: {global_rows: 8}
lr: {peak: 1e-4}
training: {tokens: 1M}
"""
NO_WEIGHTS = ["data.domains.books.weight=null", "data.domains.github.weight=null"]


def recipe(folder: Path, *overrides: str) -> Recipe:
    (folder / "run.yaml").write_text(TEXT)
    return load_recipe(folder / "run.yaml", overrides)


def test_weights_alone_are_shares(tmp_path: Path) -> None:
    assert token_shares(recipe(tmp_path)) == {"medical": 0.375, "law": 0.125, "books": 0.25, "github": 0.25}


def test_a_rate_divides_the_tokens_and_weights_divide_the_parts(tmp_path: Path) -> None:
    shares = token_shares(recipe(tmp_path, "replay.rate=0.05"))
    assert shares == pytest.approx({"medical": 0.7125, "law": 0.2375, "books": 0.025, "github": 0.025})


def test_new_text_takes_the_place_of_the_sources_that_are_not_replayed(tmp_path: Path) -> None:
    assert sum(PRETRAINING_MIXES["llama"].values()) == pytest.approx(1)
    shares = token_shares(recipe(tmp_path, "replay.match=llama", *NO_WEIGHTS))
    assert shares == pytest.approx({"medical": 0.91 * 0.75, "law": 0.91 * 0.25, "books": 0.045, "github": 0.045})
    stated = token_shares(recipe(tmp_path, "replay.match={books: 3, github: 1, web: 6}", *NO_WEIGHTS))
    assert stated == pytest.approx({"medical": 0.45, "law": 0.15, "books": 0.3, "github": 0.1})
    rated = token_shares(recipe(tmp_path, "replay={match: {books: 3, github: 1, web: 6}, rate: 0.2}", *NO_WEIGHTS))
    assert rated == pytest.approx({"medical": 0.6, "law": 0.2, "books": 0.15, "github": 0.05})


def test_a_stage_has_weights_of_its_own_and_the_run_s_rate(tmp_path: Path) -> None:
    stage = {"law": 1.0, "github": 7.0, "books": 0.0}
    assert token_shares(recipe(tmp_path), stage) == {"law": 0.125, "github": 0.875}
    assert token_shares(recipe(tmp_path, "replay.rate=0.25"), stage) == {"law": 0.75, "github": 0.25}
    assert token_shares(recipe(tmp_path, "replay.rate=0.25"), {"law": 1.0, "medical": 1.0}) == {
        "medical": 0.5,
        "law": 0.5,
    }


def test_importance_weights_make_the_target_the_objective_whatever_is_sampled() -> None:
    random = np.random.default_rng(0)
    shares = dict(zip("abc", random.dirichlet([3, 3, 3]).tolist(), strict=True))
    losses = dict(zip("abc", random.normal(size=3).tolist(), strict=True))
    weighting = importance(shares, {"a": 2.0, "b": 1.0, "c": 1.0, "absent": 9.0}, limits=(1e-3, 1e3))
    sampled = sum(shares[name] * weighting.weights[name] * losses[name] for name in shares)
    assert sampled == pytest.approx(0.5 * losses["a"] + 0.25 * losses["b"] + 0.25 * losses["c"])
    assert weighting.masses == pytest.approx({"a": 0.5, "b": 0.25, "c": 0.25})
    assert not list(weighting.warnings())


def test_what_is_clipped_and_what_it_costs_is_said() -> None:
    weighting = importance({"new": 0.95, "old": 0.05}, {"new": 0.4, "old": 0.6}, (0.2, 5.0))
    assert weighting.weights == pytest.approx({"new": 0.4 / 0.95, "old": 5.0})
    mass = 0.25 / (0.25 + 0.4)
    assert weighting.masses["old"] == pytest.approx(mass)
    sample = np.array([0.4 / 0.95] * 95 + [5.0] * 5)
    assert weighting.effective_share == pytest.approx(sample.sum() ** 2 / len(sample) / (sample**2).sum())
    clipped, inefficient = weighting.warnings()
    assert "the loss weight of old is clipped to 5, so it has 38.5% of the objective" in clipped
    assert f"leave {weighting.effective_share:.0%} of the samples effective" in inefficient


def test_without_targets_every_token_counts_the_same(tmp_path: Path) -> None:
    asked = recipe(tmp_path)
    assert set(objective(asked, token_shares(asked)).weights.values()) == {1.0}
