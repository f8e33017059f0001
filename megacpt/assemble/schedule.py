"""The learning rate of a recipe as a function of tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from megacpt.optim.schedule import WSD, Chain, Constant, Cosine, InfiniteCosine, InfiniteInverseSqrt, Schedule
from megacpt.recipe import Recipe, Resolved, ResolvedRate, resolve_rates

DecayShape = Literal["linear", "one_minus_sqrt"]


def schedule(rates: Sequence[ResolvedRate]) -> Schedule | Chain:
    """The schedule that `rates` describe, one after another."""
    if len(rates) == 1:
        return _schedule(rates[0])
    return Chain(tuple((rate.from_tokens, _schedule(rate)) for rate in rates))


def _schedule(rate: ResolvedRate) -> Schedule:
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
    tokens = saved["tokens"]
    then, now = schedule(resolve_rates(trunk, resolved.data))(tokens), schedule(resolved.rates)(tokens)
    return None if math.isclose(then, now, rel_tol=1e-9) else (then, now)
