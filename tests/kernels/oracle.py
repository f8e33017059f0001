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


class Expected(NamedTuple):
    """The loss of logits and its gradient, exact and by PyTorch's operations in the logits' type."""

    loss: Tensor
    gradient_TV: Tensor
    plain_loss: Tensor
    plain_gradient_TV: Tensor

    @classmethod
    def of(cls, logits_TV: Tensor, labels_T: Tensor, weights_T: Tensor, options: Options) -> Expected:
        """Low precision is widened first, as losses do; its gradient is rounded back."""

        def differentiated(leaf_TV: Tensor) -> tuple[Tensor, Tensor]:
            wide_TV = leaf_TV.to(torch.promote_types(leaf_TV.dtype, torch.float32))
            loss = plain_loss(wide_TV, labels_T, weights_T, options)
            return loss.detach(), torch.autograd.grad(loss, leaf_TV)[0]

        leaf_TV = logits_TV.detach()
        return cls(
            *differentiated(leaf_TV.double().requires_grad_()), *differentiated(leaf_TV.clone().requires_grad_())
        )

    def check_loss(self, loss: Tensor, *, terms: Tensor | float = 0.0) -> None:
        """As `assert_as_accurate`."""
        assert_as_accurate(loss, self.plain_loss, self.loss, terms=terms)

    def check_gradient(self, gradient_TV: Tensor, *, terms: Tensor | float, slack: float = 2.0) -> None:
        """As `assert_as_accurate`."""
        assert_as_accurate(gradient_TV, self.plain_gradient_TV, self.gradient_TV, terms=terms, slack=slack)


def distance(result: Tensor, exact: Tensor) -> float:
    """The norm of their difference, in double precision."""
    return float((result.detach().double() - exact.detach().double()).norm())


def assert_as_accurate(
    result: Tensor, plain: Tensor, exact: Tensor, *, terms: Tensor | float = 0.0, slack: float = 2.0
) -> None:
    """`result` is no further from `exact` than `slack` times what PyTorch's operations give in the same type.

    Four roundings of single precision are granted besides: of `exact`, or of `terms` where it is a small difference of
    those.
    """
    assert result.shape == exact.shape
    assert result.isfinite().all()
    size = max(float(exact.detach().double().norm()), float(torch.as_tensor(terms).double().norm()))
    assert distance(result, exact) <= slack * distance(plain, exact) + 4 * torch.finfo(torch.float32).eps * size


class Expected(NamedTuple):
    """The loss of logits and its gradient, exact and by PyTorch's operations in the logits' type."""

    loss: Tensor
    gradient_TV: Tensor
    plain_loss: Tensor
    plain_gradient_TV: Tensor

    @classmethod
    def of(cls, logits_TV: Tensor, labels_T: Tensor, weights_T: Tensor, options: Options) -> Expected:
        """Low precision is widened first, as losses do; its gradient is rounded back."""

        def differentiated(leaf_TV: Tensor) -> tuple[Tensor, Tensor]:
            wide_TV = leaf_TV.to(torch.promote_types(leaf_TV.dtype, torch.float32))
            loss = plain_loss(wide_TV, labels_T, weights_T, options)
            return loss.detach(), torch.autograd.grad(loss, leaf_TV)[0]

        leaf_TV = logits_TV.detach()
        return cls(
            *differentiated(leaf_TV.double().requires_grad_()), *differentiated(leaf_TV.clone().requires_grad_())
        )

    def check_loss(self, loss: Tensor, *, terms: Tensor | float = 0.0) -> None:
        """As `assert_as_accurate`."""
        assert_as_accurate(loss, self.plain_loss, self.loss, terms=terms)

    def check_gradient(self, gradient_TV: Tensor, *, terms: Tensor | float, slack: float = 2.0) -> None:
        """As `assert_as_accurate`."""
        assert_as_accurate(gradient_TV, self.plain_gradient_TV, self.gradient_TV, terms=terms, slack=slack)


def distance(result: Tensor, exact: Tensor) -> float:
    """The norm of their difference, in double precision."""
    return float((result.detach().double() - exact.detach().double()).norm())


def assert_as_accurate(
    result: Tensor, plain: Tensor, exact: Tensor, *, terms: Tensor | float = 0.0, slack: float = 2.0
) -> None:
    """`result` is no further from `exact` than `slack` times what PyTorch's operations give in the same type.

    Four roundings are granted besides: of `exact`, or of `terms` where the result is a small difference of those.
    """
    assert result.shape == exact.shape
    assert result.isfinite().all()
    size = max(float(exact.detach().double().norm()), float(torch.as_tensor(terms).double().norm()))
    assert distance(result, exact) <= slack * distance(plain, exact) + 4 * torch.finfo(result.dtype).eps * size
