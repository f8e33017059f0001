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
        ModelError: a rank would have nothing to train, or too little to make as many parameter groups as another.
    """
    named = list(named_parameters)
    for name, parameter in named:
        if multiplier_of(name, settings.lr_multipliers) == 0:
            parameter.requires_grad_(False)
    groups = parameter_groups(named, settings.weight_decay, settings.lr_multipliers)
    sizes: list[tuple[int, int]] = [(0, 0)] * dist.get_world_size()
    dist.all_gather_object(sizes, (len(groups), sum(len(group["params"]) for group in groups)))
    num_groups, num_tensors = max(groups for groups, _ in sizes), min(tensors for _, tensors in sizes)
    if num_tensors == 0:
        raise ModelError(
            "every parameter of a pipeline stage is frozen, so its backward has nothing to begin with",
            where="optimizer.lr_multipliers",
            hint="Freeze less, or set parallel.pipeline lower or parallel.partition otherwise.",
        )
    if num_tensors < num_groups:
        raise ModelError(
            "a pipeline stage trains fewer tensors than another has groups of them, by learning rate and weight decay; "
            "DeepSpeed needs as many groups on every stage",
            where="optimizer.lr_multipliers",
            found=f"{num_tensors} tensors",
            expected=f"at least {num_groups}",
            hint="Freeze less, use fewer different factors, or set parallel.pipeline or parallel.partition otherwise.",
        )
    return ContinualAdamW(split_to(groups, num_groups), settings.betas, settings.eps, settings.additions)
