from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacpt.data.history import CorpusRecord, History, Settings, Stage
from megacpt.errors import DataError

TEXTS = {name: CorpusRecord(1000, 10) for name in ("a", "b")}
PLAN = [
    Stage(0, Settings({"a": 3, "b": 1}, 8, 4)),
    Stage(100, Settings({"a": 1}, 16, 4)),
    Stage(300, Settings({"a": 1, "b": 1}, 16, 2)),
]


def planned() -> History:
    return History.begin(7, PLAN, TEXTS)


def walk(history: History, num_steps: int) -> list[tuple[int, int]]:
    """(first sample, tokens before) of every step, found by going through all steps before it."""
    sample, tokens, found = 0, 0, []
    for step in range(num_steps):
        sample += sum(jump.num_samples for jump in history.jumps if jump.at_step == step)
        found.append((sample, tokens))
        settings = [segment.settings for segment in history.segments if segment.from_step <= step][-1]
        sample += settings.global_rows
        tokens += settings.global_rows * settings.sequence_length
    return found


def test_a_stage_begins_with_the_first_step_behind_its_token() -> None:
    # 32 tokens a step: step 4 begins at token 128. Then 64 a step: step 7 begins at token 320.
    assert [segment.from_step for segment in planned().segments] == [0, 4, 7]
    assert [planned().tokens(step) for step in (0, 4, 7, 8)] == [0, 128, 320, 352]
    assert [planned().num_steps(tokens) for tokens in (0, 1, 128, 129, 320, 321)] == [0, 1, 4, 5, 7, 8]


@given(
    changes=st.lists(st.tuples(st.integers(0, 12), st.sampled_from([{"a": 1.0}, {"a": 1.0, "b": 2.0}])), max_size=3),
    jumps=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9)), max_size=3),
)
def test_samples_and_tokens_are_those_of_a_walk(
    changes: list[tuple[int, dict[str, float]]], jumps: list[tuple[int, int]]
) -> None:
    history = planned()
    for step, weights in changes:
        history = history.set_weights(step, weights)
    for step, num_samples in jumps:
        history = history.jump(step, num_samples)
    steps = range(15)
    assert [(history.first_sample(step), history.tokens(step)) for step in steps] == walk(history, 15)
    assert all(history.num_steps(history.tokens(step)) == step for step in steps)
    read = [
        (stretch.first_sample + k * stretch.settings.global_rows, stretch.settings)
        for stretch in history.stretches(15)
        for k in range(stretch.num_steps)
    ]
    assert read == [(history.first_sample(step), history.settings(step)) for step in steps]
    assert History.from_json(json.loads(json.dumps(history.to_json()))) == history


def test_jumped_samples_belong_to_no_step() -> None:
    history = planned().jump(2, 12, "loss spike")
    assert [history.first_sample(step) for step in (1, 2, 3)] == [4, 20, 24]
    assert history.tokens(3) == planned().tokens(3)
    assert [segment.from_step for segment in history.segments] == [0, 4, 7], "the plan goes by tokens"


def test_weights_hold_until_the_plan_has_others() -> None:
    history = planned().set_weights(2, {"b": 1})
    assert [history.settings(step).weights for step in (1, 2, 3, 4)] == [{"a": 3, "b": 1}, {"b": 1}, {"b": 1}, {"a": 1}]
    assert history.set_weights(2, {"a": 3, "b": 1}) == planned(), "what says nothing new leaves no trace"


def test_an_equal_plan_changes_nothing_and_another_one_only_what_comes() -> None:
    history = planned().set_weights(2, {"b": 1}).jump(1, 3)
    assert history.replan(3, PLAN, TEXTS) == history
    other = [Stage(0, Settings({"a": 1, "c": 1}, 8, 2)), Stage(200, Settings({"c": 1}, 8, 2))]
    changed = history.replan(3, other, TEXTS | {"c": CorpusRecord(50, 1)})
    assert walk(changed, 3) == walk(history, 3) and changed.domains == ("a", "b", "c")
    # 96 tokens are done at step 3, and 16 a step follow: the next stage begins with step 3 + ceil(104 / 16).
    assert [segment.from_step for segment in changed.segments] == [0, 2, 3, 10]


@pytest.mark.parametrize(
    "plan", [[], PLAN[1:], [PLAN[0], PLAN[0]], [PLAN[0], PLAN[2], PLAN[1]]], ids=["none", "late", "twice", "unordered"]
)
def test_stages_out_of_order_are_refused(plan: list[Stage]) -> None:
    with pytest.raises(DataError, match="the stages of a plan begin at token 0"):
        History.begin(0, plan, TEXTS)


def test_weights_that_were_set_stay_where_the_plan_changes_otherwise() -> None:
    steered = planned().set_weights(2, {"a": 1, "b": 1})
    plan = [replace(stage, settings=replace(stage.settings, global_rows=8)) for stage in PLAN]
    assert steered.replan(3, plan, TEXTS).settings(3) == Settings({"a": 1, "b": 1}, 8, 8)
    assert steered.replan(3, plan, TEXTS).settings(9) == plan[2].settings
    assert steered.replan(3, PLAN, TEXTS, anew=True).settings(3) == PLAN[0].settings


def test_histories_part_where_one_has_an_event_twice() -> None:
    once = planned().jump(2, 3, "a spike")
    assert once.parting(planned().jump(2, 3, "a spike")) is None
    assert once.parting(once.jump(2, 3, "a spike")) == 2
    assert once.set_weights(5, {"a": 2}).parting(once.jump(6, 1)) == 5


def test_a_weight_without_text_is_refused() -> None:
    with pytest.raises(DataError, match="domain c: the mixture has a domain without tokens"):
        planned().set_weights(1, {"c": 1})


@pytest.mark.parametrize("jump", [(0, 0), (-1, 5), (3, -2)])
def test_a_jump_over_nothing_is_refused(jump: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="a jump passes over samples"):
        planned().jump(*jump)


STORED: dict[str, Any] = planned().to_json()


@pytest.mark.parametrize(
    "stored, said",
    [
        ({}, "not a stored data history"),
        (STORED | {"format": 0}, "unknown format"),
        (STORED | {"segments": STORED["segments"][1:]}, "does not begin at step 0"),
        (STORED | {"segments": [{"from_step": 0}]}, "not a stored data history"),
        (STORED | {"jumps": [{"at": 3}]}, "not a stored data history"),
        (STORED | {"corpora": []}, "domain a"),
    ],
)
def test_what_is_no_history_is_refused(stored: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        History.from_json(stored)


def test_a_corpus_grows_by_shards_alone() -> None:
    whole = CorpusRecord(1000, 10, shards=("one",))
    assert whole.grows_to(CorpusRecord(1500, 15, shards=("one", "two")))
    part = CorpusRecord(1500, 15, shards=("one", "two"), subset="some of them")
    assert not whole.grows_to(part)
    assert not part.grows_to(CorpusRecord(2000, 20, shards=("one", "two", "three"), subset="others"))
