"""What all layers of a stage share about one micro-batch: its documents and its rotary tables.

Made once per micro-batch and stage, kept exactly as long as the positions tensor it belongs to: under 1F1B several
micro-batches are in flight, and recomputation in the backward must find the tables of its own one.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from megacpt.model.attention import Documents, Mask

RotaryTable = tuple[torch.Tensor, torch.Tensor]


class MicroBatchContext:
    """Masks and rotary tables of one micro-batch, each made when a layer first asks.

    It must not hold the positions tensor, whose life it shares.
    """

    def __init__(
        self, rotary: nn.Module, by_layer_type: bool, longest_short: int | None, positions: torch.Tensor
    ) -> None:
        self._rotary = rotary
        self._by_layer_type = by_layer_type
        self._longest_short = longest_short
        self._documents = Documents(positions)
        self._tables: dict[str, RotaryTable] = {}

    def mask(self, window: int | None) -> Mask:
        return Mask(self._documents, window)

    def rotary(self, hidden: torch.Tensor, positions: torch.Tensor, layer_type: str) -> RotaryTable:
        """(cos, sin), each [B, S, H] in the hidden states' dtype."""
        key = layer_type if self._by_layer_type else ""
        if key not in self._tables:
            extra = (layer_type,) if self._by_layer_type else ()
            table = self._rotary(hidden, positions, *extra)
            if self._longest_short is not None:
                is_long = (self._documents.lengths > self._longest_short)[..., None]
                short = self._rotary(hidden, positions.clamp(max=self._longest_short - 1), *extra)
                table = table[0].where(is_long, short[0]), table[1].where(is_long, short[1])
            self._tables[key] = table
        return self._tables[key]


class StageContext:
    """Hands every layer of a stage the same `MicroBatchContext` for the same positions tensor.

    The rotary module is kept out of the stage's modules on purpose: an engine that casts a module to bf16 must not
    reach its fp32 frequencies.

    LongRoPE (Ding et al. 2024, arXiv:2402.13753; Phi-3) has other frequencies for long texts. Transformers chooses by
    the longest text of a batch; here each document has those that it would have alone, whatever it is packed with.
    """

    def __init__(self, rotary: nn.Module) -> None:
        self._rotary = rotary
        self._by_layer_type = "layer_type" in inspect.signature(rotary.forward).parameters
        self._longest_short: int | None = None
        if getattr(rotary, "rope_type", None) == "longrope":
            config: Any = rotary.config
            self._longest_short = config.rope_parameters["original_max_position_embeddings"]
        self._contexts: Any = WeakIdKeyDictionary()

    def of(self, positions: torch.Tensor) -> MicroBatchContext:
        if positions not in self._contexts:
            self._rotary.to(positions.device)
            self._contexts[positions] = MicroBatchContext(
                self._rotary, self._by_layer_type, self._longest_short, positions
            )
        return self._contexts[positions]
