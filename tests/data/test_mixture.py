from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megacpt.data.mixture import MAX_SAMPLES, Mixture, fixed_point_shares
from megacpt.errors import DataError

# Also shares of one sample in tens of thousands: what is rarer than a block of others has is what quotas get wrong.
weights_of_domains = st.dictionaries(
    st.sampled_from("abcdefgh"), st.one_of(st.integers(1, 20), st.sampled_from([500, 5000])), min_size=1
)
seeds = st.integers(0, 2**32)
histories = st.lists(
    st.tuples(st.integers(0, 400), st.dictionaries(st.sampled_from("abcde"), st.integers(1, 30), min_size=1)),
    min_size=1,
    max_size=6,
)


def mixture_of(history: list[tuple[int, dict[str, int]]], seed: int = 0) -> tuple[Mixture, int]:
    """A mixture that keeps each of the weights for the number of samples beside it; and how many these are."""
    mixture, num_samples = Mixture(history[0][1], seed), history[0][0]
    for stretch, weights in history[1:]:
        mixture, num_samples = mixture.append(num_samples, weights), num_samples + stretch
    return mixture, num_samples


def names_of(mixture: Mixture, num_samples: int) -> list[str]:
    return [mixture.names[domain] for domain in mixture.locate(np.arange(num_samples))[0]]


@given(weights=weights_of_domains, seed=seeds, first_block=st.integers(0, 2**23))
@example(weights={"a": 16, "b": 7, "c": 7, "d": 11, "e": 11}, seed=0, first_block=0)  # -1 in blocks half as long
def test_at_every_block_edge_counts_are_within_one_sample_of_the_shares(
    weights: dict[str, int], seed: int, first_block: int
) -> None:
    mixture, shares = Mixture(weights, seed), fixed_point_shares(weights)
    previous = None
    for block in range(first_block, first_block + 50):
        num_samples = block * mixture.block_samples
        counts = mixture.counts(num_samples)
        assert counts.sum() == num_samples
        for name, count in zip(mixture.names, counts.tolist(), strict=True):
            assert abs(count - Fraction(shares[name], 2**40) * num_samples) < 1
        if previous is not None:
            assert (counts >= previous).all(), "a block took samples away from a domain"
        previous = counts


@given(history=histories, seed=seeds)
def test_ordinals_count_each_domains_samples_without_gap_or_repeat(
    history: list[tuple[int, dict[str, int]]], seed: int
) -> None:
    mixture, num_samples = mixture_of(history, seed)
    domains, ordinals = mixture.locate(np.arange(num_samples))
    handed_out: Counter[str] = Counter()
    start, last = 0, history[-1]
    for stretch, weights in [*history[:-1], last]:
        for sample in range(start, start + stretch):
            name = mixture.names[domains[sample]]
            assert name in weights
            assert ordinals[sample] == handed_out[name]
            handed_out[name] += 1
        start += stretch
        counts = mixture.counts(start)
        assert {name: count for name, count in zip(mixture.names, counts.tolist(), strict=True) if count} == handed_out


@given(history=histories, seed=seeds, samples=st.lists(st.integers(0, 3000), max_size=50))
def test_a_sample_does_not_depend_on_what_else_is_asked(
    history: list[tuple[int, dict[str, int]]], seed: int, samples: list[int]
) -> None:
    mixture, _ = mixture_of(history, seed)
    for of_all, of_some in zip(mixture.locate(np.arange(3001)), mixture.locate(samples), strict=True):
        assert np.array_equal(of_all[samples], of_some)


@pytest.mark.parametrize("far", [10**9, 10**12, MAX_SAMPLES - 100])
def test_far_samples_continue_the_counts_before_them(far: int) -> None:
    mixture = Mixture({"a": 0.7, "b": 0.2, "c": 0.0999, "rare": 0.0001})
    domains, ordinals = mixture.locate(np.arange(far, far + 100))
    counts = mixture.counts(far)
    for domain, ordinal in zip(domains, ordinals, strict=True):
        assert ordinal == counts[domain]
        counts[domain] += 1
    assert np.array_equal(counts, mixture.counts(far + 100))


def test_a_single_domain_gives_every_sample() -> None:
    domains, ordinals = Mixture({"only": 3.0}).locate([0, 1, 2, 10**12])
    assert domains.tolist() == [0, 0, 0, 0]
    assert ordinals.tolist() == [0, 1, 2, 10**12]


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 0.7, "b": 0.3},
        {"a": 0.7, "b": 0.2, "c": 0.099, "rare": 0.001},
        {f"d{i}": 1.0 for i in range(30)} | {"rare": 0.001},
    ],
)
def test_shares_hold_between_the_edges_of_blocks_too(weights: dict[str, float]) -> None:
    mixture = Mixture(weights)
    num_samples = 3 * max(mixture.block_samples, 1000) + 7
    domains, _ = mixture.locate(np.arange(num_samples))
    shares = np.array([weights[name] / sum(weights.values()) for name in mixture.names])
    counts = np.cumsum(domains[:, None] == np.arange(len(shares)), axis=0)
    excess = counts - np.arange(1, num_samples + 1)[:, None] * shares
    assert np.abs(excess).max() < 3  # drawn by lot, the standard deviation alone would be 25 for a share of 0.7


def test_a_global_batch_of_whole_blocks_has_exact_shares() -> None:
    mixture = Mixture({"a": 5, "b": 2, "c": 1})
    assert mixture.block_samples == 8
    domains, _ = mixture.locate(np.arange(800).reshape(50, 16))
    assert all(np.bincount(batch).tolist() == [10, 4, 2] for batch in domains)


def test_the_order_inside_blocks_varies_from_block_to_block_and_with_the_seed() -> None:
    blocks = Mixture({"a": 6, "b": 2}, seed=1).locate(np.arange(8000).reshape(-1, 8))[0]
    places_of_b = np.bincount(np.nonzero(blocks)[1], minlength=8)
    assert places_of_b.sum() == 2000
    assert places_of_b.min() > 0, "a domain never comes at some place: some rank might never see it"
    assert len(np.unique(blocks, axis=0)) > 10
    assert names_of(Mixture({"a": 6, "b": 2}, seed=1), 100) != names_of(Mixture({"a": 6, "b": 2}, seed=2), 100)


@given(weights=weights_of_domains, seed=seeds)
def test_neither_the_unit_nor_the_order_of_the_weights_matters(weights: dict[str, int], seed: int) -> None:
    turned_round = {name: weight / 8 for name, weight in reversed(weights.items())}
    assert names_of(Mixture(weights, seed), 300) == names_of(Mixture(turned_round, seed), 300)
    assert Mixture(weights, seed).fingerprint == Mixture(turned_round, seed).fingerprint


@given(history=histories, seed=seeds, weights=weights_of_domains)
def test_a_change_leaves_the_samples_before_it_alone(
    history: list[tuple[int, dict[str, int]]], seed: int, weights: dict[str, int]
) -> None:
    mixture, num_samples = mixture_of(history, seed)
    changed = mixture.append(num_samples, weights)
    assert names_of(changed, num_samples) == names_of(mixture, num_samples)
    assert changed.names[: len(mixture.names)] == mixture.names or num_samples == mixture.history[-1][0]
    assert {changed.names[i] for i in changed.locate(np.arange(num_samples, num_samples + 500))[0]} <= weights.keys()


def test_a_domain_that_comes_back_continues() -> None:
    mixture = Mixture({"a": 1, "b": 1}).append(10, {"a": 1}).append(20, {"c": 1, "b": 1})
    assert mixture.names == ("a", "b", "c")
    domains, ordinals = mixture.locate(np.arange(30))
    assert ordinals[domains == 1].tolist() == list(range(10))
    assert set(domains[10:20]) == {0} and set(domains[20:]) == {1, 2}


@pytest.mark.parametrize("share", [0.1, 0.3])  # of 4 samples: part of a block, and a block of 1.2 samples
def test_many_changes_do_not_add_up_to_a_drift(share: float) -> None:
    mixture = Mixture({"a": share, "b": 1 - share})
    for change in range(1, 400):
        mixture = mixture.append(4 * change, {"a": share, "b": 1 - share + 1e-6 * (change % 2)})
    assert mixture.counts(1600)[0] == pytest.approx(1600 * share, abs=45)  # drawn by lot, 45 is over 2.5 deviations


def test_weights_already_in_force_change_nothing() -> None:
    mixture = Mixture({"a": 0.8, "b": 0.2})
    assert mixture.append(100, {"b": 1, "a": 4, "absent": 0}).history == mixture.history
    assert mixture.append(100, {"a": 1}).append(100, {"a": 4, "b": 1}).history == mixture.history


def test_weights_that_gave_no_sample_leave_no_trace() -> None:
    mixture = Mixture({"a": 1, "mistake": 1}).append(0, {"a": 1, "b": 1})
    assert mixture.names == ("a", "b")
    assert mixture.fingerprint == Mixture({"a": 1, "b": 1}).fingerprint


@given(history=histories, seed=seeds)
def test_a_mixture_survives_storage(history: list[tuple[int, dict[str, int]]], seed: int) -> None:
    mixture, _ = mixture_of(history, seed)
    restored = Mixture.from_json(json.loads(json.dumps(mixture.to_json())))
    assert restored.names == mixture.names
    assert restored.history == mixture.history
    assert restored.fingerprint == mixture.fingerprint
    for one, other in zip(mixture.locate(np.arange(3000)), restored.locate(np.arange(3000)), strict=True):
        assert np.array_equal(one, other)


def test_the_fingerprint_tells_histories_and_seeds_apart() -> None:
    mixture = Mixture({"a": 1, "b": 1})
    others = [Mixture({"a": 1, "b": 1}, seed=1), Mixture({"a": 1, "b": 2}), Mixture({"a": 1, "c": 1})]
    changes = [mixture.append(8, {"a": 1}), mixture.append(9, {"a": 1})]
    assert len({m.fingerprint for m in [mixture, *others, *changes]}) == 6


def test_target_shares_are_those_of_the_history() -> None:
    mixture = Mixture({"a": 3, "b": 1}).append(100, {"b": 1, "c": 1})
    assert mixture.target_shares(100) == pytest.approx([0.75, 0.25, 0])
    assert mixture.target_shares(400) == pytest.approx([75 / 400, (25 + 150) / 400, 150 / 400])


def test_the_stream_of_domains_is_the_same_on_every_machine_and_in_every_release() -> None:
    mixture = Mixture({"general": 0.2, "medical": 0.8}, seed=7).append(12, {"general": 1, "code": 1})
    assert "".join(name[0] for name in names_of(mixture, 24)) == "mmgmmgmmmmmgcggccggcgcgc"


@given(weights=st.dictionaries(st.text(max_size=3), st.floats(0.01, 1), min_size=1, max_size=50))
def test_shares_are_the_nearest_that_sum_to_one(weights: dict[str, float]) -> None:
    shares = fixed_point_shares(weights)
    total = sum(map(Fraction, weights.values()))
    assert sum(shares.values()) == 2**40
    assert all(abs(share - Fraction(weights[name]) / total * 2**40) < 1 for name, share in shares.items())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0, "b": -0.5}, "domain b: a mixture's weight must be a finite number >= 0"),
        ({"a": float("nan")}, "domain a: a mixture's weight must be"),
        ({"a": float("inf")}, "domain a: a mixture's weight must be"),
        ({"a": 0.0}, "needs a domain with a positive weight"),
        ({}, "needs a domain with a positive weight"),
        ({"a": 1.0, "b": 1e-5}, "domain b: the domain's share of the mixture is too small"),
    ],
)
def test_impossible_weights_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Mixture(weights)


def test_the_past_cannot_be_changed() -> None:
    mixture = Mixture({"a": 1}).append(100, {"b": 1})
    with pytest.raises(DataError, match="found a change at sample 99, expected sample 100 or later"):
        mixture.append(99, {"a": 1})


@pytest.mark.parametrize("sample", [-1, MAX_SAMPLES])
def test_a_sample_that_does_not_exist_is_refused(sample: int) -> None:
    with pytest.raises(ValueError, match="do not lie in"):
        Mixture({"a": 1}).locate([0, sample])


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"format": 2, "seed": 0, "segments": []},
        {"format": 1, "seed": 0, "segments": []},
        {"format": 1, "seed": 0, "segments": [{"from_sample": 0, "weights": {"a": "much"}}]},
        {"format": 1, "seed": 0, "segments": [{"from_sample": 5, "weights": {"a": 1}}]},
        {"format": 1, "seed": 0, "segments": [{"from_sample": 0, "weights": [1, 2]}]},
        {"format": 1, "seed": None, "segments": [{"from_sample": 0, "weights": {"a": 1}}]},
    ],
)
def test_what_is_no_mixture_is_refused(stored: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="stored mixture"):
        Mixture.from_json(stored)
