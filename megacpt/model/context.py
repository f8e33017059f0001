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

    def __init__(self, rotary: nn.Module, by_layer_type: bool, positions: torch.Tensor) -> None:
        self._rotary = rotary
        self._by_layer_type = by_layer_type
        self._documents = Documents(positions)
        self._tables: dict[str, RotaryTable] = {}

    def mask(self, window: int | None) -> Mask:
        return Mask(self._documents, window)

    def rotary(self, hidden: torch.Tensor, positions: torch.Tensor, layer_type: str) -> RotaryTable:
        """(cos, sin), each [B, S, H] in the hidden states' dtype."""
        key = layer_type if self._by_layer_type else ""
        if key not in self._tables:
            extra = (layer_type,) if self._by_layer_type else ()
            self._tables[key] = self._rotary(hidden, positions, *extra)
        return self._tables[key]


class StageContext:
    """Hands every layer of a stage the same `MicroBatchContext` for the same positions tensor.

    The rotary module is kept out of the stage's modules on purpose: an engine that casts a module to bf16 must not
    reach its fp32 frequencies.
    """

    def __init__(self, rotary: nn.Module) -> None:
        self._rotary = rotary
        self._by_layer_type = "layer_type" in inspect.signature(rotary.forward).parameters
        self._contexts: Any = WeakIdKeyDictionary()

    def of(self, positions: torch.Tensor) -> MicroBatchContext:
        if positions not in self._contexts:
            self._rotary.to(positions.device)
            self._contexts[positions] = MicroBatchContext(self._rotary, self._by_layer_type, positions)
        return self._contexts[positions]
