"""At which steps a run is evaluated."""

from __future__ import annotations

from megacpt.evaluate.occasions import Occasions


def steps(occasions: Occasions, last: int) -> list[int]:
    return [step for step in range(1, last + 1) if step in occasions]


def test_dense_first_and_even_then() -> None:
    assert steps(Occasions(10), 35) == [1, 2, 4, 8, 10, 20, 30]
    assert steps(Occasions(10, dense_start=False), 35) == [10, 20, 30]
    assert steps(Occasions(1), 4) == [1, 2, 3, 4]


def test_each_stage_begins_densely_and_is_evaluated_at_its_end() -> None:
    assert steps(Occasions(10, beginnings=(0, 25)), 40) == [1, 2, 4, 8, 10, 20, 25, 26, 27, 29, 30, 33, 40]


def test_never_on_the_way() -> None:
    assert steps(Occasions(None), 40) == []


def test_every_decision_of_a_controller_needs_an_evaluation() -> None:
    alone = Occasions(None, decisions_every_steps=3)
    assert [step for step in range(8) if step in alone] == [0, 3, 6]
    beside = Occasions(4, dense_start=False, decisions_every_steps=3)
    assert [step for step in range(9) if step in beside] == [0, 3, 4, 6, 8]
