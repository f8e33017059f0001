"""The losses as PyTorch's own operations say them, and how far from the truth those are themselves."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor


class Options(TypedDict, total=False):
    """The keywords that change what is computed, as the ops call them."""

    z_loss: float
    softcap: float
    logit_scale: float
    label_smoothing: float


OPTIONS: dict[str, Options] = {
    "plain": {},
    "z_loss": {"z_loss": 0.01},
    "softcap": {"softcap": 5.0},
    "scaled": {"logit_scale": 0.25},
    "smoothed": {"label_smoothing": 0.1},
    "all": {"z_loss": 0.01, "softcap": 8.0, "logit_scale": 1.5, "label_smoothing": 0.1},
    "all_but_smoothed": {"z_loss": 0.01, "softcap": 8.0, "logit_scale": 1.5},
}


def plain_loss(logits_TV: Tensor, labels_T: Tensor, weights_T: Tensor, options: Options) -> Tensor:
    """sum of weight * objective, in the logits' own type; rows of weight 0 or without a label are left out."""
    kept = (labels_T != -100) & (weights_T != 0)
    logits = logits_TV[kept] * options.get("logit_scale", 1.0)
    if softcap := options.get("softcap"):
        logits = softcap * torch.tanh(logits / softcap)
    smoothing = options.get("label_smoothing", 0.0)
    losses = F.cross_entropy(logits, labels_T[kept], reduction="none", label_smoothing=smoothing)
    losses = losses + options.get("z_loss", 0.0) * logits.logsumexp(1).square()
    return (losses * weights_T[kept].to(losses.dtype)).sum()


def distance(result: Tensor, exact: Tensor) -> float:
    """The norm of their difference, in double precision."""
    return float((result.detach().double() - exact.detach().double()).norm())


def assert_as_accurate(result: Tensor, plain: Tensor, exact: Tensor, *, terms: float = 0.0, slack: float = 2.0) -> None:
    """`result` is no further from `exact` than `slack` times what PyTorch's operations give in the same type.

    They are granted the rounding of their result, which they may escape by luck. Where the result is made of
    differences of `terms` (their norm), four roundings of those in single precision are granted besides.
    """
    assert result.shape == exact.shape
    assert result.isfinite().all()
    rounding = torch.finfo(result.dtype).eps / 2 * float(exact.double().norm())
    of_terms = 4 * torch.finfo(torch.float32).eps * terms
    assert distance(result, exact) <= slack * max(distance(plain, exact), rounding) + of_terms


class Expected(NamedTuple):
    """The loss of logits and its gradient, exact and by PyTorch's operations in the logits' type."""

    loss: Tensor
    gradient_TV: Tensor
    plain_loss: Tensor
    plain_gradient_TV: Tensor
    terms: float
    """The norm of what the losses and the exponents of the probabilities are differences of: weighted logits."""

    @classmethod
    def of(cls, logits_TV: Tensor, labels_T: Tensor, weights_T: Tensor, options: Options) -> Expected:
        """Low precision is widened first, as losses do; its gradient is rounded back."""

        def differentiated(leaf_TV: Tensor) -> tuple[Tensor, Tensor]:
            wide_TV = leaf_TV.to(torch.promote_types(leaf_TV.dtype, torch.float32))
            loss = plain_loss(wide_TV, labels_T, weights_T, options)
            return loss.detach(), torch.autograd.grad(loss, leaf_TV)[0]

        values_TV = logits_TV.detach()
        largest_T = values_TV.double().masked_fill(values_TV < -1e6, 0).abs().amax(1).clamp(min=1)
        return cls(
            *differentiated(values_TV.double().requires_grad_()),
            *differentiated(values_TV.clone().requires_grad_()),
            terms=float((largest_T * weights_T).norm()) * options.get("logit_scale", 1.0),
        )

    def check(self, loss: Tensor, gradient_TV: Tensor, *, slack: float = 2.0) -> None:
        """Both are as accurate as PyTorch's operations; `slack` is for the gradient."""
        assert_as_accurate(loss, self.plain_loss, self.loss, terms=self.terms)
        assert_as_accurate(gradient_TV, self.plain_gradient_TV, self.gradient_TV, terms=self.terms, slack=slack)
