"""DeepSpeed's configuration: what follows from the numbers, and that DeepSpeed reads it as meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megacpt.engine.settings import EngineSettings, deepspeed_config


def config(data_degree: int = 4, **settings: Any) -> dict[str, Any]:
    return deepspeed_config(EngineSettings(**{"micro_rows": 2, "num_micro_batches": 3, **settings}), data_degree)


def test_the_batch_is_that_of_all_data_ranks() -> None:
    values = config(data_degree=4)
    assert values["train_batch_size"] == 2 * 3 * 4
    assert values["train_micro_batch_size_per_gpu"] == 2
    assert values["gradient_accumulation_steps"] == 3


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_are_added_up_in_fp32(dtype: torch.dtype, zero_stage: int) -> None:
    values = config(dtype=dtype, zero_stage=zero_stage)
    assert values["zero_optimization"]["stage"] == zero_stage
    if dtype is torch.bfloat16:
        assert values["bf16"]["enabled"] and values["data_types"]["grad_accum_dtype"] == "fp32"
    else:
        assert "bf16" not in values and "data_types" not in values


def test_clipping_is_given_on_and_without_it_no_norm_is_clipped() -> None:
    assert config(gradient_clipping=0.7)["gradient_clipping"] == 0.7
    off = config(gradient_clipping=0.0)["gradient_clipping"]
    assert off == torch.finfo(torch.float32).max  # 0 would switch off the norm that is logged, too


@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_slices_of_the_sequence_are_not_sliced_again(sequence_parallel: bool) -> None:
    pipeline = config(sequence_parallel=sequence_parallel)["pipeline"]
    assert pipeline["pipe_partitioned"] is pipeline["grad_partitioned"] is not sequence_parallel


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_deepspeed_reads_it(dtype: torch.dtype, zero_stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    monkeypatch.setenv("WORLD_SIZE", "1")
    read = DeepSpeedConfig(config(data_degree=1, dtype=dtype, zero_stage=zero_stage, gradient_clipping=0.7))
    assert (read.train_batch_size, read.gradient_accumulation_steps) == (6, 3)
    assert read.zero_config.stage == zero_stage
    assert read.bfloat16_config.enabled == (dtype is torch.bfloat16)
    assert read.gradient_clipping == 0.7
    assert read.steps_per_print is None
    assert read.communication_data_type is torch.float32  # else bf16, for fp32 sums of bf16 gradients too
    assert not read.timers_config.enabled  # it synchronises at every micro-batch
