"""Resolving: the arithmetic of layouts and batches, and what is offered when it does not come out even."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megacpt.errors import LaunchError, MegacptError, RecipeError
from megacpt.recipe import load_recipe, resolve
from tests.recipe.conftest import Write

degrees = st.integers(1, 4)


@given(pipeline=degrees, tensor=st.sampled_from([1, 2, 4]), data=degrees, micro_rows=degrees, per_rank=degrees)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_every_layout_that_fits_splits_the_batch_exactly(
    write: Write, pipeline: int, tensor: int, data: int, micro_rows: int, per_rank: int
) -> None:
    rows = data * micro_rows * per_rank
    layout = f"parallel={{pipeline: {pipeline}, tensor: {tensor}}}"
    recipe = load_recipe(write(), [layout, f"batch={{global_rows: {rows}, micro_rows: {micro_rows}}}"])
    resolved = resolve(recipe, world_size=pipeline * tensor * data)
    assert (resolved.pipeline, resolved.tensor, resolved.data) == (pipeline, tensor, data)
    assert resolved.num_micro_batches == per_rank
    assert resolved.tokens_per_step == rows * 64
    assert resolved.total_tokens - resolved.tokens_per_step < 1_000_000 <= resolved.total_tokens
    assert resolved.rates[0].total_tokens == resolved.total_tokens


@given(world_size=st.integers(1, 64), pipeline=degrees, tensor=st.sampled_from([1, 2, 4]), data=degrees)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_offered_layouts_do_fit(write: Write, world_size: int, pipeline: int, tensor: int, data: int) -> None:
    layout = f"parallel={{pipeline: {pipeline}, tensor: {tensor}, data: {data}}}"
    recipe = load_recipe(write(), [layout, "batch.global_rows=48"])
    try:
        resolve(recipe, world_size)
    except LaunchError as error:
        assert pipeline * tensor * data != world_size
        _, _, offered = (error.hint or "").partition("or use ")
        assert offered, "pipeline 1, tensor 1 always fits"
        for offer in offered.removesuffix(".").split(", "):
            _, p, _, t, _, d = offer.split()
            assert int(p) * int(t) * int(d) == world_size
    except RecipeError as error:
        assert "cannot split the global batch" in str(error)
    else:
        assert pipeline * tensor * data == world_size


@pytest.mark.parametrize(
    ("overrides", "world_size", "complaint"),
    [
        (
            ["parallel.pipeline=4"],
            6,
            "--set: parallel: the layout does not fit the world (found pipeline 4 x tensor 1 = 4 for 6 processes)."
            " Start 4 or 8 processes, or use pipeline 3 tensor 1 data 2, pipeline 2 tensor 1 data 3,"
            " pipeline 1 tensor 1 data 6.",
        ),
        (["parallel={pipeline: 4, tensor: 4}"], 8, "Start 16 processes, or use pipeline 4 tensor 2 data 1, "),
        (
            ["parallel.data=2"],
            4,
            "found pipeline 1 x tensor 1 x data 2 = 2 for 4 processes). Start 2 processes, or use",
        ),
        (
            ["batch.global_rows=15"],
            4,
            "--set: batch.global_rows: the ranks cannot split the global batch evenly (found 15 rows over data 4 x"
            " micro_rows 1 = 4, expected a multiple of 4). Nearest: 12 or 16.",
        ),
        (["batch={global_rows: 12, micro_rows: 8}"], 4, "Nearest: 32, or a micro_rows among 1, 3."),
        (["batch={global_rows: null, global_tokens: 300}"], 8, "300 tokens, 4.7 rows, over data 8 x micro_rows 1 = 8"),
        (["batch={global_rows: null, global_tokens: 300}"], 8, "Nearest: 512 or 1024 tokens."),
        (["parallel.pipeline=2"], 1, "= 2 for 1 process). Start 2 processes, or use pipeline 1"),
        ([], 0, "a run needs a process (found 0, expected a world size of at least 1)"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    write: Write, overrides: list[str], world_size: int, complaint: str
) -> None:
    with pytest.raises(MegacptError) as caught:
        resolve(load_recipe(write(), overrides), world_size)
    assert complaint in str(caught.value)


def test_a_batch_in_tokens_is_rounded_to_rows_that_can_be_split(write: Write) -> None:
    recipe = load_recipe(write(), ["batch={global_rows: null, global_tokens: 1M, micro_rows: 2}"])
    resolved = resolve(recipe, world_size=8)
    assert resolved.global_rows % 16 == 0
    assert abs(resolved.tokens_per_step - 1_000_000) <= 16 * 64 / 2


def test_stages_inherit_what_they_do_not_state(write: Write) -> None:
    stages = "[{at: 10%, weights: {web: 1}}, {at: 50%, sequence_length: 128}, {at: 900K, global_rows: 8}]"
    batch = "batch={global_rows: null, global_tokens: 1024}"
    resolved = resolve(load_recipe(write(), [f"data.stages={stages}", batch]), world_size=2)
    weights = [{"law": 0.75, "web": 0.25}, {"web": 1}, {"web": 1}, {"web": 1}]
    assert [(s.from_tokens, s.weights, s.sequence_length, s.global_rows) for s in resolved.stages] == [
        (from_tokens, weights[number], length, rows)
        for number, (from_tokens, length, rows) in enumerate(
            [(0, 64, 16), (100_000, 64, 16), (500_000, 128, 8), (900_000, 128, 8)]
        )
    ]
    assert (resolved.num_steps, resolved.total_tokens) == (977, 977 * 1024)


def test_occasions_in_steps(write: Write) -> None:
    overrides = ["evaluation.every=10%", "checkpoint.every=1", "training.stop_at_step=5"]
    resolved = resolve(load_recipe(write(), overrides), world_size=1)
    assert resolved.num_steps == 977
    assert resolved.evaluation_every_steps == 98
    assert resolved.checkpoint_every_steps == 1, "never less than a step"
    assert resolved.last_step == 5
    assert resolve(load_recipe(write(), ["evaluation.every=null"]), 1).evaluation_every_steps is None


def test_the_learning_rate_in_tokens(write: Write) -> None:
    phases = "lr={schedule: infinite_cosine, warmup: 1%, cooldown: 60%, constant: 5e-5, anneal: 50K}"
    rate = resolve(load_recipe(write(), [phases]), world_size=1).rates[0]
    assert (rate.warmup_tokens, rate.cooldown_tokens, rate.decay_tokens, rate.anneal_tokens) == (
        10_000,
        600_000,
        0,
        50_000,
    )
    assert (rate.peak, rate.constant) == (1e-4, 5e-5)
    assert rate.min == pytest.approx(1e-5)
    assert resolve(load_recipe(write(), ["lr.schedule=wsd"]), world_size=1).rates[0].decay_tokens == 100_000


def test_without_the_model_s_shape_its_rules_wait(write: Write) -> None:
    recipe = load_recipe(
        write(), ["model={init: pretrained, path: some/model, config: null}", "model.config.a=1", "parallel.tensor=3"]
    )
    assert resolve(recipe, world_size=3).architecture is None
