"""A model as the list of stages that a pipeline runs: embedding, decoder layers, final norm, head.

Between stages travel (hidden [B, S, D] or, with sequence parallelism, [B, S/tp, D]; positions [B, S]); the final norm
hands on the whole sequence, the head gives (hidden [B, S, D], weight [V/tp, D]) to the loss, which makes the logits
itself, in chunks. With a tied head the last stage's weight is the embedding's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from megacpt.model.blueprint import Blueprint
from megacpt.model.context import StageContext
from megacpt.model.cut import cut_layer, mark_partial
from megacpt.model.fill import WeightSource, fill, parameters_with_slices
from megacpt.parallel.collectives import copy_to_group, gather_sequence
from megacpt.parallel.group import TensorGroup
from megacpt.parallel.layers import VocabularyParallelEmbedding
from megacpt.parallel.products import use_fast_products
from megacpt.parallel.slices import Slice

Activation = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class StageFactory:
    """Builds the stages of one model for one rank.

    Attributes:
        blueprint: the architecture.
        source: where the weights come from.
        group: the tensor-parallel group.
        sequence_parallel: split activations along the sequence outside attention, MLP and head.
        vocab_multiple: the padded vocabulary is a multiple of this and of the group's size.
    """

    blueprint: Blueprint
    source: WeightSource
    group: TensorGroup
    sequence_parallel: bool = False
    vocab_multiple: int = 1

    @property
    def padded_vocab_size(self) -> int:
        return padded_vocab_size(self.blueprint.vocab_size, self.vocab_multiple, self.group.size)

    @cached_property
    def context(self) -> StageContext:
        """Shared by all layers that this process holds."""
        return StageContext(self.blueprint.rotary())


def padded_vocab_size(vocab_size: int, multiple: int, tensor_degree: int) -> int:
    """The least size >= vocab_size that `multiple` divides and that gives every tensor-parallel rank the same rows."""
    granule = math.lcm(multiple, tensor_degree)
    return -(-vocab_size // granule) * granule


class Stage(nn.Module):
    """A piece of the model; `hf_names` maps each of its children to the Hugging Face module that it is."""

    hf_names: dict[str, str]
    is_teacher = False
    """Its parameters are another model's, and not trained."""

    def named_slices(self) -> Iterator[tuple[str, nn.Parameter, Slice | None]]:
        """(Hugging Face name, parameter, which slice of that tensor it is) of every parameter."""
        for child, hf_name in self.hf_names.items():
            for name, owner, leaf, piece in parameters_with_slices(self.get_submodule(child)):
                yield f"{hf_name}.{name}", owner.get_parameter(leaf), piece

    def _fill(self, factory: StageFactory) -> None:
        for child, hf_name in self.hf_names.items():
            fill(self.get_submodule(child), hf_name, factory.source, factory.group, factory.blueprint.dtype)


def trained_stages(module: nn.Module) -> Iterator[Stage]:
    """The stages in `module` that are trained; one that is used twice, once."""
    return (stage for stage in module.modules() if isinstance(stage, Stage) and not stage.is_teacher)


class EmbeddingStage(Stage):
    """Token ids and positions, each [B, S] int64 -> (hidden, positions)."""

    def __init__(self, factory: StageFactory) -> None:
        super().__init__()
        blueprint = factory.blueprint
        self.hf_names = {"embedding": blueprint.embedding_name}
        self.multiplier = blueprint.embedding_multiplier
        self.embedding = VocabularyParallelEmbedding(
            blueprint.base.embed_tokens,
            factory.group,
            padded_size=factory.padded_vocab_size,
            scale=blueprint.embedding_scale,
            sequence_parallel=factory.sequence_parallel,
        )
        self._fill(factory)

    def forward(self, inputs: Activation) -> Activation:
        ids, positions = inputs
        hidden = self.embedding(ids)
        return (hidden if self.multiplier == 1.0 else hidden * self.multiplier), positions


class DecoderStage(Stage):
    """One decoder layer of transformers, cut for tensor parallelism: (hidden, positions) -> (hidden, positions)."""

    def __init__(self, factory: StageFactory, index: int) -> None:
        super().__init__()
        blueprint = factory.blueprint
        self.hf_names = {"layer": blueprint.layer_name(index)}
        self.context = factory.context
        self.layer_type = blueprint.layer_type(index)
        self.window = blueprint.window(index)
        self.layer = blueprint.base.layers[index]
        cut_layer(
            self.layer,
            blueprint.tensor_plan,
            factory.group,
            sequence_parallel=factory.sequence_parallel,
            model_type=blueprint.config.model_type,
        )
        use_fast_products(self.layer)
        self._fill(factory)

    def forward(self, inputs: Activation) -> Activation:
        hidden, positions = inputs
        context = self.context.of(positions)
        hidden = self.layer(
            hidden,
            attention_mask=context.mask(self.window),
            position_ids=positions,
            position_embeddings=context.rotary(hidden, positions, self.layer_type),
        )
        return hidden, positions


class NormStage(Stage):
    """The final norm: (hidden, positions) -> hidden [B, S, D], on its way into the vocabulary-parallel head."""

    def __init__(self, factory: StageFactory) -> None:
        super().__init__()
        self.hf_names = {"norm": factory.blueprint.norm_name}
        self.group = factory.group
        self.enter = gather_sequence if factory.sequence_parallel else copy_to_group
        self.norm = factory.blueprint.base.norm
        if factory.sequence_parallel:
            mark_partial(self.norm, {name for name, _ in self.norm.named_parameters()})
        self._fill(factory)

    def forward(self, inputs: Activation) -> torch.Tensor:
        hidden, _ = inputs
        return self.enter(self.norm(hidden), self.group)


class HeadStage(Stage):
    """An untied head: hidden [B, S, D] -> (hidden, weight [V/tp, D])."""

    def __init__(self, factory: StageFactory) -> None:
        super().__init__()
        blueprint = factory.blueprint
        self.hf_names = {"head": blueprint.head_name}
        self.head = HeadWeight(blueprint.model.get_output_embeddings().weight, factory)
        self._fill(factory)

    def forward(self, hidden: torch.Tensor) -> Activation:
        return hidden, self.head.weight


class HeadWeight(nn.Module):
    """My rows of the (padded) output projection; a parameter without a product, which the loss makes."""

    def __init__(self, weight: torch.Tensor, factory: StageFactory) -> None:
        super().__init__()
        size, group = factory.padded_vocab_size, factory.group
        self.weight = nn.Parameter(torch.empty(size // group.size, weight.shape[1], device="meta"))
        self.parameter_slices = {"weight": Slice(dim=0, index=group.rank, count=group.size, padded=size)}


def tied_head(stage: EmbeddingStage, hidden: torch.Tensor) -> Activation:
    """A tied head: hidden [B, S, D] -> (hidden, the embedding's weight [V/tp, D])."""
    return hidden, stage.embedding.weight
