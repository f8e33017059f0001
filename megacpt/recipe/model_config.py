"""The model's own config beside what the recipe promises of it.

`model.config` holds values that config.json must have. A model that differs in one of them trains without an error and
is spoilt (rope_theta is the classic), so a contradiction stops the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from megacpt.errors import ModelError, RecipeError
from megacpt.recipe.architecture import Architecture
from megacpt.recipe.rules import refuse
from megacpt.recipe.schema import Recipe


def find_architecture(recipe: Recipe) -> Architecture | None:
    """The recipe's architecture if it is at hand: from the model folder's config.json, or from `model.config`.

    Raises:
        RecipeError: config.json breaks a promise of `model.config`.
        ModelError: config.json cannot be read, or lacks a size.
    """
    file = Path(recipe.model.path or "") / "config.json"
    if recipe.model.path and file.is_file():
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot read the model's config: {error}", where=str(file)) from error
        check_promises(recipe, config, str(file))
        return Architecture.from_config(config, str(file))
    promised = recipe.model.config
    if recipe.model.init == "random" or {"hidden_size", "num_hidden_layers", "vocab_size"} <= promised.keys():
        return Architecture.from_config(promised, recipe.where("model.config"))
    return None


def check_promises(recipe: Recipe, config: Mapping[str, Any], where: str, *, is_complete: bool = False) -> None:
    """Refuse a Hugging Face config that contradicts `model.config`.

    A key that config.json lacks has its architecture's default, which only transformers knows. Check the config that
    transformers has completed, too.

    Args:
        recipe: the recipe whose promises are checked.
        config: the model's config as a dictionary.
        where: what to call it in an error.
        is_complete: transformers has completed it: a promised key that it lacks, or leaves empty, is a contradiction
            (a misspelt one would promise nothing); otherwise such a key is passed over.

    Raises:
        RecipeError: with every contradiction.
    """
    actual, promised = _flat(config), _flat(recipe.model.config)
    refuse(
        [
            RecipeError(
                "the model is not the one that the recipe expects",
                where=recipe.where(f"model.config.{key}"),
                found=f"{actual[key]!r} in {where}" if key in actual else f"no such key in {where}",
                expected=repr(value),
                hint=_suggestion(key, actual),
            )
            for key, value in promised.items()
            if (is_complete or actual.get(key) is not None) and (key not in actual or actual[key] != value)
        ]
    )


def _suggestion(key: str, actual: Mapping[str, Any]) -> str:
    nearest = [] if key in actual else get_close_matches(key, actual, n=1)
    return f"Did you mean {nearest[0]}?" if nearest else "Mend the recipe, or take another model."


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the rotary embedding's values beside the others, by the names that they had before transformers 5.

    It moved `rope_theta` and `rope_scaling` into `rope_parameters`, which has a mapping per kind of layer where they
    differ: there `rope_theta` was that of full attention, `rope_local_base_freq` that of sliding windows (Gemma 3).
    """
    rotary = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    full, sliding = rotary.pop("full_attention", None) or {}, rotary.pop("sliding_attention", None) or {}
    local = {"rope_local_base_freq": sliding["rope_theta"]} if "rope_theta" in sliding else {}
    others = {key: value for key, value in config.items() if key not in ("rope_parameters", "rope_scaling")}
    return {**rotary, **full, **local, **others}
