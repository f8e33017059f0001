"""Filling a stage's empty parameters with exactly the slices that this rank holds.

Stages are made on the meta device; each parameter is then read, already cut, from a `WeightSource`, so that no rank
ever holds a whole model, or even a whole matrix that it has only a part of. Names are Hugging Face's throughout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from copy import deepcopy
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from megacpt.errors import ModelError
from megacpt.parallel.group import TensorGroup
from megacpt.parallel.slices import Slice


class WeightSource(Protocol):
    """Where weights come from."""

    def read(self, name: str, piece: Slice | None) -> torch.Tensor:
        """The tensor of this Hugging Face name, or its `piece`; on the CPU."""
        ...


class RandomWeights:
    """Freshly initialised weights, as transformers initialises them; each a function of (seed, name) alone.

    So a random model is the same on every layout.
    """

    def __init__(self, model: PreTrainedModel, seed: int) -> None:
        self.owners = dict(model.named_modules())
        self.initialise = model._init_weights
        self.seed = seed

    def read(self, name: str, piece: Slice | None) -> torch.Tensor:
        owner_name, _, leaf = name.rpartition(".")
        owner = deepcopy(self.owners[owner_name]).to_empty(device="cpu")
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            self.initialise(owner)
        whole = owner.get_parameter(leaf).detach()
        return whole if piece is None else piece.cut(whole)


def parameters_with_slices(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, Slice | None]]:
    """Every parameter below `module`: its name, the submodule that owns it, its name there, and what slice it is."""
    for owner_name, owner in module.named_modules():
        slices: dict[str, Slice] = getattr(owner, "parameter_slices", {})
        for leaf, _ in owner.named_parameters(recurse=False):
            yield (f"{owner_name}.{leaf}" if owner_name else leaf), owner, leaf, slices.get(leaf)


def fill(module: nn.Module, hf_name: str, source: WeightSource, group: TensorGroup, dtype: torch.dtype) -> None:
    """Replace the meta parameters of `module`, which is `hf_name` in the Hugging Face model, by real ones.

    Raises:
        ModelError: a tensor's shape is not the one that the config promises, or it holds no floats of 16 bits or more.
    """
    for name, owner, leaf, piece in list(parameters_with_slices(module)):
        empty = owner.get_parameter(leaf)
        tensor = source.read(f"{hf_name}.{name}", piece)
        if tensor.shape != empty.shape:
            raise ModelError(
                f"the weights do not fit the model's config, at '{hf_name}.{name}'",
                found=f"shape {list(tensor.shape)}" + ("" if piece is None else " of this rank's slice"),
                expected=list(empty.shape),
                hint="config.json and the weights are of different models.",
            )
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ModelError(
                f"the weights are quantised, at '{hf_name}.{name}'",
                found=tensor.dtype,
                hint="Their scales would be lost: take the model that they were made from.",
            )
        parameter = nn.Parameter(tensor.to(dtype).contiguous(), requires_grad=empty.requires_grad)
        setattr(owner, leaf, parameter)
        mark(parameter, group, sliced=piece is not None, partial=leaf in getattr(owner, "partial_gradients", ()))


def mark(parameter: nn.Parameter, group: TensorGroup, *, sliced: bool, partial: bool) -> None:
    """Tell the engine what this rank's copy of a parameter is.

    Args:
        parameter: the parameter.
        group: the tensor-parallel group.
        sliced: every rank holds another part, so the gradient norm counts all of them (unmarked ones it counts once).
        partial: every rank's gradient is only a part of the sum.
    """
    if group.size == 1:
        return
    if sliced:
        parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
    if partial:
        parameter.register_hook(lambda gradient: group.all_reduce(gradient.clone()))
