"""The model of a recipe: its config, the blueprint, where its weights come from, the loss, the cut into stages."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig

from megacpt.assemble.stages import layers_per_stage
from megacpt.checkpoint.huggingface import SafetensorsWeights, find_folder, read_config
from megacpt.data.parts import domain_of
from megacpt.data.special_tokens import SpecialTokens, open_library
from megacpt.data.special_tokens import special_tokens as read_special_tokens
from megacpt.data.tokenizer_fingerprint import hugging_face_fingerprint
from megacpt.engine.engine import Engine
from megacpt.engine.pipelined import PipelinedEngine
from megacpt.engine.settings import EngineSettings
from megacpt.engine.sharded import ShardedEngine
from megacpt.errors import RecipeError
from megacpt.model.attention import choose_attention
from megacpt.model.blueprint import PARITY_TESTED, Blueprint
from megacpt.model.fill import RandomWeights, WeightSource
from megacpt.model.fused_ops import choose_fused_ops
from megacpt.model.objective import Distillation, Objective
from megacpt.model.probe import probe
from megacpt.model.stages import StageFactory
from megacpt.optim.adamw import Additions, Reptile
from megacpt.parallel.grid import Grid
from megacpt.parallel.group import TensorGroup
from megacpt.recipe import Recipe, Resolved, check_promises

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


def model_folder(recipe: Recipe) -> Path | None:
    """The folder of the base model; None for random weights. Downloads from the hub if need be."""
    if recipe.model.path is None:
        return None
    return find_folder(recipe.model.path, recipe.model.revision, where=recipe.where("model.path"))


def hf_config(recipe: Recipe, folder: Path | None) -> PretrainedConfig:
    """The model's config, checked against what the recipe promises of it.

    Raises:
        ModelError: they contradict each other.
    """
    if folder is None or recipe.model.init == "random":
        stated = dict(recipe.model.config)
        return AutoConfig.for_model(stated.pop("model_type"), **stated)
    config = read_config(folder, trust_remote_code=recipe.model.trust_remote_code)
    check_promises(recipe, config.to_dict(), str(folder / "config.json"), is_complete=True)
    return config


def blueprint(recipe: Recipe, config: PretrainedConfig, device: torch.device) -> Blueprint:
    """The model's parts; an architecture outside the tested ones is first tried on a shrunken copy."""
    dtype = DTYPES[recipe.model.dtype]
    check_kernel(recipe, device)
    probe(config)
    requested = recipe.model.fused_ops
    if requested == "auto" and config.model_type not in PARITY_TESTED:
        requested = False
    return Blueprint(
        config,
        dtype,
        choose_attention(recipe.model.attention, device.type, dtype),
        fused_ops=choose_fused_ops(requested, device.type, config.model_type),
    )


def check_kernel(recipe: Recipe, device: torch.device) -> None:
    """Refuse Triton's loss where it cannot run; the op itself would, in the first step.

    Raises:
        RecipeError: no GPU, and no interpreter.
    """
    if recipe.loss.kernel == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RecipeError(
            "the Triton kernels need a GPU",
            where=recipe.where("loss.kernel"),
            found=f"triton on a {device.type}",
            expected="auto or reference",
            hint="TRITON_INTERPRET=1 interprets them, slowly.",
        )


def weights(recipe: Recipe, plan: Blueprint, folder: Path | None) -> WeightSource:
    """Where the model's weights come from."""
    if folder is None or recipe.model.init == "random":
        return RandomWeights(plan.model, recipe.seed)
    return SafetensorsWeights(folder, plan.base_name)


def engine(
    resolved: Resolved,
    plan: Blueprint,
    source: WeightSource,
    bounds: Sequence[int],
    grid: Grid,
    group: TensorGroup,
    domains: Sequence[str],
) -> Engine:
    """The engine that trains: DeepSpeed's pipeline for ZeRO 0 and 1, an ordinary one for ZeRO 2 and 3.

    Args:
        bounds: of the pipeline stages, as `megacpt.assemble.stages.stage_bounds` gives them.
        domains: the stream's, in the order of their numbers.
    """
    recipe = resolved.recipe
    factory = StageFactory(
        plan,
        source,
        group,
        sequence_parallel=recipe.parallel.sequence_parallel,
        vocab_multiple=recipe.model.vocab_multiple,
    )
    objective = Objective(
        group,
        plan.vocab_size,
        len(domains),
        z_loss=recipe.loss.z_loss,
        softcap=plan.logit_softcap,
        logit_scale=plan.logit_scale,
        kernel=recipe.loss.kernel,
        distillation=distillation(recipe, domains),
    )
    settings = EngineSettings(
        micro_rows=resolved.micro_rows,
        num_micro_batches=resolved.num_micro_batches,
        dtype=plan.dtype,
        zero_stage=recipe.parallel.zero_stage,
        gradient_clipping=recipe.optimizer.gradient_clipping,
        activation_checkpointing=recipe.parallel.activation_checkpointing == "full",
        sequence_parallel=recipe.parallel.sequence_parallel,
        betas=recipe.optimizer.betas,
        eps=recipe.optimizer.eps,
        weight_decay=recipe.optimizer.weight_decay,
        lr_multipliers=lr_multipliers(recipe, plan),
        additions=additions(recipe),
    )
    teacher = None
    if recipe.loss.distillation is not None:
        teacher = replace(
            factory, blueprint=Blueprint(plan.config, plan.dtype, plan.attention, fused_ops=plan.fused_ops)
        )
    if settings.zero_stage >= 2:
        return ShardedEngine(factory, objective, grid, settings, teacher)
    # The engine lists the norm and the head apart; they stay in one stage.
    return PipelinedEngine(factory, objective, grid, [*bounds[:-1], bounds[-1] + 1], settings, teacher)


def lr_multipliers(recipe: Recipe, plan: Blueprint) -> Mapping[str, float]:
    """The recipe's, every pattern of which names something.

    Raises:
        RecipeError: a pattern matches no parameter.
    """
    names = [name for name, _ in plan.model.named_parameters()]
    for pattern in recipe.optimizer.lr_multipliers:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise RecipeError(
                "no parameter of the model has such a name",
                where=recipe.where("optimizer.lr_multipliers"),
                found=pattern,
                expected=f"a pattern for names like {names[0]} or {names[-1]}",
            )
    return recipe.optimizer.lr_multipliers


def distillation(recipe: Recipe, domains: Sequence[str]) -> Distillation | None:
    """How much the model is held to a teacher, and on which of what the stream counts, `domains`."""
    stated = recipe.loss.distillation
    if stated is None:
        return None
    taught = stated.domains or [name for name, domain in recipe.data.domains.items() if domain.role == "new"]
    numbers = tuple(number for number, name in enumerate(domains) if domain_of(name) in taught)
    return Distillation(stated.weight, stated.temperature, numbers, of_average=stated.teacher == "average")


def additions(recipe: Recipe) -> Additions:
    """What is done to the weights besides AdamW's update."""
    reptile = recipe.optimizer.reptile
    return Additions(
        decay_to_initial=recipe.optimizer.decay_to == "initial",
        reptile=None if reptile is None else Reptile(reptile.every_steps, reptile.step_size),
        average_decay=recipe.optimizer.average_decay,
    )


def describe(resolved: Resolved, plan: Blueprint, bounds: Sequence[int], device: torch.device) -> dict[str, str]:
    """The model, the layout and the steps in words, for the header of a run."""
    recipe = resolved.recipe
    layers = layers_per_stage(bounds, plan.num_layers)
    stages = f", layers {' + '.join(map(str, layers))}" if len(layers) > 1 else ""
    return {
        "model": f"{recipe.model.path or 'random'} ({plan.config.model_type}), {plan.num_parameters():,} parameters",
        "compute": (
            f"{recipe.model.dtype} on {resolved.world_size} x {device.type}, attention {plan.attention},"
            f" fused ops {'by Liger' if plan.fused_ops else 'off'}"
        ),
        "layout": f"pipeline {resolved.pipeline} x data {resolved.data} x tensor {resolved.tensor}{stages}",
        "step": (
            f"{resolved.global_rows} rows x {resolved.sequence_length:,} = {resolved.tokens_per_step:,} tokens,"
            f" {resolved.num_micro_batches} micro-batches of {resolved.micro_rows} a rank"
        ),
        "run": f"{resolved.num_steps:,} steps, {resolved.total_tokens:,} tokens"
        + (f"; ends after step {resolved.last_step:,}" if resolved.last_step < resolved.num_steps else ""),
    }


def tokenizer_fingerprint(recipe: Recipe, folder: Path | None) -> str | None:
    """The fingerprint of the model's tokenizer, as manifests have it; None where there is no tokenizer.json."""
    path = _tokenizer_file(recipe, folder)
    return None if path is None else hugging_face_fingerprint(path)


def special_tokens(recipe: Recipe, folder: Path | None) -> SpecialTokens | None:
    """What the model knows documents to begin and end with; None where there is no tokenizer.json to say."""
    path = _tokenizer_file(recipe, folder)
    return None if path is None else read_special_tokens(path, open_library(path))


def encoder(recipe: Recipe, folder: Path | None) -> Callable[[str], list[int]] | None:
    """Text -> ids, without special tokens; None where there is no tokenizer.json. It is read when text comes."""
    path = _tokenizer_file(recipe, folder)
    if path is None:
        return None
    library = cache(partial(open_library, path))
    return lambda text: list(library().encode(text, add_special_tokens=False).ids)


def _tokenizer_file(recipe: Recipe, folder: Path | None) -> Path | None:
    named = recipe.model.tokenizer
    tokenizer = folder if named is None else find_folder(named, where=recipe.where("model.tokenizer"))
    path = None if tokenizer is None else tokenizer / "tokenizer.json"
    return path if path is not None and path.is_file() else None


def keep_model_files(recipe: Recipe, plan: Blueprint, folder: Path | None, target: Path) -> None:
    """Copy the config and the tokenizer into the run folder, for the export.

    The config is the model's own, but for the dtype, which is the training's.
    """
    target.mkdir(parents=True, exist_ok=True)
    if folder is None or recipe.model.init == "random":
        values = plan.config.to_diff_dict() | {"architectures": [type(plan.model).__name__]}
    else:
        values = json.loads((folder / "config.json").read_text())
        values.pop("torch_dtype", None)
    (target / "config.json").write_text(json.dumps(values | {"dtype": recipe.model.dtype}, indent=2) + "\n")
    named = recipe.model.tokenizer
    tokenizer = folder if named is None else find_folder(named, where=recipe.where("model.tokenizer"))
    if tokenizer is None:
        return
    for file in (*TOKENIZER_FILES, "generation_config.json"):
        if (tokenizer / file).is_file():
            shutil.copy2(tokenizer / file, target / file)
