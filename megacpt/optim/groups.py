"""Which parameters weight decay acts on.

Matrices are decayed; vectors (norm weights, biases) are not, for a norm's scale or a bias has no reason to be near 0.
Embeddings and the head are matrices and are decayed, as in Megatron-LM, GPT-NeoX and nanoGPT (OLMo 2 spares its
embedding; what a continued model was trained with is the better guide than the difference between the two).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> torch.optim.AdamW:
    """torch's AdamW over `parameter_groups`, fused where there is CUDA; its rate is set before every step."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=torch.cuda.is_available() or None)


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters into a decayed and an undecayed group, for a torch optimizer.

    Args:
        named_parameters: what `module.named_parameters()` yields; frozen parameters are left out.
        weight_decay: the decay of the first group.

    Returns:
        Up to two groups, decayed first; an empty group is left out, since DeepSpeed's ZeRO cannot flatten it.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            # Under ZeRO-3 a parameter is an empty vector between its uses and keeps its own shape in `ds_shape`.
            shape = getattr(parameter, "ds_shape", parameter.shape)
            (undecayed if len(shape) < 2 or name.endswith(".bias") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
