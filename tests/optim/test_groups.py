"""Which parameters are decayed, and at which rate each is trained."""

import torch
from torch import nn

from megacpt.optim.groups import multiplier_of, parameter_groups


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.projection = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)


def test_matrices_are_decayed_and_vectors_are_not() -> None:
    block = Block()
    decayed, undecayed = parameter_groups(block.named_parameters(), 0.1)
    assert decayed["weight_decay"] == 0.1
    assert undecayed["weight_decay"] == 0.0
    assert {id(p) for p in decayed["params"]} == {id(block.embedding.weight), id(block.projection.weight)}
    assert {id(p) for p in undecayed["params"]} == {
        id(block.projection.bias),
        id(block.norm.weight),
        id(block.norm.bias),
    }


def test_a_bias_is_not_decayed_whatever_its_shape() -> None:
    assert parameter_groups([("experts.bias", nn.Parameter(torch.zeros(2, 3)))], 0.1)[0]["weight_decay"] == 0.0


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    linear = nn.Linear(4, 4)
    linear.bias.requires_grad_(False)
    (group,) = parameter_groups(linear.named_parameters(), 0.1)
    assert group["params"] == [linear.weight]


def test_the_shape_that_counts_is_the_one_before_zero_3_took_the_parameter_apart() -> None:
    weight = nn.Parameter(torch.empty(0))
    weight.ds_shape = torch.Size([4, 4])  # type: ignore[attr-defined]
    (group,) = parameter_groups([("weight", weight)], 0.1)
    assert group["weight_decay"] == 0.1


def test_the_first_pattern_that_matches_counts() -> None:
    multipliers = {"model.layers.[0-1].*": 0.5, "model.*": 0.1}
    names = ["model.layers.1.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight", "lm_head.weight"]
    assert [multiplier_of(name, multipliers) for name in names] == [0.5, 0.1, 1.0]


def test_each_rate_has_groups_of_its_own() -> None:
    block = Block()
    groups = parameter_groups(block.named_parameters(), 0.1, {"norm.*": 0.5, "projection.*": 0.5})
    found = [(group["lr_multiplier"], group["weight_decay"], len(group["params"])) for group in groups]
    assert found == [(1.0, 0.1, 1), (0.5, 0.1, 1), (0.5, 0.0, 3)]
