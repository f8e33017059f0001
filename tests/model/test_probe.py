"""Probing an untested architecture: what is understood passes, and anything forgotten around the layers is found."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig

from megacpt.errors import ModelError
from megacpt.model import probe as module
from megacpt.model.blueprint import PARITY_TESTED, Blueprint
from megacpt.model.probe import NUM_TOKENS, TOLERANCE, logit_difference, probe, shrink
from tests.model.whole import small_config

GRANITE = dict(embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.2, attention_multiplier=0.1)
UNTESTED: dict[str, dict[str, Any]] = {
    "granite": GRANITE,
    "smollm3": {},
    "cohere": {"logit_scale": 0.0625},
    "olmo": {},
    "starcoder2": {},
}


@pytest.mark.parametrize("model_type", UNTESTED)
def test_what_is_understood_passes(model_type: str) -> None:
    assert model_type not in PARITY_TESTED
    probe(small_config(model_type, **UNTESTED[model_type]))


@pytest.mark.parametrize(
    "fact, model_type, changes",
    [
        ("embedding_multiplier", "granite", GRANITE),
        ("logit_scale", "granite", GRANITE),
        ("logit_scale", "cohere", {"logit_scale": 0.0625}),
    ],
)
def test_a_forgotten_factor_is_found(
    fact: str, model_type: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Blueprint, fact, 1.0)
    with pytest.raises(
        ModelError, match=rf"'{model_type}' is not understood: .*other logits \(found a relative difference"
    ):
        probe(small_config(model_type, **changes))


@pytest.mark.parametrize(
    "fact, wrong, model_type",
    [
        ("logit_softcap", 0.0, "gemma2"),
        ("embedding_scale", None, "gemma2"),
        ("window", lambda self, index: None, "gemma2"),
    ],
)
def test_any_forgotten_fact_shows(fact: str, wrong: Any, model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(model_type, query_pre_attn_scalar=8, sliding_window=5, final_logit_softcapping=1.0)
    assert logit_difference(shrink(config)) < TOLERANCE
    monkeypatch.setattr(Blueprint, fact, wrong)
    assert logit_difference(shrink(config)) > 10 * TOLERANCE


@pytest.mark.parametrize("model_type", ["llama", "olmo2"])
def test_what_transformers_ignores_is_ignored(model_type: str) -> None:
    left_over = dict(sliding_window=5, embedding_multiplier=2.0, logit_scale=0.5, final_logit_softcapping=1.0)
    assert logit_difference(shrink(small_config(model_type, **left_over))) < TOLERANCE


def test_what_cannot_be_assembled_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="model type 'gpt_neox' is not understood"):
        probe(small_config("gpt_neox"))


def test_an_error_inside_becomes_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: object) -> float:
        raise AttributeError("no such layer")

    monkeypatch.setattr(module, "logit_difference", fail)
    with pytest.raises(ModelError, match=r"small copy cannot be assembled .*\(found AttributeError: no such layer\)"):
        probe(small_config("smollm3"))


def test_tested_architectures_are_not_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "logit_difference", lambda config: 1.0)
    probe(small_config("llama"))


def test_a_small_copy_shows_every_kind_of_layer() -> None:
    types = ["sliding_attention"] * 5 + ["full_attention"]
    config = small_config("gemma3_text", num_hidden_layers=12, layer_types=types * 2, sliding_window=512)
    small = shrink(config)
    assert small.layer_types == types and small.num_hidden_layers == 6
    assert small.sliding_window < NUM_TOKENS
    assert config.num_hidden_layers == 12 and config.sliding_window == 512


def test_a_small_copy_of_a_large_model_is_small() -> None:
    small = shrink(LlamaConfig(num_hidden_layers=80, hidden_size=8192, vocab_size=128_256, num_attention_heads=64))
    assert (small.num_hidden_layers, small.hidden_size, small.vocab_size) == (2, 64, 96)
