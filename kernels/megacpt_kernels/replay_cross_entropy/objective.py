"""What is computed from one rank's slice of the logits, as plain numbers: shared by the reference and the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a row, for the rank that holds the columns [vocab_start, vocab_start + num_columns).

    With raw logits x, the row's loss is

        z   = softcap * tanh(logit_scale * x / softcap)             (softcap 0: z = logit_scale * x)
        lse = log(sum_j exp(z_j))
        nll = lse - z_label
        objective = (1 - label_smoothing) * nll + label_smoothing * (lse - mean_j z_j) + z_loss * lse^2

    where j runs over the vocab_size real columns of all ranks. The columns of a slice from num_columns on are padding:
    they are never read, and their gradient is zero.
    """

    vocab_start: int
    num_columns: int
    vocab_size: int
    ignore_index: int
    z_loss: float
    softcap: float
    logit_scale: float
    label_smoothing: float

    @classmethod
    def of_slice(
        cls,
        width: int,
        num_slices: int,
        *,
        vocab_start: int,
        vocab_size: int | None,
        ignore_index: int,
        z_loss: float,
        softcap: float,
        logit_scale: float,
        label_smoothing: float,
    ) -> Objective:
        """The objective for a slice of `width` columns, padding included; without a vocab_size no column is padding.

        Raises:
            ValueError: a number outside its range.
        """
        if vocab_size is None:
            vocab_size = width * num_slices
        if vocab_size < 1 or vocab_start < 0:
            raise ValueError(f"vocab_size must be at least 1 and vocab_start at least 0: {vocab_size}, {vocab_start}")
        if num_slices == 1 and (vocab_start or vocab_size > width):
            raise ValueError(
                f"the logits have {width} columns from {vocab_start} on, the vocabulary {vocab_size}: "
                "without an exchange they must hold all of it"
            )
        if softcap < 0 or logit_scale <= 0 or not 0 <= label_smoothing < 1:
            raise ValueError(
                "softcap must be at least 0, logit_scale above 0 and label_smoothing in [0, 1): "
                f"{softcap}, {logit_scale}, {label_smoothing}"
            )
        return cls(
            vocab_start=vocab_start,
            num_columns=min(max(vocab_size - vocab_start, 0), width),
            vocab_size=vocab_size,
            ignore_index=ignore_index,
            z_loss=z_loss,
            softcap=softcap,
            logit_scale=logit_scale,
            label_smoothing=label_smoothing,
        )

    @property
    def num_statistics(self) -> int:
        """Numbers per row that the ranks exchange: anchor, sum of exponentials, label's logit (and the logits' sum)."""
        return 4 if self.label_smoothing else 3


class Rows(NamedTuple):
    """What is known of each row once the ranks have met; all [T], single precision."""

    nll: Tensor
    """-log p(label); 0 where the label is ignored."""
    loss: Tensor
    """weight * objective; 0 where the label is ignored or the weight is 0."""
    anchor: Tensor
    log_sum: Tensor
    """lse is the anchor, in the implementation's own unit, plus this: two numbers keep more digits than one."""
    scale: Tensor
    """After `scan(write=True)`: the row's gradient is scale * (what stands in the logits' place)."""


class Passes(Protocol):
    """The passes over one rank's logits [T, V]; both the reference and the kernels' module implement them.

    The statistics that go from `scan` to `combine` are an implementation's own: all ranks must use the same one.
    """

    def scan(
        self, logits_TV: Tensor, labels_T: Tensor, weights_T: Tensor, objective: Objective, *, write: bool
    ) -> Tensor:
        """Read the logits once; return the row statistics [T, K].

        With `write`, also replace each logit by exp(z - anchor) * dz/dx, where the anchor is the row's own choice;
        rows without a weight and padding columns become 0. Not with label smoothing.
        """

    def combine(
        self,
        stats_RTK: Tensor,
        rank: int,
        labels_T: Tensor,
        weights_T: Tensor,
        objective: Objective,
        written_TV: Tensor | None,
    ) -> Rows:
        """Join the statistics of all ranks; set the label's element of `written_TV`, the result of the writing scan."""

    def differentiate(
        self,
        logits_TV: Tensor,
        labels_T: Tensor,
        factors_T: Tensor,
        rows: Rows,
        objective: Objective,
        out_TV: Tensor,
    ) -> None:
        """Write factor * d(objective)/d(logit) into `out_TV`, which may be `logits_TV`; 0 where the factor is 0."""
