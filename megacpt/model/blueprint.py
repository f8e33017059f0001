"""What a Hugging Face architecture is made of, read off the model class itself.

megacpt writes no decoder. A blueprint instantiates transformers' own model on the meta device (no memory, under a
second for 8B), and hands out its parts: the embedding, each decoder layer, the final norm, the head. What the model's
forward does *around* its layers (a factor on the embeddings, masks and rotary tables by layer type, a softcap on the
logits) is read from the config. Architectures whose parity is tested are listed; any other is accepted only after the
stages assembled from a shrunken copy of it have reproduced transformers' logits (see `megacpt.model.probe`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from megacpt.errors import ModelError
from megacpt.model.attention import register
from megacpt.model.fused_ops import fuse_ops

PARITY_TESTED = frozenset({"llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "gemma3_text", "phi3"})
"""Model types for which the test suite compares training with plain transformers, on every kind of layout."""

FULL, SLIDING = "full_attention", "sliding_attention"


class Blueprint:
    """The parts of one architecture and the facts that joining them needs.

    Args:
        config: the Hugging Face config of a decoder-only causal language model.
        dtype: the dtype of the weights.
        attention: which of `megacpt.model.attention.BACKENDS` the layers use.
        fused_ops: norms, MLPs and rotary embedding are computed by Liger's kernels.

    Raises:
        ModelError: the architecture is not a plain stack of decoder layers that megacpt understands.
    """

    def __init__(
        self, config: PretrainedConfig, dtype: torch.dtype, attention: str = "sdpa", *, fused_ops: bool = False
    ) -> None:
        refuse_unsupported(config)
        self.config = config
        self.dtype = dtype
        self.attention = attention
        self.fused_ops = fused_ops
        config._attn_implementation = "eager"  # every class builds with it; some refuse to build with others
        with torch.device("meta"):
            self.model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        if fused_ops:
            fuse_ops(self.model)
        self.config = self.model.config
        self.config._attn_implementation = register(attention)
        self._known = type(config)()
        self.base = self.model.base_model
        self.base_name: str = self.model.base_model_prefix
        for part in ("embed_tokens", "layers", "norm", "rotary_emb"):
            if not hasattr(self.base, part):
                raise ModelError(
                    f"model type '{config.model_type}' is not understood: its decoder has no '{part}'",
                    hint="Its parity with transformers would be a guess, so megacpt does not train it.",
                )
        if getattr(self.model.get_output_embeddings(), "bias", None) is not None:
            raise ModelError(f"model type '{config.model_type}' has a bias on its output head, which is not supported")

    def _stated(self, key: str) -> Any:
        """What the config says, None if nothing. Transformers keeps a key that the architecture does not have, as a
        conversion may leave behind, and ignores it; so must we."""
        return getattr(self.config, key, None) if hasattr(self._known, key) else None

    @property
    def num_layers(self) -> int:
        return len(self.base.layers)

    @property
    def tied(self) -> bool:
        """The head's weight is the embedding's."""
        return bool(self.config.tie_word_embeddings)

    @property
    def vocab_size(self) -> int:
        """The number of real tokens, without padding."""
        return int(self.config.vocab_size)

    @property
    def embedding_name(self) -> str:
        return f"{self.base_name}.embed_tokens"

    def layer_name(self, index: int) -> str:
        return f"{self.base_name}.layers.{index}"

    @property
    def norm_name(self) -> str:
        return f"{self.base_name}.norm"

    @property
    def head_name(self) -> str:
        head = self.model.get_output_embeddings()
        return next(name for name, module in self.model.named_modules() if module is head)

    @property
    def tensor_plan(self) -> dict[str, str]:
        """Transformers' tensor-parallel plan of the decoder: module pattern -> style."""
        return dict(getattr(self.config, "base_model_tp_plan", None) or {})

    @property
    def embedding_scale(self) -> float | None:
        """A factor on the embeddings, applied in the weights' dtype (Gemma)."""
        return getattr(self.base.embed_tokens, "scalar_embed_scale", None)

    @property
    def embedding_multiplier(self) -> float:
        """A factor on the embeddings, applied to the hidden states (Granite)."""
        return float(self._stated("embedding_multiplier") or 1.0)

    @property
    def logit_softcap(self) -> float:
        """c in c * tanh(logit / c) (Gemma 2); 0 means none."""
        return float(self._stated("final_logit_softcapping") or 0.0)

    @property
    def logit_scale(self) -> float:
        """A factor on the logits (Cohere multiplies by it, Granite divides by its inverse)."""
        divisor = self._stated("logits_scaling")
        factor = self._stated("logit_scale")
        return 1.0 / float(divisor) if divisor else float(factor or 1.0)

    def layer_type(self, index: int) -> str:
        """`full_attention` or `sliding_attention`."""
        types = self._stated("layer_types")
        if types:
            return str(types[index])
        return SLIDING if self._stated("sliding_window") else FULL

    def window(self, index: int) -> int | None:
        """How many tokens, itself included, a token of this layer sees; None: all before it."""
        return int(self.config.sliding_window) if self.layer_type(index) == SLIDING else None

    def rotary(self) -> nn.Module:
        """A rotary-table module with real fp32 frequencies (the meta model's own are empty)."""
        with torch.device("cpu"):
            return type(self.base.rotary_emb)(self.config)

    def num_parameters(self) -> int:
        """All parameters, tied ones once."""
        return sum(p.numel() for p in self.model.parameters())


def refuse_unsupported(config: Any) -> None:
    """Refuse by name what would be trained wrongly.

    Raises:
        ModelError: mixture-of-experts, bidirectional or linear attention, quantised weights, dropout of embeddings, or
            not a decoder-only text model.
    """
    kind = config.model_type
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"the weights of this '{kind}' are quantised, or made to be",
            where="config.json: quantization_config",
            hint="Training needs whole weights: take the model that they were made from.",
        )
    if getattr(config, "embedding_dropout", 0.0):
        raise ModelError(
            f"this '{kind}' drops out parts of its embeddings, which megacpt does not",
            where="config.json: embedding_dropout",
            found=config.embedding_dropout,
            expected=0.0,
        )
    if getattr(config, "text_config", None) is not None:
        raise ModelError(
            f"model type '{kind}' wraps a text model in a multimodal one",
            hint="Export its language model as a folder of its own (a '*_text' config) and name that.",
        )
    if any(getattr(config, key, None) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise ModelError(f"model type '{kind}' is a mixture of experts, which megacpt does not train yet")
    if getattr(config, "use_bidirectional_attention", False):
        raise ModelError(f"this '{kind}' attends in both directions; megacpt trains causal language models")
    unknown = set(getattr(config, "layer_types", None) or ()) - {FULL, SLIDING}
    if unknown:
        raise ModelError(f"model type '{kind}' has layers of unknown type", found=", ".join(sorted(unknown)))
