"""Which parameters are trained, at which share of the learning rate, and which ones weight decay acts on.

Matrices are decayed; vectors (norm weights, biases) are not, for a norm's scale or a bias has no reason to be near 0.
Embeddings and the head are matrices and are decayed, as in Megatron-LM, GPT-NeoX and nanoGPT (OLMo 2 spares its
embedding; what a continued model was trained with is the better guide than the difference between the two).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from torch import nn


def multiplier_of(name: str, multipliers: Mapping[str, float]) -> float:
    """The factor on the learning rate of the parameter `name`: that of the first pattern that matches it, else 1.

    Args:
        name: in Hugging Face's form.
        multipliers: pattern -> factor; `*`, `?` and `[0-4]` stand for what they do in file names.
    """
    return next((factor for pattern, factor in multipliers.items() if fnmatchcase(name, pattern)), 1.0)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    multipliers: Mapping[str, float] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Split trainable parameters into decayed and undecayed groups, a pair for each learning rate.

    Args:
        named_parameters: names, as `multipliers` has them, and parameters; frozen parameters are left out.
        weight_decay: the decay of the decayed groups.
        multipliers: as for `multiplier_of`.

    Returns:
        Groups for a torch optimizer; an empty group is left out, since DeepSpeed's ZeRO cannot flatten it.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            # Under ZeRO-3 a parameter is an empty vector between its uses and keeps its own shape in `ds_shape`.
            shape = getattr(parameter, "ds_shape", parameter.shape)
            is_decayed = len(shape) >= 2 and not name.endswith(".bias")
            groups.setdefault((multiplier_of(name, multipliers), is_decayed), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if is_decayed else 0.0, "lr_multiplier": multiplier}
        for (multiplier, is_decayed), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def split_to(groups: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`groups` cut into `count`, the largest first, without a change to any parameter's update.

    DeepSpeed's ZeRO-1 sums the gradient norm over pipeline stages group by group, so all stages need as many groups.

    Raises:
        ValueError: there are not as many parameters.
    """
    groups = list(groups)
    while len(groups) < count:
        largest = max(range(len(groups)), key=lambda index: len(groups[index]["params"]))
        whole = groups.pop(largest)
        parameters = whole["params"]
        half = len(parameters) // 2
        if not half:
            raise ValueError(f"{count} groups cannot be made of {len(groups) + 1} parameters")
        groups[largest:largest] = [whole | {"params": part} for part in (parameters[:half], parameters[half:])]
    return groups
