"""A model's stages run one after the other, in this process."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from megacpt.model.blueprint import Blueprint
from megacpt.model.fill import RandomWeights
from megacpt.model.stages import DecoderStage, EmbeddingStage, HeadStage, NormStage, Stage, StageFactory, tied_head
from megacpt.parallel.group import TensorGroup
from tests.parity.tiny import WIDTHS


def small_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """The config of a narrow model of few layers, of any architecture."""
    return AutoConfig.for_model(model_type, **{**WIDTHS, **changes})


def stage_factory(
    config: PretrainedConfig, attention: str = "sdpa", dtype: torch.dtype = torch.float32, **settings: Any
) -> StageFactory:
    """Builds the stages of a model with random weights for a single process."""
    blueprint = Blueprint(config, dtype, attention)
    return StageFactory(blueprint, RandomWeights(blueprint.model, seed=0), TensorGroup(), **settings)


class WholeModel:
    """All stages of a model: ids and positions [B, S] -> logits [B, S, padded vocabulary], without a softcap."""

    def __init__(self, factory: StageFactory) -> None:
        blueprint = factory.blueprint
        self.embedding = EmbeddingStage(factory)
        self.decoder = [DecoderStage(factory, index) for index in range(blueprint.num_layers)]
        self.norm = NormStage(factory)
        self.head = None if blueprint.tied else HeadStage(factory)

    def stages(self) -> list[Stage]:
        head = [] if self.head is None else [self.head]
        return [self.embedding, *self.decoder, self.norm, *head]

    def to(self, *where: Any) -> WholeModel:
        for stage in self.stages():
            stage.to(*where)
        return self

    def __call__(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        activation = self.embedding((ids, positions))
        for stage in self.decoder:
            activation = stage(activation)
        hidden = self.norm(activation)
        hidden, weight = tied_head(self.embedding, hidden) if self.head is None else self.head(hidden)
        return hidden @ weight.T
