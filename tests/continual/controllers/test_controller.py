"""What all controllers share: shares that sum to 1 and that the stream can serve."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacpt.continual.controllers.controller import (
    SMALLEST_SHARE,
    Observation,
    at_least,
    base_losses,
    normalised,
    softmax,
)
from megacpt.data.mixture import Mixture


@given(st.lists(st.floats(1e-12, 1.0), min_size=1, max_size=8), st.floats(0, 1))
def test_a_floor_is_kept_and_the_others_keep_their_proportions(weights: list[float], part: float) -> None:
    floor = part / len(weights)
    shares = normalised({f"d{i}": weight for i, weight in enumerate(weights)})
    raised = at_least(shares, floor)
    assert sum(raised.values()) == pytest.approx(1)
    if floor < SMALLEST_SHARE:
        assert all(share == 0 or share >= SMALLEST_SHARE for share in raised.values())
    else:
        assert min(raised.values()) >= floor * (1 - 1e-9)
        free = [name for name, share in raised.items() if share > floor * (1 + 1e-9)]
        ratios = [raised[name] / shares[name] for name in free]
        assert ratios == pytest.approx([ratios[0]] * len(ratios)) if ratios else True
    Mixture(raised)  # the stream can serve it


def test_floors_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 shares"):
        at_least({"a": 0.5, "b": 0.3, "c": 0.2}, 0.4)


def test_softmax_survives_large_logits() -> None:
    assert softmax({"a": 1000.0, "b": 1000.0, "c": float("-inf")}) == {"a": 0.5, "b": 0.5, "c": 0.0}


def test_the_base_loss_of_a_domain_that_joins_later_is_its_first() -> None:
    observations = [Observation(0, 0, {"a": 2.0}, {"a": 1.0}), Observation(5, 50, {"a": 3.0, "b": 4.0}, {"a": 1.0})]
    assert base_losses(observations) == {"a": 2.0, "b": 4.0}


def test_an_observation_survives_json_exactly() -> None:
    observation = Observation(3, 4096, {"a": 2.1 / 3}, {"a": 0.1 + 0.2})
    assert Observation.from_json(json.loads(json.dumps(observation.to_json()))) == observation
