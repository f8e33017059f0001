"""What is minimised: the replay-weighted cross-entropy of the whole global batch.

A token's weight already carries the division by the global batch's total weight (`megacpt.data.batch`), so a
micro-batch's loss is its share of the exact weighted mean, and sums are right however the batch is split over
micro-batches and ranks. DeepSpeed averages over micro-batches, by a factor on the loss, and over data-parallel ranks,
by one on the gradients; `loss_factor` and `weight_factor` undo the one and the other. Only the second reaches a
gradient that is made in the forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from megacpt.parallel.group import TensorGroup
from megacpt_kernels import Teacher, fused_linear_replay_cross_entropy

Targets = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Distillation:
    """How much the predictions are held to a teacher's, and where.

        loss of a token += its weight * weight * temperature^2 * KL(teacher || student at this temperature)

    Attributes:
        weight: the factor beside the cross-entropy's 1.
        temperature: what both sides' logits are divided by.
        domains: the numbers of the domains whose tokens it acts on.
        of_average: the teacher follows the running average of the model's weights.
    """

    weight: float
    temperature: float
    domains: tuple[int, ...]
    of_average: bool = False


class Objective:
    """Head product and loss of one micro-batch.

    Args:
        group: the tensor-parallel group over which the head's rows are split.
        vocab_size: the number of real tokens; padding columns are masked.
        num_domains: how many domains are counted separately.
        z_loss: lambda in lambda * logsumexp^2 (PaLM, arXiv:2204.02311, section 5).
        softcap, logit_scale: what the architecture does to its logits.
        kernel: "auto", "reference" or "triton".
        distillation: of a teacher, whose hidden states and head rows then come with the student's.

    Attributes:
        loss_factor: a factor on the loss, which the engine takes back before it differentiates.
        weight_factor: a factor on the weights, and so on loss and gradients; `domain_sums` are free of it.
        grad_head_VD: an fp32 buffer [V/tp, D] that the head's gradient is added to in the forward, instead of reaching
            the head by autograd as a whole tensor of its own. It is free of `loss_factor`.
        domain_sums: [num_domains, 4] fp32 of the last micro-batch: sum of weight * loss, sum of nll (unweighted, nats),
            tokens, sum of KL(teacher || student) (likewise).
    """

    def __init__(
        self,
        group: TensorGroup,
        vocab_size: int,
        num_domains: int,
        *,
        z_loss: float = 0.0,
        softcap: float = 0.0,
        logit_scale: float = 1.0,
        kernel: Literal["auto", "reference", "triton"] = "auto",
        distillation: Distillation | None = None,
    ) -> None:
        self.group = group
        self.vocab_size = vocab_size
        self.num_domains = num_domains
        self.z_loss = z_loss
        self.softcap = softcap
        self.logit_scale = logit_scale
        self.kernel = kernel
        self.distillation = distillation
        self.loss_factor = 1.0
        self.weight_factor = 1.0
        self.grad_head_VD: torch.Tensor | None = None
        self.domain_sums = torch.zeros(num_domains, 4)

    def __call__(self, outputs: tuple[torch.Tensor, ...], targets: Targets) -> torch.Tensor:
        """The loss times both factors, a 0-d fp32 tensor.

        Args:
            outputs: hidden [B, S, D] and this rank's head rows [V/tp, D]; then the teacher's, if there is one.
            targets: labels [B, S] (-100: none), weights [B, S] fp32, domains [B, S].
        """
        hidden, weight, *teacher = outputs
        labels, weights, domains = targets
        weights = weights * self.weight_factor
        # Without a gradient of the hidden states, as where all but the head is frozen, the head's must reach autograd.
        buffer = self.grad_head_VD if hidden.requires_grad else None
        result = fused_linear_replay_cross_entropy(
            hidden.flatten(0, 1),
            weight if buffer is None else weight.detach(),
            labels.flatten(),
            weights.flatten(),
            vocab_start=self.group.rank * weight.shape[0],
            vocab_size=self.vocab_size,
            z_loss=self.z_loss,
            softcap=self.softcap,
            logit_scale=self.logit_scale,
            domains_T=domains.flatten(),
            num_domains=self.num_domains,
            exchange=self.group if self.group.size > 1 else None,
            kernel=self.kernel,
            grad_head_VD=buffer,
            teacher=self._teacher(teacher[0], teacher[1], weights, domains) if teacher and self.distillation else None,
        )
        weighted, *counts = result.domain_sums.unbind(1)
        divergences = torch.zeros_like(weighted)
        if result.divergence_T is not None:
            numbers = torch.arange(self.num_domains, device=domains.device)[:, None]
            divergences = result.divergence_T.double().where(domains.flatten() == numbers, 0).sum(1).to(weighted.dtype)
        self.domain_sums = torch.stack([weighted / self.weight_factor, *counts, divergences], 1)
        return result.loss * self.loss_factor

    def _teacher(
        self, hidden: torch.Tensor, weight: torch.Tensor, weights: torch.Tensor, domains: torch.Tensor
    ) -> Teacher:
        assert self.distillation is not None
        counted = torch.zeros_like(domains, dtype=torch.bool)
        for number in self.distillation.domains:  # a tensor of the numbers would have to be copied to the device
            counted |= domains == number
        factors = (weights * self.distillation.weight).where(counted, 0)
        return Teacher(hidden.flatten(0, 1), weight, factors.flatten(), self.distillation.temperature)

    @contextmanager
    def cross_entropy(self) -> Iterator[None]:
        """Inside, nothing is minimised beside the weighted cross-entropy: no z-loss, no teacher."""
        kept = self.z_loss, self.distillation
        self.z_loss, self.distillation = 0.0, None
        try:
            yield
        finally:
            self.z_loss, self.distillation = kept

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Inside, the loss is the plain weighted sum of nll: no factors either."""
        kept = self.loss_factor, self.weight_factor
        self.loss_factor, self.weight_factor = 1.0, 1.0
        try:
            with self.cross_entropy():
                yield
        finally:
            self.loss_factor, self.weight_factor = kept
