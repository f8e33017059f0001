"""The learning rate of a recipe as a function of tokens."""

from __future__ import annotations

from typing import Any, Literal, cast

from megacpt.optim.schedule import WSD, Constant, Cosine, InfiniteCosine, InfiniteInverseSqrt, Schedule
from megacpt.recipe import ResolvedRate

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
