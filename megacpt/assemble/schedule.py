"""The learning rate of a recipe as a function of tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

from megacpt.optim.schedule import WSD, Constant, Cosine, InfiniteCosine, InfiniteInverseSqrt, Schedule
from megacpt.recipe import Recipe, Resolved, ResolvedRate, resolve_rate

DecayShape = Literal["linear", "one_minus_sqrt"]


def schedule(rate: ResolvedRate) -> Schedule:
    """The schedule that `rate` describes."""
    span: dict[str, Any] = {
        "peak": rate.peak,
        "end_tokens": rate.total_tokens,
        "warmup_tokens": rate.warmup_tokens,
    }
    if rate.schedule == "constant":
        return Constant(**span)
    if rate.schedule == "cosine":
        return Cosine(**span, minimum=rate.min)
    if rate.schedule == "wsd":
        return WSD(
            **span, minimum=rate.min, decay_tokens=rate.decay_tokens, decay_shape=cast(DecayShape, rate.decay_shape)
        )
    infinite = {"infinite_cosine": InfiniteCosine, "infinite_inverse_sqrt": InfiniteInverseSqrt}[rate.schedule]
    return infinite(
        **span,
        constant=rate.constant,
        cooldown_tokens=rate.cooldown_tokens,
        anneal_tokens=rate.anneal_tokens,
        minimum=rate.min if rate.anneal_tokens else None,
    )


def rate_jump(resolved: Resolved, saved: Mapping[str, Any]) -> tuple[float, float] | None:
    """(then, now): the rate at a checkpoint by its own recipe and by the present one, where they differ.

    A branch changes rates after the checkpoint; one that changes those before it does not go on where the trunk was.

    Args:
        resolved: the present recipe.
        saved: the checkpoint's state.
    """
    trunk = Recipe.model_validate(saved["recipe"])
    total_tokens = math.ceil(trunk.training.tokens / resolved.tokens_per_step) * resolved.tokens_per_step
    tokens = saved["tokens"]
    then, now = schedule(resolve_rate(trunk, total_tokens))(tokens), schedule(resolved.lr)(tokens)
    return None if math.isclose(then, now, rel_tol=1e-9) else (then, now)
