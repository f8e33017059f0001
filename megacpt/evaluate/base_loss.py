"""The base model's loss beside the one that it is known to have.

What spoils a base model without an error (other special tokens, another rope, a head that is not its own) shows in its
loss before the first step, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping

from megacpt.errors import ModelError
from megacpt.observe.record import EvaluationRecord

TOLERANCE_NATS = 0.02
"""Kernels and dtypes move the mean of a million tokens by some thousandths."""


def check_base_loss(known: Mapping[str, float], record: EvaluationRecord) -> None:
    """Refuse to train a base model that is not the known one; evaluations after the first step are passed over.

    Args:
        known: domain -> its held-out loss in nats per token.
        record: an evaluation of all these domains.

    Raises:
        ModelError: a loss is off, or no number.
    """
    if record.step:
        return
    losses = {name: record.domains[name].loss for name in known}
    off = {name: loss for name, loss in losses.items() if not abs(loss - known[name]) <= TOLERANCE_NATS}
    if off:
        raise ModelError(
            "before its first step the model has another loss than it is known to have",
            where="evaluation.base_loss",
            found=", ".join(f"{name} {loss:.4f}" for name, loss in off.items()),
            expected=f"{', '.join(f'{name} {known[name]:.4f}' for name in off)}, to {TOLERANCE_NATS} nats per token",
            hint="Usually the shards have other special tokens or another tokenizer, the rope or the weights are "
            "not the base model's, or the value was stored with other held-out text, tokens_per_domain or rows.",
        )
