"""The buffer that DeepSpeed sums the head's gradient in, for the loss to add to directly.

With bf16 weights and ZeRO-1, DeepSpeed adds each micro-batch's bf16 gradients to fp32 buffers of its own. The loss
makes the head's gradient in its forward, chunk by chunk: added straight to the buffer it needs no tensor of the head's
size besides, and is not rounded to bf16 on the way. Elsewhere autograd carries the gradient: under ZeRO 2 and 3 no rank
has a whole buffer, and fp32 training is for tests and pilots.

The price: two of DeepSpeed's internals are set here, as its hook of the weight's gradient would.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer


class HeadGradient:
    """One weight's place in DeepSpeed's fp32 gradients; made by `of`.

    Attributes:
        buffer_VD: the weight's gradient, a view into them.
    """

    def __init__(self, optimizer: BF16_Optimizer, weight: torch.nn.Parameter, group: int, index: int) -> None:
        self.optimizer = optimizer
        self.group, self.index = group, index
        gradient: torch.Tensor = optimizer.fp32_groups_gradients[group][index]
        self.buffer_VD = gradient.view(weight.shape)
        weight._hp_grad = gradient  # type: ignore[attr-defined]  # what tied stages sum

    @classmethod
    def of(cls, optimizer: Any, weight: torch.nn.Parameter) -> HeadGradient | None:
        """The place of `weight`; None where the optimizer has no whole fp32 gradient of it, or does not train it."""
        if not (isinstance(optimizer, BF16_Optimizer) and optimizer.grad_acc_dtype is torch.float32):
            return None
        for group, weights in enumerate(optimizer.bf16_groups):
            for index, candidate in enumerate(weights):
                if candidate is weight:
                    return cls(optimizer, weight, group, index)
        return None

    def begin_step(self) -> None:
        """Say that there will be a gradient: DeepSpeed leaves others out of the norm and the clipping."""
        self.optimizer.fp32_groups_has_gradients[self.group][self.index] = True
