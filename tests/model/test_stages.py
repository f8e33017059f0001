"""Stages: what they are called in the Hugging Face model, and how the vocabulary is padded."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from megacpt.model.stages import padded_vocab_size
from megacpt.parallel.slices import Slice
from megacpt.recipe import Architecture
from tests.model.whole import WholeModel, small_config, stage_factory


@pytest.mark.parametrize(
    "vocab_size, multiple, tensor, padded",
    [
        (100, 1, 1, 100),
        (100, 8, 2, 104),
        (96, 8, 2, 96),
        (100, 1, 8, 104),
        (100, 4, 6, 108),
        (128_256, 128, 6, 128_256),
    ],
)
def test_the_vocabulary_is_padded_no_further_than_it_must(
    vocab_size: int, multiple: int, tensor: int, padded: int
) -> None:
    assert padded_vocab_size(vocab_size, multiple, tensor) == padded
    config = small_config("llama", vocab_size=vocab_size).to_dict()
    assert Architecture.from_config(config).padded_vocab_size(multiple, tensor) == padded


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_bear_the_names_that_transformers_gives_them(tied: bool) -> None:
    config = small_config("qwen2", tie_word_embeddings=tied)
    model = WholeModel(stage_factory(config, vocab_multiple=64))
    ours = {
        name: (tuple(parameter.shape), piece)
        for stage in model.stages()
        for name, parameter, piece in stage.named_slices()
    }
    with torch.device("meta"):
        theirs = {name: tuple(p.shape) for name, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    assert ours.keys() == theirs.keys()
    vocabulary = {"model.embed_tokens.weight", "lm_head.weight"} & theirs.keys()
    for name, (shape, piece) in ours.items():
        if name in vocabulary:
            assert piece == Slice(dim=0, index=0, count=1, padded=128)
            assert shape == (128, theirs[name][1])
        else:
            assert piece is None
            assert shape == theirs[name]


@torch.no_grad()
def test_a_factor_on_the_embeddings() -> None:
    plain, factored = (
        WholeModel(stage_factory(small_config("granite", embedding_multiplier=factor))) for factor in (1.0, 12.0)
    )
    ids = torch.arange(3, 11)[None]
    positions = torch.arange(8)[None]
    assert torch.equal(factored.embedding((ids, positions))[0], 12.0 * plain.embedding((ids, positions))[0])


def test_weights_take_the_dtype_of_the_run() -> None:
    model = WholeModel(stage_factory(small_config("llama"), dtype=torch.bfloat16))
    assert {parameter.dtype for stage in model.stages() for parameter in stage.parameters()} == {torch.bfloat16}
