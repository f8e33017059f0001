"""Cutting a decoder layer: what is refused, and what every part becomes. Numbers are compared in tests/parity."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from megacpt.errors import ModelError
from megacpt.model.blueprint import Blueprint
from megacpt.model.cut import cut_layer, layer_styles
from megacpt.parallel.group import TensorGroup
from megacpt.parallel.layers import ColumnParallelLinear, RowParallelLinear
from tests.model.whole import small_config

PAIR = TensorGroup(rank=0, size=2)


def layer_and_plan(model_type: str) -> tuple[nn.Module, dict[str, str]]:
    blueprint = Blueprint(small_config(model_type), torch.float32)
    return blueprint.base.layers[0], blueprint.tensor_plan


def cut(
    model_type: str,
    change: Callable[[nn.Module, dict[str, str]], None] = lambda layer, plan: None,
    group: TensorGroup = PAIR,
    sequence_parallel: bool = False,
) -> nn.Module:
    """The first layer of a small model, cut by its plan after `change`."""
    layer, plan = layer_and_plan(model_type)
    change(layer, plan)
    cut_layer(layer, plan, group, sequence_parallel=sequence_parallel, model_type=model_type)
    return layer


def partial_gradients(layer: nn.Module) -> set[str]:
    return {f"{name}.{leaf}" for name, part in layer.named_modules() for leaf in getattr(part, "partial_gradients", ())}


def test_linears_become_parallel_layers() -> None:
    layer = cut("llama")
    kinds = {name: type(module) for name, module in layer.named_modules() if hasattr(module, "weight")}
    column = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    row = ("self_attn.o_proj", "mlp.down_proj")
    norms = {name: kind for name, kind in kinds.items() if name not in (*column, *row)}
    assert {kinds[name] for name in column} == {ColumnParallelLinear}
    assert {kinds[name] for name in row} == {RowParallelLinear}
    assert set(norms) == {"input_layernorm", "post_attention_layernorm"}
    assert partial_gradients(layer) == set()


def test_norms_over_my_heads_have_partial_gradients() -> None:
    assert partial_gradients(cut("qwen3")) == {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}


def test_norms_between_the_regions_have_partial_gradients_where_they_see_a_part_of_the_sequence() -> None:
    expected = {"input_layernorm.weight", "post_attention_layernorm.weight"}
    assert partial_gradients(cut("llama", sequence_parallel=True)) == expected


def test_a_bias_behind_the_sum_has_partial_gradients_with_sequence_parallelism() -> None:
    def add_bias(layer: nn.Module, plan: dict[str, str]) -> None:
        with torch.device("meta"):
            layer.get_submodule("self_attn").o_proj = nn.Linear(32, 32)

    assert "self_attn.o_proj.bias" not in partial_gradients(cut("llama", add_bias))
    assert "self_attn.o_proj.bias" in partial_gradients(cut("llama", add_bias, sequence_parallel=True))


def test_a_group_of_one_changes_nothing() -> None:
    layer = cut("llama", group=TensorGroup())
    assert type(layer.get_submodule("mlp.up_proj")) is nn.Linear
    cut_layer(layer, {}, TensorGroup(), sequence_parallel=False, model_type="llama")


def test_a_plan_may_name_what_this_model_lacks() -> None:
    cut("llama", lambda layer, plan: plan.update({"layers.*.self_attn.gate_proj": "colwise"}))


def test_an_unknown_style() -> None:
    def change(layer: nn.Module, plan: dict[str, str]) -> None:
        plan["layers.*.mlp.up_proj"] = "packed_colwise"

    with pytest.raises(
        ModelError, match=r"'llama' has a style .* at 'mlp\.up_proj' \(found packed_colwise, expected col"
    ):
        cut("llama", change)


def test_no_plan() -> None:
    def change(layer: nn.Module, plan: dict[str, str]) -> None:
        plan.clear()

    with pytest.raises(ModelError, match=r"'llama' has no tensor-parallel plan .* Set parallel\.tensor to 1"):
        cut("llama", change)


def test_a_plan_of_the_head_alone_is_no_plan() -> None:
    with pytest.raises(ModelError, match="no tensor-parallel plan"):
        layer_styles({"lm_head": "colwise_gather_output"}, "llama")


def test_a_plan_that_splits_no_linear() -> None:
    def change(layer: nn.Module, plan: dict[str, str]) -> None:
        plan["layers.*.input_layernorm"] = "colwise"

    with pytest.raises(ModelError, match=r"'llama' splits 'input_layernorm', which is no linear layer"):
        cut("llama", change)


@pytest.mark.parametrize("addition", [nn.LayerNorm, lambda width: nn.Linear(width, width)], ids=["norm", "linear"])
def test_a_parameter_that_the_plan_forgot(addition: Callable[[int], nn.Module]) -> None:
    def change(layer: nn.Module, plan: dict[str, str]) -> None:
        layer.get_submodule("mlp").gate_norm = addition(8)

    with pytest.raises(ModelError, match=r"'mlp\.gate_norm' of 'llama' has parameters but no entry"):
        cut("llama", change)


def test_a_bare_parameter_of_a_region() -> None:
    """Attention sinks, for one: a number for each head."""

    def change(layer: nn.Module, plan: dict[str, str]) -> None:
        layer.get_submodule("self_attn").sinks = nn.Parameter(torch.zeros(4))

    with pytest.raises(ModelError, match=r"'self_attn\.?' of 'llama' has parameters but no entry"):
        cut("llama", change)


def test_where_activations_are_whole_a_copy_is_right() -> None:
    """OLMo 2 gathers queries and keys before its norms over all heads."""
    layer, plan = layer_and_plan("olmo2")
    assert not any("q_norm" in name for name in plan)
    cut_layer(layer, plan, PAIR, sequence_parallel=False, model_type="olmo2")
    assert isinstance(layer.get_submodule("self_attn.q_norm"), nn.Module)
    assert layer.get_submodule("self_attn.q_proj").gather_output


@pytest.mark.parametrize("size, name, width", [(3, "self_attn.q_proj", 32), (32, "self_attn.k_proj", 16)])
def test_a_width_that_the_group_does_not_divide(size: int, name: str, width: int) -> None:
    message = rf"'{name}' of 'llama' cannot be split over {size} tensor-parallel ranks \(found width {width}\)"
    with pytest.raises(ModelError, match=message):
        cut("llama", group=TensorGroup(rank=0, size=size))
