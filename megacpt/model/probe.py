"""Trying an architecture before trusting it: do our stages reproduce transformers' logits?

A model type outside the tested ones is shrunk to a few narrow layers with random weights; its stages, assembled as for
training, must give the logits of transformers' own forward. What the model does around its layers and we do not know
about (a factor, a norm, another mask) shows up as a difference, and the model is refused by name.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from megacpt.errors import ModelError
from megacpt.model.blueprint import PARITY_TESTED, Blueprint
from megacpt.model.fill import WeightSource
from megacpt.model.stages import DecoderStage, EmbeddingStage, NormStage, StageFactory
from megacpt.parallel.group import TensorGroup
from megacpt.parallel.slices import Slice

SHRUNK = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "query_pre_attn_scalar": 16,
}
NUM_TOKENS = 24
TOLERANCE = 1e-4
"""Relative to the largest logit; fp32 sums in another order differ by 1e-6, a forgotten step by 1e-2 and more."""


class _ModelWeights:
    """The weights of a model in memory."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._tensors = dict(model.named_parameters(remove_duplicate=False))

    def read(self, name: str, piece: Slice | None) -> torch.Tensor:
        tensor = self._tensors[name].detach()
        return tensor if piece is None else piece.cut(tensor)


def probe(config: PretrainedConfig) -> None:
    """Refuse an untested architecture that our stages do not reproduce.

    Raises:
        ModelError: the logits differ, or the shrunken model cannot be built or assembled.
    """
    if config.model_type in PARITY_TESTED:
        return
    try:
        difference = logit_difference(shrink(config))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"model type '{config.model_type}' is not understood: a small copy cannot be assembled from its layers",
            found=f"{type(error).__name__}: {error}",
        ) from error
    if difference > TOLERANCE:
        raise ModelError(
            f"model type '{config.model_type}' is not understood: assembled from its layers it gives other logits",
            found=f"a relative difference of {difference:.1e}",
            expected=f"less than {TOLERANCE:.0e}",
            hint="Its forward does something around its layers that megacpt does not know.",
        )


def shrink(config: PretrainedConfig) -> PretrainedConfig:
    """A small config of the same architecture: narrow, and as many layers as show every layer type."""
    small = deepcopy(config)
    types = getattr(config, "layer_types", None)
    num_layers = min(config.num_hidden_layers, 2 if not types else max(2, 1 + max(types.index(t) for t in set(types))))
    for key, value in {**SHRUNK, "num_hidden_layers": num_layers}.items():
        if getattr(small, key, None) is not None:
            setattr(small, key, value)
    if types:
        small.layer_types = list(types[:num_layers])
    if getattr(small, "sliding_window", None):
        small.sliding_window = NUM_TOKENS // 3
    return small


@torch.no_grad()
def logit_difference(config: PretrainedConfig) -> float:
    """The largest difference between the stages' and transformers' logits, relative to the largest logit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config._attn_implementation = "eager"
        reference = AutoModelForCausalLM.from_config(deepcopy(config), dtype=torch.float32).eval()
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        ids = torch.randint(3, config.vocab_size, (1, NUM_TOKENS))
    expected = reference(input_ids=ids, use_cache=False).logits
    source: WeightSource = _ModelWeights(reference)
    factory = StageFactory(Blueprint(config, torch.float32), source, TensorGroup())
    activation = (ids, torch.arange(NUM_TOKENS)[None])
    embedding = EmbeddingStage(factory)
    activation = embedding(activation)
    for index in range(factory.blueprint.num_layers):
        activation = DecoderStage(factory, index).eval()(activation)
    hidden = NormStage(factory)(activation)
    logits = hidden @ source.read(factory.blueprint.head_name + ".weight", None).T * factory.blueprint.logit_scale
    if cap := factory.blueprint.logit_softcap:
        logits = cap * torch.tanh(logits / cap)
    return float((logits - expected).abs().max() / expected.abs().max())
