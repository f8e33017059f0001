"""The optimizer of this rank's parameters: what is frozen, which groups there are, what AdamW does besides."""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from torch import nn

from megacpt.engine.settings import EngineSettings
from megacpt.errors import ModelError
from megacpt.optim.adamw import ContinualAdamW
from megacpt.optim.groups import multiplier_of, parameter_groups, split_to


def make_optimizer(named_parameters: Iterable[tuple[str, nn.Parameter]], settings: EngineSettings) -> ContinualAdamW:
    """Freeze the parameters whose learning rate is 0, and make an optimizer of the others. Collective.

    Args:
        named_parameters: Hugging Face name and parameter of all that this rank holds.
        settings: the numbers.

    Raises:
        ModelError: a rank would have nothing to train.
    """
    named = list(named_parameters)
    for name, parameter in named:
        if multiplier_of(name, settings.lr_multipliers) == 0:
            parameter.requires_grad_(False)
    groups = parameter_groups(named, settings.weight_decay, settings.lr_multipliers)
    counts: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(counts, len(groups))
    if not all(counts):
        raise ModelError(
            "every parameter of a pipeline stage is frozen, so its backward has nothing to begin with",
            where="optimizer.lr_multipliers",
            hint="Freeze less, or set parallel.pipeline lower or parallel.partition otherwise.",
        )
    return ContinualAdamW(split_to(groups, max(counts)), settings.betas, settings.eps, settings.additions)
