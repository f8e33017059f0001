"""The learning rate of a recipe: every kind of schedule gets its own numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacpt.assemble.schedule import rate_jump, schedule
from megacpt.errors import RecipeError
from megacpt.optim.schedule import WSD, Constant, Cosine, InfiniteCosine, InfiniteInverseSqrt, Schedule
from tests.assemble.recipes import resolved

TOKENS = 12_800  # 100 steps of 128 tokens
INFINITE = {"constant": "4e-4", "cooldown": "20%", "anneal": "10%", "min": "1e-5"}
CASES: list[tuple[str, dict[str, str], Schedule]] = [
    ("constant", {"warmup": "5%"}, Constant(peak=1e-3, warmup_tokens=640, end_tokens=TOKENS)),
    ("cosine", {"warmup": "5%"}, Cosine(peak=1e-3, warmup_tokens=640, end_tokens=TOKENS, minimum=1e-4)),
    ("cosine", {"warmup": "0%", "min": "0"}, Cosine(peak=1e-3, warmup_tokens=0, end_tokens=TOKENS, minimum=0.0)),
    (
        "wsd",
        {},
        WSD(
            peak=1e-3,
            warmup_tokens=128,
            end_tokens=TOKENS,
            minimum=1e-4,
            decay_tokens=1280,
            decay_shape="one_minus_sqrt",
        ),
    ),
    (
        "wsd",
        {"decay": "2560", "decay_shape": "linear"},
        WSD(peak=1e-3, warmup_tokens=128, end_tokens=TOKENS, minimum=1e-4, decay_tokens=2560, decay_shape="linear"),
    ),
    *(
        (
            name,
            INFINITE,
            kind(
                peak=1e-3,
                warmup_tokens=128,
                end_tokens=TOKENS,
                constant=4e-4,
                cooldown_tokens=2560,
                anneal_tokens=1280,
                minimum=1e-5,
            ),
        )
        for name, kind in (("infinite_cosine", InfiniteCosine), ("infinite_inverse_sqrt", InfiniteInverseSqrt))
    ),
    (
        "infinite_cosine",
        {"constant": "4e-4", "cooldown": "20%"},
        InfiniteCosine(peak=1e-3, warmup_tokens=128, end_tokens=TOKENS, constant=4e-4, cooldown_tokens=2560),
    ),
]


@pytest.mark.parametrize("name, keys, expected", CASES)
def test_each_kind_gets_its_numbers(name: str, keys: dict[str, str], expected: Schedule, tmp_path: Path) -> None:
    changes = [f"lr.schedule={name}", *(f"lr.{key}={value}" for key, value in keys.items())]
    assert schedule(resolved(tmp_path, *changes).rates) == expected


def test_the_schedule_ends_with_the_last_whole_step(tmp_path: Path) -> None:
    run = resolved(tmp_path, "training.tokens=12900")
    rate = schedule(run.rates)
    assert run.num_steps == 101
    assert rate(101 * 128) == pytest.approx(1e-4) and rate(100 * 128) > 1e-4


def test_a_stage_s_own_rate_takes_over_where_the_stage_begins(tmp_path: Path) -> None:
    constant = ["lr={schedule: constant, peak: 4e-4, warmup: 10%}"]
    run = resolved(tmp_path, *constant, "data.stages=[{at: 6500, lr: {peak: 2e-4, warmup: 0, min: 0}}, {at: 90%}]")
    rate, begin = schedule(run.rates), 51 * 128  # the first step that begins at 6,500 or later
    assert rate(653) == pytest.approx(4e-4) and rate(begin) == 4e-4
    own = Cosine(peak=2e-4, end_tokens=12800 - begin, minimum=0.0)
    assert [rate(begin + tokens) for tokens in (128, 12800 - begin)] == [own(128), 0.0]
    assert (run.total_tokens, run.rates[0].warmup_tokens) == (12800, 653)


def test_phases_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"lr"):
        schedule(resolved(tmp_path, "lr.schedule=wsd", "lr.warmup=60%", "lr.decay=60%").rates)


@pytest.mark.parametrize(
    ("branch", "jump"),
    [
        (["lr={schedule: wsd, peak: 1e-3, decay: 50%}"], None),
        (["lr={schedule: wsd, peak: 1e-3, decay: 20%}", "training.tokens=9000"], None),
        (["lr={schedule: constant, peak: 5e-4}"], (1e-3, 5e-4)),
        (["lr={schedule: cosine, peak: 1e-3, warmup: 0, min: 0}"], (1e-3, 5e-4)),
    ],
)
def test_a_branch_goes_on_at_the_rate_of_its_trunk(
    branch: list[str], jump: tuple[float, float] | None, tmp_path: Path
) -> None:
    trunk = resolved(tmp_path, "lr.schedule=constant")
    saved = {"tokens": TOKENS // 2, "recipe": trunk.recipe.model_dump(mode="json", exclude={"logging"})}
    assert rate_jump(resolved(tmp_path, *branch), saved) == (None if jump is None else pytest.approx(jump))
