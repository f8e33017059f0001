"""Steering: who decides, when, what is kept, and that a run that was taken back decides anew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest

from megacpt.continual.controllers.controller import Controller, Observation, base_losses
from megacpt.data.history import History, Settings, Stage
from megacpt.data.loader import Loader
from megacpt.observe.record import DomainEvaluation, EvaluationRecord
from megacpt.trainer.steering import Steering
from tests.data.memory_corpus import MemoryCorpus, stream_of


class FollowLosses(Controller):
    """Shares in proportion to the present losses."""

    def weights(self, observations: Sequence[Observation], planned: Mapping[str, float]) -> dict[str, float]:
        return dict(observations[-1].losses)


def record(step: int, new: float, old: float) -> EvaluationRecord:
    losses = {"new": new, "old": old, "anchor": 9.0}
    return EvaluationRecord(step, step * 64, {name: DomainEvaluation(loss, None, 10) for name, loss in losses.items()})


@pytest.fixture
def loader() -> Loader:
    corpora = {name: MemoryCorpus([5] * 40) for name in ("new", "old")}
    return Loader(stream_of(corpora, {"new": 3, "old": 1}, 16, 4), prefetch_steps=0)


def steering(loader: Loader, observations: Sequence[Observation] = ()) -> Steering:
    return Steering(
        FollowLosses(),
        loader,
        every_steps=2,
        floor=0.0,
        broadcast=list,
        observations=observations,
    )


def test_decides_at_its_steps_only_and_for_the_next_step(loader: Loader) -> None:
    steer = steering(loader)
    steer(record(0, 1.0, 1.0))
    steer(record(1, 9.0, 1.0))
    assert loader.stream.history.shares(1) == {"new": 0.5, "old": 0.5}
    steer(record(2, 1.0, 3.0))
    assert [loader.new_shares(step) for step in range(4)] == [
        {"new": 0.5, "old": 0.5},
        None,
        {"new": 0.25, "old": 0.75},
        None,
    ]
    assert [o["losses"] for o in steer.state(2)] == [{"new": 1.0, "old": 1.0}, {"new": 1.0, "old": 3.0}]
    assert [o["weights"] for o in steer.state(2)] == [{"new": 0.75, "old": 0.25}, {"new": 0.5, "old": 0.5}]


def test_a_domain_that_joins_in_a_later_stage_is_compared_with_the_base_model() -> None:
    plan = (Stage(0, Settings({"new": 1.0}, 16, 4)), Stage(128, Settings({"new": 1.0, "old": 1.0}, 16, 4)))
    corpora = {name: MemoryCorpus([5] * 40) for name in ("new", "old")}
    rows = stream_of(corpora, {"new": 3, "old": 1}, 16, 4)
    records = {name: rows.history.latest_corpus(name) for name in corpora}
    history = History.begin(0, plan, {name: record for name, record in records.items() if record})
    steer = steering(Loader(rows.with_history(history), prefetch_steps=0))
    for step, old in ((0, 1.0), (2, 3.0)):
        steer(record(step, 1.0, old))
    seen = [Observation.from_json(observation) for observation in steer.state(2)]
    assert base_losses(seen) == {"new": 1.0, "old": 1.0} and seen[-1].losses["old"] == 3.0


def test_every_rank_takes_rank_0_s_numbers(loader: Loader) -> None:
    said = iter([[1.0, 3.0], [0.125, 0.875]])
    steer = Steering(FollowLosses(), loader, every_steps=1, floor=0.0, broadcast=lambda numbers: next(said))
    steer(record(0, 5.0, 5.0))
    assert steer.state(0)[0]["losses"] == {"new": 1.0, "old": 3.0}
    assert loader.stream.history.shares(0) == {"new": 0.125, "old": 0.875}


def test_no_domain_gets_more_than_its_text_allows(loader: Loader) -> None:
    ceilings = {0: {}, 2: {"old": 0.6}}
    steer = Steering(
        FollowLosses(), loader, every_steps=2, floor=0.0, broadcast=list, ceilings=lambda step: ceilings[step]
    )
    for step in (0, 2):
        steer(record(step, 1.0, 3.0))
    assert loader.stream.history.shares(1)["old"] == 0.75
    assert loader.stream.history.shares(2)["old"] == pytest.approx(0.6)


def test_a_loss_that_is_not_finite_changes_nothing(loader: Loader) -> None:
    steer = steering(loader)
    steer(record(0, math.nan, 1.0))
    assert steer.state(0) == [] and loader.stream.history.shares(0) == {"new": 0.75, "old": 0.25}


def test_a_run_that_was_taken_back_forgets_what_it_saw_since(loader: Loader) -> None:
    steer = steering(loader)
    for step in (0, 2, 4):
        steer(record(step, 1.0, 1.0 + step))
    assert [o["step"] for o in steer.state(3)] == [0, 2]
    steer.rewind(3)
    assert [o["step"] for o in steer.state(9)] == [0, 2]


def test_a_run_that_was_taken_back_takes_a_decision_that_the_checkpoint_lacks(loader: Loader) -> None:
    """An evaluation that was interrupted by a stop is made up after the resume, so the checkpoint is from before it."""
    steer = steering(loader)
    steer(record(0, 1.0, 1.0))
    before, decided = loader.stream.history, {"new": 0.25, "old": 0.75}
    for step in (2, 4):
        steer(record(step, 1.0, 1.0 + step))
    loader.change(before, 2)
    steer.rewind(2)
    assert [loader.stream.history.shares(step) for step in (1, 2, 5)] == [{"new": 0.5, "old": 0.5}, decided, decided]


def test_an_evaluation_that_is_made_again_changes_nothing(loader: Loader) -> None:
    first = steering(loader)
    first(record(0, 1.0, 3.0))
    again = steering(loader, [Observation.from_json(observation) for observation in first.state(0)])
    again(record(0, 1.0, 3.0))
    assert again.state(0) == first.state(0)


def test_goes_on_with_what_the_checkpoint_kept(loader: Loader) -> None:
    first = steering(loader)
    first(record(0, 1.0, 2.0))
    stored = [Observation.from_json(observation) for observation in first.state(0)]
    again = steering(loader, stored)
    again(record(2, 1.0, 2.0))
    assert len(again.state(2)) == 2
