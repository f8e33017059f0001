"""Facts read off architectures, and the architectures that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from megacpt.errors import ModelError
from megacpt.model.blueprint import PARITY_TESTED, Blueprint, refuse_unsupported
from tests.model.whole import small_config
from tests.parity import tiny


def blueprint(model_type: str, **changes: Any) -> Blueprint:
    return Blueprint(small_config(model_type, **changes), torch.float32)


def facts(plan: Blueprint) -> dict[str, Any]:
    return {
        "scale": plan.embedding_scale,
        "multiplier": plan.embedding_multiplier,
        "softcap": plan.logit_softcap,
        "logit scale": plan.logit_scale,
        "windows": [plan.window(index) for index in range(plan.num_layers)],
    }


PLAIN = {"scale": None, "multiplier": 1.0, "softcap": 0.0, "logit scale": 1.0, "windows": [None] * 3}


@pytest.mark.parametrize(
    "model_type, changes, special",
    [
        ("llama", {}, {}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 5}, {}),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
            {"windows": [None, None, 5]},
        ),
        ("mistral", {"sliding_window": 6}, {"windows": [6, 6, 6]}),
        ("mistral", {"sliding_window": None}, {}),
        (
            "gemma2",
            {"sliding_window": 7, "final_logit_softcapping": 30.0},
            {"scale": 32**0.5, "softcap": 30.0, "windows": [7, None, 7]},
        ),
        ("gemma3_text", {"sliding_window": 7}, {"scale": 32**0.5, "windows": [7, 7, 7]}),
        ("granite", {"embedding_multiplier": 12.0, "logits_scaling": 8.0}, {"multiplier": 12.0, "logit scale": 0.125}),
        ("cohere", {"logit_scale": 0.0625}, {"logit scale": 0.0625}),
    ],
)
def test_what_is_done_around_the_layers(model_type: str, changes: dict[str, Any], special: dict[str, Any]) -> None:
    assert facts(blueprint(model_type, **changes)) == PLAIN | special


@pytest.mark.parametrize("tied", [True, False])
def test_names_and_sizes_are_those_of_the_model(tied: bool) -> None:
    plan = blueprint("qwen3", tie_word_embeddings=tied)
    names = dict(plan.model.named_modules())
    assert {plan.embedding_name, plan.layer_name(2), plan.norm_name, plan.head_name} <= names.keys()
    assert (plan.num_layers, plan.vocab_size, plan.tied) == (3, 118, tied)
    whole = AutoModelForCausalLM.from_config(small_config("qwen3", tie_word_embeddings=tied))
    assert plan.num_parameters() == sum(parameter.numel() for parameter in whole.parameters())
    assert names[plan.head_name] is plan.model.get_output_embeddings()


def test_nothing_is_allocated_but_the_rotary_frequencies() -> None:
    plan = blueprint("llama")
    assert {parameter.device.type for parameter in plan.model.parameters()} == {"meta"}
    frequencies = dict(plan.rotary().named_buffers())["inv_freq"]
    assert frequencies.device.type == "cpu" and frequencies.dtype is torch.float32
    torch.testing.assert_close(frequencies, 10_000.0 ** (-torch.arange(0, 8, 2) / 8))


def test_every_tested_architecture_is_among_those_of_the_parity_tests() -> None:
    assert {settings["model_type"] for settings in tiny.ARCHITECTURES.values()} == PARITY_TESTED


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_mixtures_of_experts_are_refused(model_type: str) -> None:
    with pytest.raises(ModelError, match=f"'{model_type}' is a mixture of experts"):
        Blueprint(AutoConfig.for_model(model_type), torch.float32)


@pytest.mark.parametrize("model_type", ["gemma3", "llava", "qwen2_5_vl"])
def test_multimodal_models_are_refused(model_type: str) -> None:
    with pytest.raises(ModelError, match=f"'{model_type}' wraps a text model in a multimodal one"):
        Blueprint(AutoConfig.for_model(model_type), torch.float32)


def test_bidirectional_attention_is_refused() -> None:
    config = small_config("gemma3_text", use_bidirectional_attention=True)
    with pytest.raises(ModelError, match="attends in both directions"):
        Blueprint(config, torch.float32)


@pytest.mark.parametrize(
    "model_type, stated",
    [("llama", {"quantization_config": {"quant_method": "fp8"}}), ("starcoder2", {"embedding_dropout": 0.1})],
)
def test_what_training_would_lose_is_refused(model_type: str, stated: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=rf"config\.json: {next(iter(stated))}: "):
        refuse_unsupported(small_config(model_type, **stated))


def test_unknown_kinds_of_layers_are_refused() -> None:
    config = small_config("llama")
    config.layer_types = ["full_attention", "linear_attention", "chunked_attention"]
    with pytest.raises(ModelError, match=r"unknown type \(found chunked_attention, linear_attention\)"):
        refuse_unsupported(config)


def test_a_bias_on_the_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    biased = nn.Linear(4, 4, bias=True)
    monkeypatch.setattr(LlamaForCausalLM, "get_output_embeddings", lambda self: biased)
    with pytest.raises(ModelError, match="'llama' has a bias on its output head"):
        blueprint("llama")


def test_a_decoder_of_other_parts_is_refused() -> None:
    with pytest.raises(ModelError, match="'gpt2' is not understood: its decoder has no 'embed_tokens'"):
        blueprint("gpt2")
