"""Learning-rate schedules: formulas at known points, and what must hold at any setting."""

import dataclasses
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacpt.errors import RecipeError
from megacpt.optim.schedule import WSD, Chain, Constant, Cosine, InfiniteCosine, InfiniteInverseSqrt, Schedule

PEAK = 3e-5


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    peak = draw(st.floats(1e-6, 1e-2))
    lengths = [draw(st.integers(minimum, 10**9)) for minimum in (0, 1, 1)]
    end_tokens = sum(lengths) + draw(st.integers(0, 10**12))
    common: dict[str, Any] = {"peak": peak, "warmup_tokens": lengths[0], "end_tokens": end_tokens}
    minimum = peak * draw(st.floats(0, 1))
    constant = peak * draw(st.floats(0.01, 1))
    infinite: dict[str, Any] = {
        "constant": constant,
        "cooldown_tokens": lengths[1],
        "anneal_tokens": lengths[2],
        "minimum": constant * draw(st.floats(1e-3, 1)),
    }
    shape: Literal["linear", "one_minus_sqrt"] = draw(st.sampled_from(["linear", "one_minus_sqrt"]))
    return draw(
        st.sampled_from(
            [
                Constant(**common),
                Cosine(**common, minimum=minimum),
                WSD(**common, minimum=minimum, decay_tokens=lengths[1], decay_shape=shape),
                InfiniteCosine(**common, **infinite),
                InfiniteInverseSqrt(**common, **infinite),
            ]
        )
    )


@given(schedules())
def test_every_milestone_is_met_exactly(schedule: Schedule) -> None:
    for tokens, learning_rate, _ in schedule.milestones():
        assert schedule(tokens) == learning_rate


@given(schedules())
def test_the_milestones_cover_the_run_in_order(schedule: Schedule) -> None:
    tokens = [milestone.tokens for milestone in schedule.milestones()]
    assert tokens[0] == 0
    assert tokens[-1] == schedule.end_tokens
    assert all(before < after for before, after in itertools.pairwise(tokens))


@given(schedules())
def test_every_phase_starts_at_the_rate_where_the_one_before_it_ended(schedule: Schedule) -> None:
    tolerance = 1e-12 * schedule.peak
    for before, phase in itertools.pairwise(schedule._phases()):
        assert phase.shape(before.rate, phase.rate, 0.0) == pytest.approx(before.rate, abs=tolerance)
        assert phase.shape(before.rate, phase.rate, 1.0) == phase.rate


@given(schedules(), st.lists(st.floats(0, 1.2), min_size=2, max_size=8))
def test_a_schedule_rises_through_the_warmup_and_never_after_it(schedule: Schedule, fractions: list[float]) -> None:
    tokens = sorted(int(fraction * schedule.end_tokens) for fraction in fractions)
    tolerance = 1e-12 * schedule.peak
    for before, after in itertools.pairwise(tokens):
        if after <= schedule.warmup_tokens:
            assert schedule(before) <= schedule(after)
        elif before >= schedule.warmup_tokens:
            assert schedule(after) <= schedule(before) + tolerance


@given(schedules(), st.floats(0, 1))
def test_the_warmup_is_linear(schedule: Schedule, fraction: float) -> None:
    tokens = int(fraction * schedule.warmup_tokens)
    if tokens < schedule.warmup_tokens:
        assert schedule(tokens) == pytest.approx(schedule.peak * tokens / schedule.warmup_tokens, rel=1e-12)


@given(schedules(), st.integers(0, 10**13))
def test_the_rate_depends_on_the_tokens_alone(schedule: Schedule, tokens: int) -> None:
    expected = dataclasses.replace(schedule)(tokens)
    schedule(tokens // 2)
    assert schedule(tokens) == expected
    if tokens >= schedule.end_tokens:
        assert expected == schedule(schedule.end_tokens)


def test_cosine_ends_at_its_minimum_with_a_warmup_in_front() -> None:
    schedule = Cosine(peak=PEAK, minimum=PEAK / 10, warmup_tokens=200, end_tokens=20_000)
    assert schedule(0) == 0
    assert schedule(200) == PEAK
    assert schedule(20_000) == PEAK / 10
    assert schedule(10_100) == pytest.approx((PEAK + PEAK / 10) / 2)
    quarter = 200 + (20_000 - 200) // 4
    assert schedule(quarter) == pytest.approx(PEAK / 10 + 0.9 * PEAK / 2 * (1 + math.cos(math.pi / 4)))


def test_wsd_decays_only_at_the_end() -> None:
    linear = WSD(peak=PEAK, minimum=0.0, warmup_tokens=100, decay_tokens=1_000, end_tokens=10_000)
    assert linear(100) == linear(5_000) == linear(9_000) == PEAK
    assert linear(9_250) == pytest.approx(0.75 * PEAK)
    assert linear(10_000) == 0.0
    root = dataclasses.replace(linear, decay_shape="one_minus_sqrt", minimum=PEAK / 3)
    assert root(9_250) == pytest.approx(PEAK * (1 - 0.5) + PEAK / 3 * 0.5)
    assert root(10_000) == PEAK / 3


def test_constant_holds_its_peak() -> None:
    schedule = Constant(peak=PEAK, warmup_tokens=10, end_tokens=100)
    assert [schedule(tokens) for tokens in (5, 10, 99, 100)] == [PEAK / 2, PEAK, PEAK, PEAK]
    assert Constant(peak=PEAK, end_tokens=100)(0) == PEAK


def test_an_infinite_schedule_anneals_over_its_own_length() -> None:
    """The exponent is (n - d) / (e - d): other forms in circulation do not reach the minimum at the end."""
    schedule = InfiniteCosine(
        peak=3e-4,
        constant=1.6e-4,
        minimum=1e-5,
        warmup_tokens=100,
        cooldown_tokens=600,
        anneal_tokens=200,
        end_tokens=1_000,
    )
    assert schedule(400) == pytest.approx((3e-4 + 1.6e-4) / 2)
    assert schedule(700) == schedule(750) == schedule(800) == 1.6e-4
    assert schedule(900) == pytest.approx(math.sqrt(1.6e-4 * 1e-5))
    assert schedule(1_000) == 1e-5
    assert [milestone.name for milestone in schedule.milestones()] == [
        "start",
        "warm-up ends",
        "cooldown ends",
        "constant ends",
        "anneal ends",
    ]


def test_an_infinite_schedule_without_an_anneal_stays_constant() -> None:
    schedule = InfiniteInverseSqrt(peak=3e-4, constant=1e-4, cooldown_tokens=100, end_tokens=1_000)
    assert schedule(1_000) == schedule(10**15) == 1e-4
    half = (1 / math.sqrt(6) - 1) / (1 / math.sqrt(11) - 1)
    assert schedule(50) == pytest.approx(3e-4 - 2e-4 * half)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Cosine(peak=1e-5, minimum=0.0, warmup_tokens=11, end_tokens=10), "do not fit"),
        (lambda: Constant(peak=1e-5, warmup_tokens=11, end_tokens=10), "warm-up 11 tokens"),
        (lambda: WSD(peak=1e-5, minimum=0.0, warmup_tokens=5, decay_tokens=6, end_tokens=10), "do not fit"),
        (lambda: Cosine(peak=1e-5, minimum=0.0, warmup_tokens=10, end_tokens=10), "cosine 0 tokens"),
        (lambda: WSD(peak=1e-5, minimum=0.0, decay_tokens=0, end_tokens=10), "at least 1 token"),
        (lambda: Cosine(peak=1e-5, minimum=2e-5, end_tokens=10), "expected 0 to 1e-05"),
        (lambda: Constant(peak=0.0, end_tokens=10), "above 0"),
        (lambda: InfiniteCosine(peak=1e-5, constant=1e-6, cooldown_tokens=2, anneal_tokens=2, end_tokens=9), "lr.min"),
        (lambda: InfiniteCosine(peak=1e-5, constant=2e-5, cooldown_tokens=2, end_tokens=9), "cooldown"),
        (
            lambda: InfiniteInverseSqrt(peak=1e-5, constant=1e-6, cooldown_tokens=2, end_tokens=9, steepness=0.0),
            "steepness",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(make: Callable[[], Schedule], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        make()


def test_schedules_need_no_torch() -> None:
    code = "import sys, megacpt.optim.schedule; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_chain_s_schedules_count_from_where_they_begin() -> None:
    first, second = Cosine(peak=2.0, end_tokens=100, minimum=1.0), Cosine(peak=8.0, end_tokens=50, minimum=4.0)
    chain = Chain(((0, first), (100, second)))
    assert [chain(tokens) for tokens in (0, 50, 100)] == [first(0), first(50), 1.0]
    assert [chain(tokens) for tokens in (101, 125, 150, 999)] == [second(1), second(25), 4.0, 4.0]
    assert [(bend.tokens, bend.learning_rate) for bend in chain.milestones()] == [(0, 2), (100, 1), (100, 8), (150, 4)]
