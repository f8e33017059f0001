"""The numbers an engine is built from, and the DeepSpeed configuration that follows from them, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from megacpt.optim.adamw import NOTHING, Additions


@dataclass(frozen=True)
class EngineSettings:
    """How one optimizer step is computed.

    Attributes:
        micro_rows: rows of one micro-batch on one data-parallel rank.
        num_micro_batches: micro-batches of one step on one data-parallel rank.
        dtype: of weights and activations; gradients are accumulated, and the optimizer works, in fp32.
        zero_stage: DeepSpeed's ZeRO stage (Rajbhandari et al. 2020, arXiv:1910.02054); 2 and 3 only without pipeline.
        gradient_clipping: the global gradient norm is clipped to this; 0: not at all.
        activation_checkpointing: keep only each decoder layer's input, recompute the rest in the backward.
        sequence_parallel: activations are split along the sequence over the tensor-parallel group.
        betas, eps, weight_decay: AdamW's (Loshchilov and Hutter 2019, arXiv:1711.05101).
        lr_multipliers: patterns of Hugging Face names -> factor on the learning rate, 0: frozen
            (`megacpt.optim.groups.multiplier_of`).
        additions: what is done to the fp32 weights besides AdamW's update.
    """

    micro_rows: int
    num_micro_batches: int
    dtype: torch.dtype = torch.bfloat16
    zero_stage: int = 1
    gradient_clipping: float = 1.0
    activation_checkpointing: bool = False
    sequence_parallel: bool = False
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)
    additions: Additions = NOTHING


def deepspeed_config(settings: EngineSettings, data_degree: int) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Args:
        settings: the numbers.
        data_degree: the data-parallel degree.
    """
    config: dict[str, Any] = {
        "train_batch_size": settings.micro_rows * settings.num_micro_batches * data_degree,
        "train_micro_batch_size_per_gpu": settings.micro_rows,
        "gradient_accumulation_steps": settings.num_micro_batches,
        # 0 would also switch off the norm that is logged; no gradient reaches the largest float.
        "gradient_clipping": settings.gradient_clipping or torch.finfo(torch.float32).max,
        "steps_per_print": None,
        "zero_optimization": {"stage": settings.zero_stage, "overlap_comm": settings.zero_stage >= 2},
        "zero_allow_untested_optimizer": True,
        "pipeline": {
            # Slicing activations over the tensor ranks on their way to the next stage assumes that they are
            # replicated; with sequence parallelism they already are slices.
            "pipe_partitioned": not settings.sequence_parallel,
            "grad_partitioned": not settings.sequence_parallel,
        },
        # It waits for the device, NCCL's streams included, before every micro-batch.
        "timers": {"throughput": {"enabled": False}},
        # With bf16 weights the sum over the data axis would otherwise be made in bf16, that of fp32 gradients too.
        "communication_data_type": "fp32",
    }
    if settings.dtype is torch.bfloat16:
        config["bf16"] = {"enabled": True, "immediate_grad_update": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
