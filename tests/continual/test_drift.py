"""Drift of layers from the base model."""

from __future__ import annotations

import math

import pytest
import torch

from megacpt.continual.drift import bottom_to_top, layer_drift


def test_drift_is_the_relative_change_of_a_layers_tensors_together() -> None:
    base = {
        "model.embed_tokens.weight": torch.ones(3),
        "model.layers.0.a": torch.tensor([3.0, 0.0]),
        "model.layers.0.b": torch.tensor([4.0]),
        "model.layers.10.a": torch.tensor([2.0]),
        "model.layers.2.a": torch.tensor([1.0]),
    }
    moved = {name: tensor.clone() for name, tensor in base.items()}
    moved["model.embed_tokens.weight"] += 9
    moved["model.layers.0.a"][1] = 0.3
    moved["model.layers.0.b"] += 0.4
    moved["model.layers.10.a"] -= 1
    drift = layer_drift(base, base.__getitem__, moved.__getitem__)
    assert drift == pytest.approx([0.1, 0.0, 0.5])  # layers 0, 2 and 10, in the order of their numbers


def test_bottom_to_top() -> None:
    assert bottom_to_top([4.0] * 5 + [9.0] + [2.0] * 5) == 2.0
    assert bottom_to_top([3.0, 1.0]) == 3.0
    assert math.isnan(bottom_to_top([1.0, 0.0]))
