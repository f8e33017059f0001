"""Filling stages: random weights that no layout changes, and weights that do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from megacpt.errors import ModelError
from megacpt.model.blueprint import Blueprint
from megacpt.model.fill import RandomWeights, fill, mark, parameters_with_slices
from megacpt.parallel.group import TensorGroup
from megacpt.parallel.layers import ColumnParallelLinear
from megacpt.parallel.slices import Slice, join
from tests.model.whole import small_config

NAMES = ["model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"]


class Fixed:
    """A source with one answer."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def read(self, name: str, piece: Slice | None) -> torch.Tensor:
        return self.tensor


def random_weights(seed: int = 0) -> RandomWeights:
    return RandomWeights(Blueprint(small_config("llama"), torch.float32).model, seed)


@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize("dim, count, padded", [(0, 2, None), (0, 2, 128), (1, 4, None)])
def test_random_weights_do_not_depend_on_the_slicing(name: str, dim: int, count: int, padded: int | None) -> None:
    whole = random_weights().read(name, None)
    source = random_weights()
    parts = [source.read(name, Slice(dim, index, count, padded)) for index in reversed(range(count))][::-1]
    assert torch.equal(join(parts, dim, whole.shape[dim]), whole)


def test_random_weights_follow_from_seed_and_name() -> None:
    layers = [f"model.layers.{index}.self_attn.q_proj.weight" for index in (0, 1)]
    first, second = (random_weights().read(name, None) for name in layers)
    assert not torch.equal(first, second)
    assert not torch.equal(first, random_weights(seed=1).read(layers[0], None))
    state = torch.get_rng_state()
    assert torch.equal(first, random_weights().read(layers[0], None))
    assert torch.equal(torch.get_rng_state(), state)


def test_random_weights_are_drawn_as_transformers_draws_them() -> None:
    config = small_config("llama")
    theirs = dict(AutoModelForCausalLM.from_config(config).named_parameters())
    for name in NAMES:
        ours = random_weights().read(name, None)
        assert ours.shape == theirs[name].shape
        assert ours.std().item() == pytest.approx(theirs[name].std().item(), rel=0.1, abs=1e-12)
    padding = random_weights().read(NAMES[0], None)[config.pad_token_id]
    assert padding.count_nonzero() == theirs[NAMES[0]][config.pad_token_id].count_nonzero() == 0


def test_weights_of_another_shape_are_named() -> None:
    with torch.device("meta"):
        linear = nn.Linear(6, 4)
    column = ColumnParallelLinear(linear, TensorGroup(rank=0, size=2))
    with pytest.raises(
        ModelError, match=r"at 'up\.weight' \(found shape \[4, 6\] of this rank's slice, expected \[2, 6\]\)"
    ):
        fill(column, "up", Fixed(torch.zeros(4, 6)), TensorGroup(rank=0, size=2), torch.float32)
    with pytest.raises(ModelError, match=r"at 'up\.weight' \(found shape \[1\], expected \[4, 6\]\)"):
        fill(linear, "up", Fixed(torch.zeros(1)), TensorGroup(), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_quantised_weights_are_refused(dtype: torch.dtype) -> None:
    with torch.device("meta"):
        linear = nn.Linear(6, 4, bias=False)
    with pytest.raises(ModelError, match=rf"quantised, at 'up\.weight' \(found {dtype}\)"):
        fill(linear, "up", Fixed(torch.ones(4, 6).to(dtype)), TensorGroup(), torch.float32)


def test_parameters_come_with_their_slices() -> None:
    with torch.device("meta"):
        block = nn.ModuleDict({"norm": nn.LayerNorm(6), "linear": nn.Linear(6, 4, bias=False)})
    block["linear"] = ColumnParallelLinear(block["linear"], TensorGroup(rank=1, size=2))  # type: ignore[arg-type]
    slices = {name: piece for name, _, _, piece in parameters_with_slices(block)}
    assert slices == {"norm.weight": None, "norm.bias": None, "linear.weight": Slice(dim=0, index=1, count=2)}


class Doubling(TensorGroup):
    """Two ranks that always hold the same."""

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return 2 * tensor


def test_partial_gradients_are_summed_and_slices_marked() -> None:
    group = Doubling(rank=0, size=2)
    partial, sliced = (nn.Parameter(torch.ones(3)) for _ in range(2))
    mark(partial, group, sliced=False, partial=True)
    mark(sliced, group, sliced=True, partial=False)
    (partial * sliced).sum().backward()
    assert partial.grad is not None and partial.grad.tolist() == [2.0] * 3
    assert sliced.grad is not None and sliced.grad.tolist() == [1.0] * 3
    # DeepSpeed counts a parameter without the mark once per tensor-parallel group.
    assert getattr(sliced, "tensor_model_parallel", False) and not hasattr(partial, "tensor_model_parallel")


def test_a_group_of_one_needs_no_marks() -> None:
    parameter = nn.Parameter(torch.ones(3))
    mark(parameter, TensorGroup(), sliced=True, partial=True)
    assert not hasattr(parameter, "tensor_model_parallel") and not parameter._backward_hooks
