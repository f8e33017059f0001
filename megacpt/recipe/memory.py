"""How much memory a rank needs, estimated before anything is started.

States are counted exactly up to norms and alignment; activations by what autograd saves in a decoder layer with a flash
attention kernel and fused norm and activation. For Llama-3-8B that is 34.0 bytes per token and hidden channel in bf16;
34.08 were measured with saved-tensor hooks. Left out: the CUDA context, NCCL's buffers and fragmentation, about 2 GiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megacpt.recipe.architecture import Architecture
from megacpt.recipe.resolve import Resolved

HEAD_CHUNK_TOKENS = 2048
"""Tokens whose logits exist at a time in the fused head and loss; twice as many where ranks share the vocabulary, whose
exchange overlaps with the next product."""


@dataclass(frozen=True)
class RankMemory:
    """Bytes on each rank of one pipeline stage, at the peak of a step."""

    weights_bytes: float
    gradients_bytes: float
    optimizer_bytes: float
    activations_bytes: float
    head_bytes: float

    @property
    def total_bytes(self) -> float:
        return (
            self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.activations_bytes + self.head_bytes
        )


def equal_time_layers(architecture: Architecture, pipeline: int, sequence_length: int) -> list[float]:
    """Layers per stage if layers could be cut anywhere: every stage takes the same time, the last one with the head."""
    if pipeline == 1:
        return [float(architecture.num_layers)]
    head_in_layers = architecture.head_in_layers(sequence_length)
    last = max(1.0, (architecture.num_layers + head_in_layers) / pipeline - head_in_layers)
    return [(architecture.num_layers - last) / (pipeline - 1)] * (pipeline - 1) + [last]


def estimate_memory(
    resolved: Resolved, architecture: Architecture, layers_per_stage: Sequence[float]
) -> list[RankMemory]:
    """The memory of a rank of each stage.

    States are split as the ZeRO stage says (Rajbhandari et al. 2020, arXiv:1910.02054); a stage of a 1F1B pipeline
    holds the activations of as many micro-batches as there are stages from it to the last (Narayanan et al. 2021,
    arXiv:2104.04473); sequence parallelism splits what tensor parallelism alone would replicate (Korthikanti et al.
    2022, arXiv:2205.05198).
    """
    recipe = resolved.recipe
    is_half = recipe.model.dtype == "bfloat16"
    zero = recipe.parallel.zero_stage
    element_bytes = 2 if is_half else 4
    vocabulary = architecture.padded_vocab_size(recipe.model.vocab_multiple, resolved.tensor) / resolved.tensor
    tokens = resolved.micro_rows * resolved.sequence_length
    # fp32 master weights and two moments; plain fp32 training needs no copy of the weights, but ZeRO keeps one.
    optimizer = recipe.optimizer
    copies = (optimizer.decay_to == "initial") + (optimizer.reptile is not None) + (optimizer.average_decay is not None)
    optimizer_bytes = (12 if is_half or zero >= 1 else 8) + 4 * copies
    last = resolved.pipeline - 1
    ranks = []
    for stage, layers in enumerate(layers_per_stage):
        shares_one = architecture.has_tied_embeddings and resolved.pipeline == 1
        embeddings = 1 if shares_one else (stage == 0) + (stage == last)
        parameters = layers * architecture.parameters_per_layer / resolved.tensor
        parameters += embeddings * vocabulary * architecture.hidden_size
        in_flight = min(resolved.num_micro_batches, resolved.pipeline - stage)
        # Gradients are summed in fp32; one that others are compared with is split as the optimizer's state is.
        gradients = parameters * 4 / (resolved.data if zero >= 2 else 1)
        if recipe.evaluation.gradient_alignment is not None:
            gradients += parameters * 4 / (resolved.data if zero >= 1 else 1)
        channels = _saved_channels(resolved, architecture, layers, in_flight)
        logit_bytes = 12 if recipe.loss.kernel == "reference" else element_bytes
        # A teacher has weights, and logits of a chunk, as the model has.
        models = 2 if recipe.loss.distillation else 1
        logit_tokens = min(tokens, HEAD_CHUNK_TOKENS * (2 if resolved.tensor > 1 else 1))
        ranks.append(
            RankMemory(
                weights_bytes=models * parameters * element_bytes / (resolved.data if zero >= 3 else 1),
                gradients_bytes=gradients,
                optimizer_bytes=parameters * optimizer_bytes / (resolved.data if zero >= 1 else 1),
                activations_bytes=channels * tokens * element_bytes,
                head_bytes=logit_tokens * vocabulary * logit_bytes * models if stage == last else 0,
            )
        )
    return ranks


def _saved_channels(resolved: Resolved, architecture: Architecture, layers: float, in_flight: int) -> float:
    """Values that a stage keeps per token for its backward."""
    width = architecture.hidden_size / (resolved.tensor if resolved.recipe.parallel.sequence_parallel else 1)
    query = architecture.num_heads * architecture.head_dim
    key_value = architecture.num_kv_heads * architecture.head_dim
    # Inputs and outputs of two norms; query, key, value and attention output; gate, up and their product.
    layer = 4 * width + (2 * query + 2 * key_value + 3 * architecture.intermediate_size) / resolved.tensor
    if resolved.recipe.parallel.activation_checkpointing == "full":
        return layers * width * in_flight + layer
    return layers * layer * in_flight


def checkpoint_bytes(architecture: Architecture) -> float:
    """The size of one checkpoint: fp32 master weights and two moments."""
    return architecture.num_parameters * 12


def num_checkpoints(resolved: Resolved) -> int:
    """How many checkpoints of a whole run the disk must hold, the one that is being written included."""
    settings = resolved.recipe.checkpoint
    spans = resolved.total_tokens // settings.keep_every_tokens if settings.keep_every_tokens else 0
    return settings.keep_last + len(resolved.milestones_tokens) + spans + 1
