"""A decoder's shape read from its Hugging Face config, and what follows from it: parameters, FLOPs, bytes.

Only numbers are read; neither transformers nor torch is imported, so a login node can plan a run of a model that it
could not load. Parameter counts are exact for the architectures in `ARCHITECTURES` (a test compares them with
transformers' own models); another architecture is counted as a plain gated decoder and says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megacpt.errors import ModelError


@dataclass(frozen=True)
class Traits:
    """What the parameters of an architecture depend on beside its sizes.

    Attributes:
        has_qkv_bias: queries, keys and values always have a bias.
        reads_attention_bias: the config's attention_bias gives all four attention projections one.
        reads_mlp_bias: the config's mlp_bias gives all three MLP projections one.
        norms_per_layer: norms over the hidden size.
        query_key_norms: None, "head" (one norm of head_dim each for queries and keys), "projection" (over all heads).
        is_tied: embedding and head are one unless the config says otherwise.
        head_dim: the default where the config has none; None is hidden_size / num_attention_heads.
    """

    has_qkv_bias: bool = False
    reads_attention_bias: bool = True
    reads_mlp_bias: bool = False
    norms_per_layer: int = 2
    query_key_norms: Literal["head", "projection"] | None = None
    is_tied: bool = False
    head_dim: int | None = None


ARCHITECTURES: dict[str, Traits] = {
    "llama": Traits(reads_mlp_bias=True),
    "mistral": Traits(reads_attention_bias=False),
    "phi3": Traits(reads_attention_bias=False),
    "qwen2": Traits(has_qkv_bias=True, reads_attention_bias=False),
    "qwen3": Traits(query_key_norms="head", head_dim=128),
    "olmo2": Traits(query_key_norms="projection"),
    "gemma2": Traits(norms_per_layer=4, is_tied=True, head_dim=256),
    "gemma3_text": Traits(norms_per_layer=4, query_key_norms="head", is_tied=True, head_dim=256),
}


@dataclass(frozen=True)
class Architecture:
    """The shape of a decoder-only model.

    Attributes:
        attention_windows: for each layer the number of positions it looks back on, None for all.
        is_known: parameter counts are exact.
    """

    model_type: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    has_tied_embeddings: bool
    max_positions: int | None
    attention_windows: tuple[int | None, ...]
    parameters_per_layer: int
    is_known: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config") -> Architecture:
        """Read a Hugging Face config.

        Args:
            config: the content of config.json.
            where: what to call it in an error.

        Raises:
            ModelError: a needed value is missing.
        """

        def number(key: str, default: int | None = None) -> int:
            value = config.get(key)
            if value is None:
                value = default
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ModelError(
                    "the config lacks a size", where=f"{where}: {key}", found=value, expected="a positive integer"
                )
            return value

        model_type = str(config.get("model_type"))
        traits = ARCHITECTURES.get(model_type, Traits())
        hidden, heads = number("hidden_size"), number("num_attention_heads")
        kv_heads = number("num_key_value_heads", heads)
        head_dim = number("head_dim", traits.head_dim or max(hidden // heads, 1))
        intermediate, layers = number("intermediate_size"), number("num_hidden_layers")
        query, key_value = heads * head_dim, kv_heads * head_dim
        attention = hidden * (2 * query + 2 * key_value)
        mlp = 3 * hidden * intermediate
        if traits.reads_attention_bias and config.get("attention_bias"):
            attention += query + 2 * key_value + hidden
        elif traits.has_qkv_bias:
            attention += query + 2 * key_value
        if traits.reads_mlp_bias and config.get("mlp_bias"):
            mlp += 2 * intermediate + hidden
        norms = traits.norms_per_layer * hidden
        if traits.query_key_norms is not None:
            norms += 2 * head_dim if traits.query_key_norms == "head" else query + key_value
        return cls(
            model_type=model_type,
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=intermediate,
            vocab_size=number("vocab_size"),
            has_tied_embeddings=bool(config.get("tie_word_embeddings", traits.is_tied)),
            max_positions=config.get("max_position_embeddings"),
            attention_windows=_attention_windows(config, model_type, layers),
            parameters_per_layer=attention + mlp + norms,
            is_known=model_type in ARCHITECTURES,
        )

    @property
    def embedding_parameters(self) -> int:
        """The token embedding's; an untied head has as many."""
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All parameters, tied ones once."""
        embeddings = self.embedding_parameters * (1 if self.has_tied_embeddings else 2)
        return embeddings + self.num_layers * self.parameters_per_layer + self.hidden_size

    def padded_vocab_size(self, multiple: int, tensor: int) -> int:
        """The rows of the embedding when padded to a multiple of `multiple` and of the tensor-parallel degree."""
        granularity = math.lcm(multiple, tensor)
        return math.ceil(self.vocab_size / granularity) * granularity

    def layer_flops_per_token(self, sequence_length: int) -> list[float]:
        """Training FLOPs (forward and backward) per token of each layer.

        6 per weight (Kaplan et al. 2020, arXiv:2001.08361), and 12 per query channel and position attended to: causal,
        so on average half of the sequence, or window - window^2 / (2 sequence) of a sliding window. Recomputation is
        not counted. Document borders shorten attention further; that is left out.
        """
        query_width = self.num_heads * self.head_dim
        flops = []
        for window in self.attention_windows:
            reach = min(window or sequence_length, sequence_length)
            attended = reach - reach * reach / (2 * sequence_length)
            flops.append(6.0 * self.parameters_per_layer + 12.0 * query_width * attended)
        return flops

    def head_flops_per_token(self) -> float:
        """Training FLOPs per token of the head's product; an embedding only looks up."""
        return 6.0 * self.embedding_parameters

    def head_in_layers(self, sequence_length: int) -> float:
        """The head's time as a number of layers: 2.1 for Llama-3-8B at 8192."""
        return self.head_flops_per_token() * self.num_layers / sum(self.layer_flops_per_token(sequence_length))

    def flops_per_token(self, sequence_length: int) -> float:
        """Training FLOPs per token of the whole model: 51.5e9 for Llama-3-8B at 8192."""
        return sum(self.layer_flops_per_token(sequence_length)) + self.head_flops_per_token()


def _attention_windows(config: Mapping[str, Any], model_type: str, num_layers: int) -> tuple[int | None, ...]:
    """Each layer's sliding window: by `layer_types`, by the family's rhythm, or the same everywhere."""
    window = config.get("sliding_window")
    if window is None or config.get("use_sliding_window") is False:
        return (None,) * num_layers
    if layer_types := config.get("layer_types"):
        return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
    if model_type == "gemma2":
        return tuple(None if layer % 2 else window for layer in range(num_layers))
    if model_type == "gemma3_text":
        every = config.get("sliding_window_pattern") or 6
        return tuple(None if (layer + 1) % every == 0 else window for layer in range(num_layers))
    if model_type in ("qwen2", "qwen3"):
        first = config.get("max_window_layers", 0) if config.get("use_sliding_window") else num_layers
        return tuple(window if layer >= first else None for layer in range(num_layers))
    return (window,) * num_layers
