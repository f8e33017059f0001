"""What all controllers share: shares that sum to 1 and that the stream can serve."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megacpt.continual.controllers.controller import (
    SMALLEST_SHARE,
    Observation,
    base_losses,
    bounded,
    normalised,
    softmax,
)
from megacpt.data.mixture import Mixture


@example([(1.0, 0.0), (1e-5, 0.0)], 1.0)
@given(st.lists(st.tuples(st.floats(1e-12, 1.0), st.floats(0, 1.5)), min_size=1, max_size=8), st.floats(0, 1))
def test_bounds_are_kept_and_what_is_free_keeps_its_proportions(
    domains: list[tuple[float, float]], part: float
) -> None:
    floor = part / len(domains)
    shares = normalised({f"d{i}": weight for i, (weight, _) in enumerate(domains)})
    ceilings = {f"d{i}": ceiling for i, (_, ceiling) in enumerate(domains)}
    kept = bounded(shares, floor, ceilings)
    Mixture(kept)  # the stream can serve it
    assert sum(kept.values()) == pytest.approx(1)
    able = [name for name in shares if floor >= SMALLEST_SHARE or shares[name] >= SMALLEST_SHARE]
    if sum(min(ceilings[name], 1) for name in able if ceilings[name] >= SMALLEST_SHARE) > 1.001:
        assert all(share <= ceilings[name] * (1 + 1e-6) for name, share in kept.items())
        assert all(share >= min(floor, ceilings[name]) * (1 - 1e-6) - SMALLEST_SHARE for name, share in kept.items())
        free = [name for name, share in kept.items() if floor * 1.001 < share < ceilings[name] * 0.999]
        ratios = [kept[name] / shares[name] for name in free]
        assert ratios == pytest.approx(ratios[:1] * len(ratios), rel=1e-4)


def test_shares_within_their_bounds_stay_exactly() -> None:
    shares = {"a": 0.7, "b": 0.3}
    assert bounded(shares, 0.1, {"a": 0.8}) == shares
    assert bounded(shares, 0.1, {"a": 0.4}) == pytest.approx({"a": 0.4, "b": 0.6})
    assert bounded(shares, 0.1, {"a": 0.4, "b": 0.4}) == pytest.approx({"a": 0.5, "b": 0.5})
    assert bounded(shares, 0.1, {"a": 1e-9}) == {"a": 0.0, "b": 1.0}, "what is read up is left out, whatever the floor"


def test_floors_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 shares"):
        bounded({"a": 0.5, "b": 0.3, "c": 0.2}, 0.4, {})


def test_softmax_survives_large_logits() -> None:
    assert softmax({"a": 1000.0, "b": 1000.0, "c": float("-inf")}) == {"a": 0.5, "b": 0.5, "c": 0.0}


def test_the_base_loss_of_a_domain_that_joins_later_is_its_first() -> None:
    observations = [Observation(0, 0, {"a": 2.0}, {"a": 1.0}), Observation(5, 50, {"a": 3.0, "b": 4.0}, {"a": 1.0})]
    assert base_losses(observations) == {"a": 2.0, "b": 4.0}


def test_an_observation_survives_json_exactly() -> None:
    observation = Observation(3, 4096, {"a": 2.1 / 3}, {"a": 0.1 + 0.2})
    assert Observation.from_json(json.loads(json.dumps(observation.to_json()))) == observation


def test_what_ceilings_leave_over_goes_to_shares_that_a_floor_alone_keeps() -> None:
    assert bounded({"new": 1.0, "old": 0.0}, 0.02, {"new": 0.6}) == pytest.approx({"new": 0.6, "old": 0.4})
    assert bounded({"new": 1.0, "old": 1e-40, "law": 0.0}, 0.02, {"new": 0.6}) == pytest.approx(
        {"new": 0.6, "old": 0.2, "law": 0.2}
    )
