"""What the keys of a recipe must be to each other: one small function a rule, all of them run, all violations reported.

`check` needs the recipe alone, `check_model` also the model's shape. What depends on the number of processes is in
`resolve`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from megacpt.errors import RecipeError
from megacpt.recipe.architecture import Architecture
from megacpt.recipe.schema import RateSection, Recipe
from megacpt.recipe.shares import pretraining_mix

Violations = Iterator[RecipeError]

RATE_KEYS = {
    "cosine": {"min"},
    "wsd": {"min", "decay", "decay_shape"},
    "constant": set(),
    "infinite_cosine": {"min", "constant", "cooldown", "anneal"},
    "infinite_inverse_sqrt": {"min", "constant", "cooldown", "anneal"},
}
"""The keys of `lr` that a schedule uses, beside peak and warmup."""

CONTROLLER_KEYS = {
    "static": set(),
    "ddk": {"smoothing", "reference"},
    "topic_perplexity": {"step_size"},
    "skill_it": {"step_size", "graph", "window"},
    "prioritised": {"exponent", "kept_share"},
    "constrained": {"step_size", "max_replay"},
    "agent": {"agent"},
    "random_walk": {"step_size"},
}
"""The keys of `mixture` that a controller uses, beside every and floor."""


SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\b(sk|ghp|gho|glpat|xoxb)[-_][A-Za-z0-9_-]{16,}"  # OpenAI, GitHub, GitLab, Slack
    r"|\bAKIA[A-Z0-9]{16}\b"  # AWS
    r"|://[^/\s@]+:[^/\s@]+@"  # a password in a URL
    r"|[?&;](token|key|api_key|secret|password|sig|signature|x-amz-signature)=",
    re.IGNORECASE,
)
"""What tokens, keys and passwords look like."""


def no_value_is_a_secret(recipe: Recipe) -> Violations:
    """A recipe is copied into run folders, checkpoints and logs, so no value may look like a token or a password."""

    def texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            for name, inner in value.items():
                yield from texts(inner, f"{key}.{name}" if key else str(name))
        elif isinstance(value, list | tuple):
            for inner in value:
                yield from texts(inner, key)

    for key, text in texts(recipe.model_dump(mode="json"), ""):
        if SECRET.search(text):
            yield RecipeError(
                "this looks like a secret",
                where=recipe.where(key),
                hint="Take it out, and revoke it if the file was shared. Secrets come from the environment (HF_TOKEN, "
                "WANDB_API_KEY, AWS_*, ~/.netrc).",
            )


def one_batch_size(recipe: Recipe) -> Violations:
    """The global batch is stated in rows or in tokens."""
    batch = recipe.batch
    if (batch.global_rows is None) == (batch.global_tokens is None):
        both = batch.global_rows is not None
        yield RecipeError(
            "the global batch is stated in rows or in tokens",
            where=recipe.where("batch.global_tokens" if both else "batch"),
            found="both" if both else "neither",
            expected="one of global_rows and global_tokens",
            hint="Set the other to null (an inherited one too)." if both else None,
        )


def model_has_a_source(recipe: Recipe) -> Violations:
    """Pretrained weights have a path; random ones have a config and no path that would be ignored."""
    model = recipe.model
    if model.init == "pretrained" and model.path is None:
        yield RecipeError(
            "pretrained weights need a place",
            where=recipe.where("model"),
            hint="Set model.path to a folder or hub id, or model.init to random.",
        )
    if model.init == "random" and "model_type" not in model.config:
        yield RecipeError(
            "random weights need the whole config",
            where=recipe.where("model.config"),
            expected="a Hugging Face config with model_type",
        )
    if model.init == "random" and model.path is not None:
        yield RecipeError(
            "random weights ignore the model at path",
            where=recipe.where("model.path"),
            found=model.path,
            hint="Set model.path to null, or model.init to pretrained.",
        )


def flash_attention_needs_half_precision(recipe: Recipe) -> Violations:
    """The flash-attn kernels know no float32."""
    if recipe.model.dtype == "float32" and recipe.model.attention.startswith("flash_attention"):
        yield RecipeError(
            "flash attention computes in bfloat16 only",
            where=recipe.where("model.attention"),
            found=f"{recipe.model.attention} with dtype float32",
            expected="sdpa, eager or auto",
        )


def trained_domains_have_shards_and_weight(recipe: Recipe) -> Violations:
    """A domain that is trained on says from what and how much."""
    for name, domain in recipe.data.domains.items():
        if domain.role == "anchor":
            continue
        key = f"data.domains.{name}"
        if not domain.shards:
            yield RecipeError(
                "a domain that is trained on needs shards",
                where=recipe.where(key),
                hint=f"Set {key}.shards, or role: anchor to only measure it.",
            )
        if domain.weight is None and not (domain.role == "replay" and recipe.replay.match):
            yield RecipeError(
                "a domain that is trained on needs a weight",
                where=recipe.where(key),
                hint=f"Set {key}.weight, its share of the tokens.",
            )


def anchors_are_only_measured(recipe: Recipe) -> Violations:
    """An anchor has held-out text and no weight."""
    for name, domain in recipe.data.domains.items():
        if domain.role != "anchor":
            continue
        key = f"data.domains.{name}"
        if not domain.is_evaluated:
            yield RecipeError("an anchor is only measured, so it needs held_out", where=recipe.where(key))
        if domain.weight is not None:
            yield RecipeError(
                "an anchor is never trained on",
                where=recipe.where(f"{key}.weight"),
                found=domain.weight,
                expected="no weight",
                hint="Set role: replay to train on it.",
            )


def subsets_are_told_by_what(recipe: Recipe) -> Violations:
    """`top_tokens` or `quantiles`, not both, and `rank_by` with one of them."""
    for name, domain in recipe.data.domains.items():
        key = f"data.domains.{name}"
        if domain.top_tokens is not None and domain.quantiles is not None:
            yield RecipeError("top_tokens and quantiles choose the same documents", where=recipe.where(key))
        elif (domain.top_tokens is None and domain.quantiles is None) != (domain.rank_by is None):
            hint = f"Set {key}.rank_by to a column, and one of top_tokens and quantiles."
            yield RecipeError("rank_by and what it ranks for go together", where=recipe.where(key), hint=hint)
        elif domain.quantiles is not None and not domain.quantiles[0] < domain.quantiles[1]:
            where = recipe.where(f"{key}.quantiles")
            yield RecipeError("quantiles go from low to high", where=where, found=list(domain.quantiles))


def part_weights_are_of_parts(recipe: Recipe) -> Violations:
    """`part_weights` needs `parts_by`, and is not beside `target_weight`, which states what they would change."""
    for name, domain in recipe.data.domains.items():
        key = f"data.domains.{name}.part_weights"
        if domain.part_weights and domain.parts_by is None:
            hint = f"Set data.domains.{name}.parts_by to a column."
            yield RecipeError("these weights are of no parts", where=recipe.where(key), hint=hint)
        if domain.part_weights and domain.target_weight is not None:
            yield RecipeError(
                "the domain's share of the objective is stated, and these weights would change it",
                where=recipe.where(key),
                expected="one of part_weights and target_weight",
            )


def text_is_held_out_one_way(recipe: Recipe) -> Violations:
    """`held_out` names shards, `held_out_share` divides those that are trained on."""
    for name, domain in recipe.data.domains.items():
        if domain.held_out_share and (domain.held_out or not domain.shards or domain.held_out_share == 1):
            yield RecipeError(
                "a share is held out of the shards that are trained on, where no others are named",
                where=recipe.where(f"data.domains.{name}.held_out_share"),
                expected=f"shards, no held_out, and less than all in data.domains.{name}",
            )


def orders_have_a_column(recipe: Recipe) -> Violations:
    """A rising or falling `order` has a column `order_by`, and only a domain with an order has windows."""
    for name, domain in recipe.data.domains.items():
        key = f"data.domains.{name}"
        if (domain.order in ("ascending", "descending")) != (domain.order_by is not None):
            yield RecipeError(
                "an order and its column go together",
                where=recipe.where(f"{key}.order" if domain.order_by is None else f"{key}.order_by"),
                found=f"order {domain.order}, order_by {domain.order_by}",
                expected="ascending or descending with a column, shuffled or as_stored without",
            )
        if domain.order == "shuffled" and domain.order_window is not None:
            yield RecipeError(
                "a shuffled domain has no windows",
                where=recipe.where(f"{key}.order_window"),
                found=f"{domain.order_window:,} tokens",
                expected="null, or another order",
            )


def insertions_are_no_domain(recipe: Recipe) -> Violations:
    """The name `insertions` is that of what is inserted."""
    if "insertions" in recipe.data.domains:
        yield RecipeError(
            "this name is that of the sequences of data.insertions",
            where=recipe.where("data.domains.insertions"),
            hint="Call the domain something else.",
        )


def some_domain_counts(recipe: Recipe) -> Violations:
    """The weights sum to more than 0."""
    if not recipe.replay.match and not any(domain.weight for domain in recipe.data.domains.values()):
        yield RecipeError(
            "nothing would be learnt", where=recipe.where("data.domains"), expected="a domain with a weight above 0"
        )


def targets_are_stated_for_all(recipe: Recipe) -> Violations:
    """A target weight is a share of the objective, so all trained domains have one or none, and no controller mixes."""
    trained = {name: domain for name, domain in recipe.data.domains.items() if domain.role != "anchor"}
    stated = [name for name, domain in recipe.data.domains.items() if domain.target_weight is not None]
    missing = sorted(trained.keys() - set(stated))
    if stated and missing:
        yield RecipeError(
            "target weights are relative to each other, so all trained domains need one",
            where=recipe.where(f"data.domains.{missing[0]}"),
            found=f"none for {', '.join(missing)}",
        )
    for name in stated:
        if name not in trained:
            yield RecipeError(
                "an anchor is no part of the objective", where=recipe.where(f"data.domains.{name}.target_weight")
            )
    if stated and recipe.mixture.controller != "static":
        yield RecipeError(
            "target weights would undo what the controller does",
            where=recipe.where("mixture.controller"),
            found=f"{recipe.mixture.controller} with data.domains.{stated[0]}.target_weight",
            expected="one of the two",
        )
    low, high = recipe.loss.weight_limits
    if not low <= 1 <= high:
        yield RecipeError(
            "the limits of loss weights lie around 1",
            where=recipe.where("loss.weight_limits"),
            found=f"{low:g} to {high:g}",
        )


def replay_has_both_roles(recipe: Recipe) -> Violations:
    """A rate of replay, or a pre-training mixture to match, needs old text and new text."""
    replay, roles = recipe.replay, {name: domain.role for name, domain in recipe.data.domains.items()}
    key = "replay.match" if replay.rate is None else "replay.rate"
    if (replay.rate is not None or replay.match) and not {"new", "replay"} <= set(roles.values()):
        yield RecipeError(
            "replay divides the tokens between old and new text",
            where=recipe.where(key),
            expected="a domain of role replay and one of role new",
        )
    if not replay.match:
        return
    sources = pretraining_mix(replay)
    replayed = [name for name, role in roles.items() if role == "replay"]
    for name in replayed:
        domain_key = f"data.domains.{name}"
        if name not in sources:
            yield RecipeError(
                "a replayed domain is no source of the pre-training mixture",
                where=recipe.where(domain_key),
                expected=f"one of {', '.join(sources)}",
                hint="Name it as the source that it stands for, or leave replay.match out and set weights.",
            )
        if recipe.data.domains[name].weight is not None:
            yield RecipeError(
                "the weights of replay come from the pre-training mixture",
                where=recipe.where(f"{domain_key}.weight"),
                found=recipe.data.domains[name].weight,
                expected="no weight, or no replay.match",
            )
    if replay.rate is None and not sources.keys() - set(replayed):
        yield RecipeError(
            "the whole pre-training mixture is replayed, which leaves nothing to the new text",
            where=recipe.where("replay.match"),
            hint="Set replay.rate, or leave the sources that new text shall replace out of the domains.",
        )


def mixture_keys_are_used(recipe: Recipe) -> Violations:
    """No key of `mixture` is set that the controller would ignore, and none is missing."""
    mixture, used = recipe.mixture, CONTROLLER_KEYS[recipe.mixture.controller]
    for key in sorted(set().union(*CONTROLLER_KEYS.values()) - used):
        if getattr(mixture, key) not in (None, {}):
            controllers = [controller for controller, keys in CONTROLLER_KEYS.items() if key in keys]
            yield RecipeError(
                f"the controller {mixture.controller} does not use this key",
                where=recipe.where(f"mixture.{key}"),
                found=getattr(mixture, key),
                expected=f"null, or a controller that uses it: {', '.join(controllers)}",
            )
    for key in ("graph", "agent"):
        if key in used and getattr(mixture, key) is None:
            yield RecipeError(
                f"the controller {mixture.controller} needs mixture.{key}", where=recipe.where("mixture.controller")
            )
    if mixture.controller == "topic_perplexity" and (mixture.step_size or 0) >= 1:
        yield RecipeError(
            "a share cannot fall by all of itself",
            where=recipe.where("mixture.step_size"),
            found=mixture.step_size,
            expected="below 1",
        )


def controllers_see_what_they_mix(recipe: Recipe) -> Violations:
    """A controller needs the base model's loss, held-out text of every trained domain, and domains to choose from; and
    it alone says what is read."""
    mixture, controller = recipe.mixture, recipe.mixture.controller
    if controller == "static":
        return
    place = recipe.where("mixture.controller")
    trained = {name: domain for name, domain in recipe.data.domains.items() if domain.role != "anchor"}
    for name, domain in trained.items():
        if domain.when_exhausted != "repeat":
            yield RecipeError(
                "when a domain is exhausted cannot be foreseen under a controller",
                where=recipe.where(f"data.domains.{name}.when_exhausted"),
                found=domain.when_exhausted,
                expected="repeat",
                hint="A controller keeps each domain within its max_epochs as long as any text is left.",
            )
        if not domain.is_evaluated:
            yield RecipeError(
                "a controller goes by held-out losses, so every trained domain needs held_out",
                where=recipe.where(f"data.domains.{name}"),
            )
    if not recipe.evaluation.at_start:
        yield RecipeError(
            "a controller compares with the base model",
            where=recipe.where("evaluation.at_start"),
            found=False,
            expected=True,
        )
    if mixture.floor * len(trained) >= 1:
        yield RecipeError(
            "the least shares of all domains do not fit into the whole",
            where=recipe.where("mixture.floor"),
            found=f"{len(trained)} x {mixture.floor:g}",
            expected=f"a floor below {1 / len(trained):.3g}",
        )
    replayed = [name for name, domain in trained.items() if domain.role == "replay"]
    if controller == "prioritised" and len(replayed) < 2:
        yield RecipeError(
            "prioritised replay chooses among replay domains", where=place, found=len(replayed), expected="two or more"
        )
    if controller == "constrained":
        if len(replayed) == len(trained):
            yield RecipeError("a constrained mixture has something new to learn", where=place, found="no new domain")
        if not set(replayed) & recipe.forgetting.keys():
            yield RecipeError(
                "a constrained mixture keeps budgets of forgetting",
                where=place,
                found="no budget of a replay domain",
                hint="State one: forgetting: {DOMAIN: 0.02}, in nats per token.",
            )


def a_teacher_teaches_something(recipe: Recipe) -> Violations:
    """A teacher acts on domains that are trained on, and an average that teaches is kept."""
    distillation = recipe.loss.distillation
    if distillation is None:
        return
    trained = [name for name, domain in recipe.data.domains.items() if domain.role != "anchor"]
    for name in distillation.domains or ():
        if name not in trained:
            yield RecipeError(
                "a teacher teaches on text that is trained on",
                where=recipe.where("loss.distillation.domains"),
                found=name,
                expected=f"among {', '.join(trained)}",
            )
    if distillation.domains is None and not any(domain.role == "new" for domain in recipe.data.domains.values()):
        yield RecipeError(
            "a teacher teaches on domains of role new, and there are none",
            where=recipe.where("loss.distillation"),
            hint="Name the domains in loss.distillation.domains.",
        )
    if distillation.teacher == "average" and recipe.optimizer.average_decay is None:
        yield RecipeError(
            "the average that shall teach is not kept",
            where=recipe.where("loss.distillation.teacher"),
            hint="Set optimizer.average_decay, for instance 0.999, or teacher: base.",
        )


def stages_follow_each_other(recipe: Recipe) -> Violations:
    """Stages begin inside the run, each after the one before, and state one batch size at most."""
    before = 0
    for number, stage in enumerate(recipe.data.stages):
        key, begin = f"data.stages.{number}", stage.at.of(recipe.training.tokens)
        if not before < begin < recipe.training.tokens:
            yield RecipeError(
                "a stage begins inside the run, after the stage before it",
                where=recipe.where(f"{key}.at"),
                found=f"token {begin:,}",
                expected=f"more than {before:,} and less than training.tokens, {recipe.training.tokens:,}",
            )
        before = begin
        if stage.global_rows is not None and stage.global_tokens is not None:
            yield RecipeError(
                "a stage states its global batch in rows or in tokens", where=recipe.where(key), found="both"
            )


def stages_weigh_trained_domains(recipe: Recipe) -> Violations:
    """The weights of a stage are of domains that are trained on, and something is learnt from them."""
    domains = recipe.data.domains
    for number, stage in enumerate(recipe.data.stages):
        if stage.weights is None:
            continue
        where = recipe.where(f"data.stages.{number}.weights")
        trained = [name for name, domain in domains.items() if domain.role != "anchor"]
        if unknown := [name for name in stage.weights if name not in trained]:
            yield RecipeError(
                "a stage weighs a domain that is not trained on",
                where=where,
                found=", ".join(unknown),
                expected=f"names among {', '.join(trained)}",
                hint="A domain that joins later has weight 0 in data.domains.",
            )
        elif not any(stage.weights.values()):
            yield RecipeError("nothing would be learnt in this stage", where=where, expected="a weight above 0")


def pipeline_limits_zero(recipe: Recipe) -> Violations:
    """A pipeline needs whole gradients until its last micro-batch: ZeRO 2 and 3 are impossible with one."""
    parallel = recipe.parallel
    if parallel.pipeline > 1 and parallel.zero_stage > 1:
        yield RecipeError(
            "ZeRO 2 and 3 are incompatible with pipeline parallelism",
            where=recipe.where("parallel.zero_stage"),
            found=f"zero_stage {parallel.zero_stage} with pipeline {parallel.pipeline}",
            expected="zero_stage 0 or 1",
            hint="Use zero_stage: 1 (and more pipeline or tensor parallelism if memory is short), or pipeline: 1.",
        )


def zero_3_needs_whole_matrices(recipe: Recipe) -> Violations:
    """ZeRO 3 splits weights as it finds them: beside tensor parallelism it has not been shown to work."""
    parallel = recipe.parallel
    if parallel.tensor > 1 and parallel.zero_stage == 3:
        yield RecipeError(
            "ZeRO 3 does not go with tensor parallelism here",
            where=recipe.where("parallel.zero_stage"),
            found=f"zero_stage 3 with tensor {parallel.tensor}",
            expected="zero_stage 1 or 2, or tensor: 1",
            hint="ZeRO 3 alone splits weights over all ranks; tensor parallelism does it with ZeRO 1.",
        )


def bf16_needs_zero_1(recipe: Recipe) -> Violations:
    """DeepSpeed keeps fp32 master weights of a bf16 model only in its ZeRO optimizers."""
    if recipe.model.dtype == "bfloat16" and recipe.parallel.zero_stage == 0:
        yield RecipeError(
            "a bf16 model needs ZeRO for its fp32 master weights",
            where=recipe.where("parallel.zero_stage"),
            found="zero_stage 0 with dtype bfloat16",
            expected="zero_stage 1 or more",
            hint="Use zero_stage: 1; on one data-parallel rank it is the same. Or train in float32.",
        )


def sequence_parallel_splits(recipe: Recipe) -> Violations:
    """Sequence parallelism needs tensor parallelism, and sequences that it divides."""
    parallel = recipe.parallel
    if not parallel.sequence_parallel:
        return
    if parallel.tensor == 1:
        yield RecipeError(
            "sequence parallelism splits activations over the tensor-parallel ranks",
            where=recipe.where("parallel.sequence_parallel"),
            found="tensor 1",
            expected="tensor > 1",
            hint="Leave sequence_parallel off.",
        )
        return
    for key, length in _sequence_lengths(recipe):
        if length % parallel.tensor:
            nearest = length - length % parallel.tensor
            yield RecipeError(
                "sequence parallelism needs a sequence that tensor parallelism divides",
                where=recipe.where(key),
                found=f"{length} over tensor {parallel.tensor}",
                expected=f"{nearest} or {nearest + parallel.tensor}",
            )


def _sequence_lengths(recipe: Recipe) -> Iterator[tuple[str, int]]:
    """(key, value) of every sequence length that is stated."""
    yield "data.sequence_length", recipe.data.sequence_length
    for number, stage in enumerate(recipe.data.stages):
        if stage.sequence_length is not None:
            yield f"data.stages.{number}.sequence_length", stage.sequence_length


def partition_has_all_stages(recipe: Recipe) -> Violations:
    """A stated partition has an entry for each stage."""
    parallel = recipe.parallel
    if isinstance(parallel.partition, tuple) and len(parallel.partition) != parallel.pipeline:
        yield RecipeError(
            "the partition must state the layers of each stage",
            where=recipe.where("parallel.partition"),
            found=f"{len(parallel.partition)} entries",
            expected=f"{parallel.pipeline}, as parallel.pipeline",
        )


def _rates(recipe: Recipe) -> Iterator[tuple[str, RateSection, int]]:
    """Every learning rate: its key, its section, the tokens of its stretch."""
    total, stages = recipe.training.tokens, recipe.data.stages
    begins = [("lr", recipe.lr, 0)]
    begins += [
        (f"data.stages.{i}.lr", stage.lr, stage.at.of(total)) for i, stage in enumerate(stages) if stage.lr is not None
    ]
    for (key, rate, begin), end in zip(begins, [*(begin for _, _, begin in begins[1:]), total], strict=True):
        yield key, rate, end - begin


def rate_keys_are_used(recipe: Recipe) -> Violations:
    """No key of `lr` is set that the schedule would ignore, and none is missing."""
    for section, rate, _ in _rates(recipe):
        used = RATE_KEYS[rate.schedule]
        for key in sorted(set().union(*RATE_KEYS.values()) - used):
            if getattr(rate, key) is not None:
                schedules = [schedule for schedule, keys in RATE_KEYS.items() if key in keys]
                yield RecipeError(
                    f"the schedule {rate.schedule} does not use this key",
                    where=recipe.where(f"{section}.{key}"),
                    found=getattr(rate, key),
                    expected=f"null, or a schedule that uses it: {', '.join(schedules)}",
                )
        for key in ("constant", "cooldown"):
            if key in used and getattr(rate, key) is None:
                yield RecipeError(
                    f"the schedule {rate.schedule} needs lr.{key}", where=recipe.where(f"{section}.schedule")
                )


def rates_are_ordered(recipe: Recipe) -> Violations:
    """min <= constant <= peak."""
    for section, rate, _ in _rates(recipe):
        if rate.min is not None and rate.min > rate.peak:
            yield RecipeError(
                "the lowest learning rate is above the peak",
                where=recipe.where(f"{section}.min"),
                found=rate.min,
                expected=f"at most {rate.peak}",
            )
        if rate.constant is not None and not rate.lowest <= rate.constant <= rate.peak:
            yield RecipeError(
                "the constant learning rate lies outside the schedule",
                where=recipe.where(f"{section}.constant"),
                found=rate.constant,
                expected=f"between min {rate.lowest:g} and peak {rate.peak:g}",
            )


def phases_fit_the_run(recipe: Recipe) -> Violations:
    """The phases of a learning rate take no more tokens than its stretch of the run has."""
    for section, rate, stretch_tokens in _rates(recipe):
        phases = rate.phases(stretch_tokens)
        if sum(phases.values()) > stretch_tokens:
            yield RecipeError(
                "the phases of the learning rate are longer than the run",
                where=recipe.where(section),
                found=" + ".join(f"{name} {tokens:,}" for name, tokens in phases.items() if tokens),
                expected=f"at most training.tokens, {stretch_tokens:,}"
                if stretch_tokens == recipe.training.tokens
                else f"at most {stretch_tokens:,} tokens, to the next stage with a learning rate",
            )


def budgets_can_be_measured(recipe: Recipe) -> Violations:
    """Budgets of forgetting and known base losses name domains with held-out text; the base model is evaluated."""
    measured = [("a budget of forgetting", "forgetting", name) for name in recipe.forgetting]
    measured += [("a known base loss", "evaluation.base_loss", name) for name in recipe.evaluation.base_loss]
    for what, key, name in measured:
        if name not in recipe.data.domains or not recipe.data.domains[name].is_evaluated:
            yield RecipeError(
                f"{what} needs a domain with held-out text",
                where=recipe.where(f"{key}.{name}"),
                found=f"'{name}', which is no domain" if name not in recipe.data.domains else f"'{name}' without any",
                expected=", ".join(key for key, domain in recipe.data.domains.items() if domain.is_evaluated) or None,
            )
    if measured and not recipe.evaluation.at_start:
        yield RecipeError(
            "forgetting is measured from the base model's loss, which the evaluation before the first step gives",
            where=recipe.where("evaluation.at_start"),
            found="false",
            expected="true, with forgetting or evaluation.base_loss",
        )


def alignment_has_two_sides(recipe: Recipe) -> Violations:
    """Gradients are compared between new domains and others, by their held-out text."""
    if recipe.evaluation.gradient_alignment is None:
        return
    measured = [domain.role for domain in recipe.data.domains.values() if domain.is_evaluated]
    if "new" not in measured or not set(measured) - {"new"}:
        yield RecipeError(
            "gradients are compared between a new domain and another, both with held-out text",
            where=recipe.where("evaluation.gradient_alignment"),
            found=f"held-out text of {' and '.join(sorted(set(measured)))} domains" if measured else "no held-out text",
            hint="Give a domain with role replay or anchor, and one with role new, a `held_out`.",
        )


def tensor_divides_the_model(recipe: Recipe, architecture: Architecture) -> Violations:
    """Tensor parallelism gives every rank whole heads and equal parts of the MLP."""
    tensor = recipe.parallel.tensor
    sizes = {
        "attention heads": architecture.num_heads,
        "key-value heads": architecture.num_kv_heads,
        "MLP channels": architecture.intermediate_size,
    }
    bad = {what: size for what, size in sizes.items() if size % tensor}
    if bad:
        fitting = [n for n in range(1, architecture.num_kv_heads + 1) if not any(size % n for size in sizes.values())]
        yield RecipeError(
            "tensor parallelism does not divide the model",
            where=recipe.where("parallel.tensor"),
            found=f"{tensor} for " + " and ".join(f"{size} {what}" for what, size in bad.items()),
            expected=f"one of {', '.join(map(str, fitting))}",
        )


def every_stage_has_a_layer(recipe: Recipe, architecture: Architecture) -> Violations:
    """There are at least as many layers as stages, and a stated partition places every layer."""
    parallel, num_layers = recipe.parallel, architecture.num_layers
    if num_layers < parallel.pipeline:
        yield RecipeError(
            "there are more pipeline stages than layers",
            where=recipe.where("parallel.pipeline"),
            found=parallel.pipeline,
            expected=f"at most {num_layers}",
        )
    if isinstance(parallel.partition, tuple) and sum(parallel.partition) != num_layers:
        yield RecipeError(
            "the partition must place every layer",
            where=recipe.where("parallel.partition"),
            found=f"{' + '.join(map(str, parallel.partition))} = {sum(parallel.partition)}",
            expected=f"a sum of {num_layers}",
        )


def sequence_fits_the_positions(recipe: Recipe, architecture: Architecture) -> Violations:
    """No row is longer than the positions that the model was made for."""
    longest = architecture.max_positions
    for key, length in _sequence_lengths(recipe):
        if longest is not None and length > longest:
            yield RecipeError(
                "rows are longer than the model's positions",
                where=recipe.where(key),
                found=length,
                expected=f"at most {longest}, the config's max_position_embeddings",
            )


RECIPE_RULES: Sequence[Callable[[Recipe], Violations]] = (
    no_value_is_a_secret,
    one_batch_size,
    model_has_a_source,
    flash_attention_needs_half_precision,
    trained_domains_have_shards_and_weight,
    anchors_are_only_measured,
    subsets_are_told_by_what,
    part_weights_are_of_parts,
    text_is_held_out_one_way,
    orders_have_a_column,
    insertions_are_no_domain,
    some_domain_counts,
    targets_are_stated_for_all,
    replay_has_both_roles,
    mixture_keys_are_used,
    controllers_see_what_they_mix,
    a_teacher_teaches_something,
    stages_follow_each_other,
    stages_weigh_trained_domains,
    pipeline_limits_zero,
    zero_3_needs_whole_matrices,
    bf16_needs_zero_1,
    sequence_parallel_splits,
    partition_has_all_stages,
    rate_keys_are_used,
    rates_are_ordered,
    phases_fit_the_run,
    budgets_can_be_measured,
    alignment_has_two_sides,
)
MODEL_RULES: Sequence[Callable[[Recipe, Architecture], Violations]] = (
    tensor_divides_the_model,
    every_stage_has_a_layer,
    sequence_fits_the_positions,
)


def check(recipe: Recipe) -> list[RecipeError]:
    """Every violation that can be seen in the recipe alone."""
    return [violation for rule in RECIPE_RULES for violation in rule(recipe)]


def check_model(recipe: Recipe, architecture: Architecture) -> list[RecipeError]:
    """Every violation that shows only beside the model's shape."""
    return [violation for rule in MODEL_RULES for violation in rule(recipe, architecture)]


def refuse(errors: Sequence[RecipeError]) -> None:
    """Raise what was found, if anything: one error as itself, several as one that lists them."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        lines = "".join(f"\n  {error}" for error in errors)
        raise RecipeError(f"{len(errors)} things are wrong with the recipe:{lines}")
