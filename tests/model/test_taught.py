"""What a model and its teacher hand on from stage to stage."""

from __future__ import annotations

import pytest
import torch

from megacpt.model.stages import DecoderStage, EmbeddingStage
from megacpt.model.taught import TaughtStage
from tests.model.whole import small_config, stage_factory

NCCL = {torch.uint8, torch.int8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64}
"""What it sends; integers of 16 bits are not among them."""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_teachers_states_travel_unchanged_in_a_type_that_nccl_sends(dtype: torch.dtype) -> None:
    student, teacher = (stage_factory(small_config("llama"), dtype=dtype) for _ in range(2))
    ids, positions = torch.arange(3, 11)[None], torch.arange(8)[None]
    activation = TaughtStage(EmbeddingStage, student, teacher)((ids, positions))
    stage = TaughtStage(DecoderStage, student, teacher, 0)
    activation = stage(activation)
    assert {tensor.dtype for tensor in activation} <= NCCL
    hidden, _, raw = activation
    assert not raw.requires_grad and torch.equal(raw.view(dtype), hidden)  # the same weights, the same states
