"""Architectures: parameters and windows as transformers builds them, FLOPs as published, promises kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from megacpt.errors import ModelError
from megacpt.recipe import Architecture, load_recipe
from megacpt.recipe.architecture import ARCHITECTURES

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 131,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True},
    {"tie_word_embeddings": False},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"head_dim": 32},
    {"sliding_window": 16},
    {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 3},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_shape_is_transformers_own(model_type: str, variant: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **SIZES, **TOKENS, **variant)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    window = getattr(config, "sliding_window", None)
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    saved = json.loads(config.to_json_string())
    for shape in (saved, {key: value for key, value in saved.items() if key != "layer_types"}):
        architecture = Architecture.from_config(shape)
        assert architecture.is_known
        assert architecture.num_parameters == sum(parameter.numel() for parameter in model.parameters())
        assert architecture.attention_windows == windows


def llama3() -> Architecture:
    return Architecture.from_config(dict(load_recipe("llama3-8b-medical").model.config))


def test_flops_of_llama3_8b_are_the_published_ones() -> None:
    # NVIDIA reports 744 TFLOP/s at 14,451 tokens/s for it, causal attention counted once: 51.5 GFLOP per token.
    assert llama3().flops_per_token(8192) == pytest.approx(744e12 / 14451, rel=1e-3)
    assert llama3().head_in_layers(8192) == pytest.approx(2.1, abs=0.02)


def test_a_sliding_window_costs_what_it_reads() -> None:
    full = Architecture.from_config({"model_type": "mistral", **SIZES})
    windowed = Architecture.from_config({"model_type": "mistral", **SIZES, "sliding_window": 4})
    position_reads = {length: sum(min(i, 4) for i in range(length)) / length for length in (1024,)}
    saved = full.layer_flops_per_token(1024)[0] - windowed.layer_flops_per_token(1024)[0]
    assert saved == pytest.approx(12 * 64 * (1023 / 2 - position_reads[1024]), rel=2e-3)
    assert windowed.layer_flops_per_token(4) == full.layer_flops_per_token(4)


def test_the_vocabulary_is_padded_for_both_reasons() -> None:
    architecture = Architecture.from_config({"model_type": "llama", **SIZES})
    assert architecture.padded_vocab_size(1, 1) == 131
    assert architecture.padded_vocab_size(128, 2) == 256
    assert architecture.padded_vocab_size(8, 6) == 144


def test_a_config_without_a_size_is_refused_by_name() -> None:
    with pytest.raises(
        ModelError, match=r"config: intermediate_size: the config lacks a size \(expected a positive integer"
    ):
        Architecture.from_config({key: value for key, value in SIZES.items() if key != "intermediate_size"})
