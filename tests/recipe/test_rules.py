"""Each rule by itself: silent on a sound recipe, and naming the key on one that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from megacpt.errors import RecipeError
from megacpt.recipe import Recipe, load_recipe, resolve, rules
from tests.recipe.conftest import Write

HELD_OUT = "data.domains.web.held_out=shards/web-held-out"
LAW_TARGET = "data.domains.law.target_weight=1"
BROKEN: dict[Callable[..., Any], list[tuple[list[str], str]]] = {
    rules.no_value_is_a_secret: [
        (
            ["data.domains.law.shards=https://me:pass@host/law"],
            "law.shards: this looks like a secret",
        ),
        (
            ["data.domains.law.shards=s3://b/law?X-Amz-Signature=1f"],
            "data.domains.law.shards: this looks like a secret",
        ),
        (["model.tokenizer=hf_abcdefghijklmnopqrst"], "model.tokenizer: this looks like a secret"),
    ],
    rules.one_batch_size: [
        (["batch.global_rows=null"], "batch: the global batch is stated in rows or in tokens (found neither"),
        (
            ["batch.global_tokens=4K"],
            "batch.global_tokens: the global batch is stated in rows or in tokens (found both",
        ),
    ],
    rules.model_has_a_source: [
        (["model.init=pretrained"], "model: pretrained weights need a place"),
        (["model.config=null"], "model.config: random weights need the whole config"),
        (["model.path=x"], "model.path: random weights ignore the model at path (found x)"),
    ],
    rules.flash_attention_needs_half_precision: [
        (
            ["model.dtype=float32", "model.attention=flash_attention_2"],
            "model.attention: flash attention computes in bfloat16",
        ),
    ],
    rules.trained_domains_have_shards_and_weight: [
        (["data.domains.law.shards=[]"], "data.domains.law: a domain that is trained on needs shards"),
        (["data.domains.web.weight=null"], "data.domains.web: a domain that is trained on needs a weight"),
    ],
    rules.anchors_are_only_measured: [
        (["data.domains.law.role=anchor"], "data.domains.law.weight: an anchor is never trained on (found 3.0"),
        (["data.domains.code={role: anchor}"], "data.domains.code: an anchor is only measured, so it needs held_out"),
    ],
    rules.subsets_are_told_by_what: [
        (["data.domains.law.top_tokens=1B"], "data.domains.law: rank_by and what it ranks for go together"),
        (["data.domains.law.rank_by=score"], "one of top_tokens and quantiles"),
        (
            ["data.domains.law={rank_by: score, top_tokens: 1B, quantiles: [0, 1]}"],
            "data.domains.law: top_tokens and quantiles choose the same documents",
        ),
        (["data.domains.law={rank_by: score, quantiles: [0.5, 0.5]}"], "data.domains.law.quantiles: quantiles go from"),
    ],
    rules.part_weights_are_of_parts: [
        (["data.domains.law.part_weights={a: 2}"], "data.domains.law.part_weights: these weights are of no parts"),
        (
            ["data.domains.law={parts_by: source, part_weights: {a: 2}, target_weight: 1}"],
            "data.domains.law.part_weights: the domain's share of the objective is stated",
        ),
    ],
    rules.text_is_held_out_one_way: [
        (
            ["data.domains.law={held_out_share: 0.01, held_out: [a]}"],
            "data.domains.law.held_out_share: a share is held out of the shards that are trained on",
        ),
    ],
    rules.orders_have_a_column: [
        (["data.domains.law.order=ascending"], "data.domains.law.order: an order and its column go together"),
        (["data.domains.law.order_by=score"], "found order shuffled, order_by score"),
        (["data.domains.law.order_window=1M"], "data.domains.law.order_window: a shuffled domain has no windows"),
    ],
    rules.insertions_are_no_domain: [
        (["data.domains.insertions={role: new, shards: x, weight: 1}"], "data.domains.insertions: this name is that"),
    ],
    rules.some_domain_counts: [
        (["data.domains.law.weight=0", "data.domains.web.weight=0"], "data.domains: nothing would be learnt"),
    ],
    rules.targets_are_stated_for_all: [
        ([LAW_TARGET], "data.domains.web: target weights are relative to each other"),
        (
            [LAW_TARGET, "data.domains.web.target_weight=1", "mixture.controller=ddk"],
            "mixture.controller: target weights would undo what the controller does",
        ),
        (
            ["data.domains.web={role: anchor, held_out: x, target_weight: 1}", LAW_TARGET],
            "data.domains.web.target_weight: an anchor is no part of the objective",
        ),
        (["loss.weight_limits=[2, 5]"], "loss.weight_limits: the limits of loss weights lie around 1"),
    ],
    rules.replay_has_both_roles: [
        (
            ["replay.rate=0.05", "data.domains.web.role=new"],
            "replay.rate: replay divides the tokens between old and new text",
        ),
        (
            ["replay.match=llama", "data.domains.web.weight=null"],
            "data.domains.web: a replayed domain is no source of the pre-training mixture",
        ),
        (
            ["replay.match={web: 0.2, books: 0.8}"],
            "data.domains.web.weight: the weights of replay come from the pre-training mixture",
        ),
        (
            ["replay.match={web: 1}", "data.domains.web.weight=null"],
            "replay.match: the whole pre-training mixture is replayed",
        ),
    ],
    rules.mixture_keys_are_used: [
        (["mixture={smoothing: 0.1}"], "mixture.smoothing: the controller static does not use this key"),
        (["mixture={controller: skill_it}"], "mixture.controller: the controller skill_it needs mixture.graph"),
        (
            ["mixture={controller: topic_perplexity, step_size: 1}"],
            "mixture.step_size: a share cannot fall by all of itself",
        ),
    ],
    rules.controllers_see_what_they_mix: [
        (["mixture.controller=ddk"], "data.domains.web: a controller goes by held-out losses"),
        (
            [HELD_OUT, "mixture.controller=ddk", "data.domains.web.when_exhausted=stop"],
            "data.domains.web.when_exhausted: when a domain is exhausted cannot be foreseen",
        ),
        (
            [HELD_OUT, "mixture.controller=ddk", "evaluation.at_start=false"],
            "evaluation.at_start: a controller compares",
        ),
        ([HELD_OUT, "mixture={controller: ddk, floor: 0.5}"], "mixture.floor: the least shares of all domains do not"),
        ([HELD_OUT, "mixture.controller=prioritised"], "mixture.controller: prioritised replay chooses among replay"),
        ([HELD_OUT, "mixture.controller=constrained"], "mixture.controller: a constrained mixture keeps budgets"),
        (
            [HELD_OUT, "mixture.controller=constrained", "data.domains.law.role=replay", "forgetting={web: 0.1}"],
            "mixture.controller: a constrained mixture has something new to learn",
        ),
    ],
    rules.a_teacher_teaches_something: [
        (
            ["loss.distillation={weight: 0.2, domains: [med]}"],
            "loss.distillation.domains: a teacher teaches on text that is trained on (found med, expected among law",
        ),
        (
            ["loss.distillation={weight: 0.2}", "data.domains.law.role=replay"],
            "loss.distillation: a teacher teaches on domains of role new",
        ),
        (
            ["loss.distillation={weight: 0.2, teacher: average}"],
            "loss.distillation.teacher: the average that shall teach is not kept",
        ),
    ],
    rules.stages_follow_each_other: [
        (["data.stages=[{at: 2M}]"], "data.stages.0.at: a stage begins inside the run"),
        (["data.stages=[{at: 50%}, {at: 500K}]"], "(found token 500,000, expected more than 500,000 and less than"),
        (
            ["data.stages=[{at: 50%, global_rows: 8, global_tokens: 1K}]"],
            "a stage states its global batch in rows or in",
        ),
    ],
    rules.stages_weigh_trained_domains: [
        (["data.stages=[{at: 50%, weights: {law: 1, war: 1}}]"], "a domain that is not trained on (found war"),
        (["data.stages=[{at: 50%, weights: {law: 0}}]"], "nothing would be learnt in this stage"),
    ],
    rules.pipeline_limits_zero: [
        (["parallel={pipeline: 2, zero_stage: 2}"], "parallel.zero_stage: ZeRO 2 and 3 are incompatible with pipeline"),
        (["parallel={pipeline: 2, zero_stage: 3}"], "Use zero_stage: 1 (and more pipeline or tensor"),
    ],
    rules.zero_3_needs_whole_matrices: [
        (["parallel={tensor: 2, zero_stage: 3}"], "parallel.zero_stage: ZeRO 3 does not go with tensor"),
    ],
    rules.bf16_needs_zero_1: [
        (["parallel.zero_stage=0"], "parallel.zero_stage: a bf16 model needs ZeRO for its fp32 master weights"),
    ],
    rules.sequence_parallel_splits: [
        (["parallel.sequence_parallel=true"], "parallel.sequence_parallel: sequence parallelism splits"),
        (
            ["parallel={sequence_parallel: true, tensor: 4}", "data.sequence_length=62"],
            "data.sequence_length: sequence parallelism needs a sequence that tensor parallelism divides"
            " (found 62 over tensor 4, expected 60 or 64)",
        ),
    ],
    rules.partition_has_all_stages: [
        (
            ["parallel={pipeline: 2, partition: [4]}"],
            "parallel.partition: the partition must state the layers of each stage",
        ),
    ],
    rules.rate_keys_are_used: [
        (
            ["lr.decay=5%"],
            "lr.decay: the schedule cosine does not use this key (found 5%, expected null, or a schedule",
        ),
        (["lr={schedule: constant, min: 0}"], "lr.min: the schedule constant does not use this key"),
        (["lr={schedule: wsd, cooldown: 1%}"], "lr.cooldown: the schedule wsd does not use this key"),
        (
            ["lr={schedule: infinite_cosine, cooldown: 1%}"],
            "lr.schedule: the schedule infinite_cosine needs lr.constant",
        ),
    ],
    rules.rates_are_ordered: [
        (["lr.min=2e-4"], "lr.min: the lowest learning rate is above the peak (found 0.0002, expected at most 0.0001)"),
        (["data.stages=[{at: 50%, lr: {peak: 1e-5, min: 2e-5}}]"], "data.stages.0.lr.min: the lowest learning rate is"),
        (
            ["lr={schedule: infinite_cosine, constant: 2e-4, cooldown: 1%}"],
            "lr.constant: the constant learning rate lies",
        ),
        (["lr={schedule: infinite_cosine, constant: 1e-6, cooldown: 1%}"], "between min 1e-05 and peak 0.0001"),
    ],
    rules.phases_fit_the_run: [
        (
            ["lr={schedule: wsd, warmup: 60%, decay: 50%}"],
            "lr: the phases of the learning rate are longer than the run",
        ),
        (["lr.warmup=2M"], "(found warmup 2,000,000, expected at most training.tokens, 1,000,000)"),
        (
            ["data.stages=[{at: 90%, lr: {peak: 1e-4, warmup: 110K}}]"],
            "data.stages.0.lr: the phases of the learning rate are longer than the run (found warmup 110,000, expected"
            " at most 100,000 tokens, to the next stage with a learning rate",
        ),
    ],
    rules.alignment_has_two_sides: [
        (
            ["evaluation.gradient_alignment=64K"],
            "between a new domain and another, both with held-out text (found held",
        ),
        (
            ["evaluation.gradient_alignment=64K", HELD_OUT, "data.domains.law.held_out=[]"],
            "evaluation.gradient_alignment: gradients are compared",
        ),
    ],
    rules.budgets_can_be_measured: [
        (["forgetting={wbe: 0.02}"], "forgetting.wbe: a budget of forgetting needs a domain with held-out text"),
        (["forgetting={law: 0.02}", "evaluation.at_start=false"], "evaluation.at_start: forgetting is measured from"),
        (["evaluation.base_loss={wbe: 2}"], "evaluation.base_loss.wbe: a known base loss needs a domain with held-out"),
    ],
    rules.tensor_divides_the_model: [
        (
            ["parallel.tensor=8"],
            "parallel.tensor: tensor parallelism does not divide the model"
            " (found 8 for 4 key-value heads, expected one of 1, 2, 4)",
        ),
        (["parallel.tensor=3"], "found 3 for 8 attention heads and 4 key-value heads"),
        (["parallel.tensor=2", "model.config.intermediate_size=97"], "found 2 for 97 MLP channels, expected one of 1)"),
    ],
    rules.every_stage_has_a_layer: [
        (
            ["parallel.pipeline=5"],
            "parallel.pipeline: there are more pipeline stages than layers (found 5, expected at most 4",
        ),
        (["parallel={pipeline: 2, partition: [1, 2]}"], "found 1 + 2 = 3, expected a sum of 4"),
    ],
    rules.sequence_fits_the_positions: [
        (
            ["data.sequence_length=129"],
            "data.sequence_length: rows are longer than the model's positions (found 129, expected at most 128",
        ),
    ],
}

SOUND: list[list[str]] = [
    [],
    ["batch={global_rows: null, global_tokens: 1Ki}"],
    ["data.domains.code={role: anchor, held_out: x}"],
    ["parallel={pipeline: 2, zero_stage: 1, tensor: 2, sequence_parallel: true, partition: [3, 1]}"],
    ["parallel={zero_stage: 2, tensor: 4}"],
    ["lr={schedule: wsd, decay: 20%, decay_shape: linear, min: 0}"],
    ["lr={schedule: constant}"],
    ["lr={schedule: infinite_inverse_sqrt, constant: 5e-5, cooldown: 30%, anneal: 10%}"],
    ["lr={schedule: wsd, warmup: 90%}"],
]


def test_every_rule_has_a_case() -> None:
    assert set(BROKEN) == {*rules.RECIPE_RULES, *rules.MODEL_RULES}


@pytest.mark.parametrize(
    ("rule", "overrides", "complaint"),
    [(rule, *case) for rule, cases in BROKEN.items() for case in cases],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_broken_rule_names_the_key(
    write: Write, monkeypatch: pytest.MonkeyPatch, rule: Callable[..., Any], overrides: list[str], complaint: str
) -> None:
    # One rule alone: the others' complaints about the same recipe do not help it.
    monkeypatch.setattr(rules, "RECIPE_RULES", [rule] if rule in rules.RECIPE_RULES else [])
    monkeypatch.setattr(rules, "MODEL_RULES", [rule] if rule in rules.MODEL_RULES else [])
    with pytest.raises(RecipeError) as caught:
        resolve(load_recipe(write(), overrides), world_size=40)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("overrides", SOUND, ids=str)
def test_sound_recipes_break_no_rule(write: Write, overrides: list[str]) -> None:
    recipe = load_recipe(write(), overrides)
    assert isinstance(resolve(recipe, world_size=4).recipe, Recipe)


def test_all_violations_are_reported(write: Write) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(), ["parallel={pipeline: 2, zero_stage: 2}", "lr.decay=5%", "model.path=x"])
    assert str(caught.value).startswith("3 things are wrong with the recipe:\n  --set: model.path: ")
