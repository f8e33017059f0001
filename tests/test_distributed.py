"""The runner of multi-process tests itself: layouts one after the other, failures, hangs."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
import torch
import torch.distributed as dist

from tests.distributed import RankFailure, run_ranks


def sum_of_ranks(rank: int, scale: float) -> torch.Tensor:
    total = torch.tensor([rank * scale])
    dist.all_reduce(total)
    return total


def train_pipeline(rank: int, pipeline: int, tensor: int) -> float:
    """One DeepSpeed step of a tiny pipeline; the loss of the step."""
    import deepspeed
    from deepspeed.pipe import LayerSpec, PipelineModule
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    data = dist.get_world_size() // (pipeline * tensor)
    module = PipelineModule(
        [LayerSpec(torch.nn.Linear, 4, 4) for _ in range(2 * pipeline)],
        topology=PipeModelDataParallelTopology(pipeline, tensor, data),
        loss_fn=torch.nn.functional.mse_loss,
    )
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=torch.optim.AdamW(module.parameters(), lr=1e-3),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 2,
            "zero_optimization": {"stage": 1},
            "bf16": {"enabled": True},
        },
    )
    row = torch.ones(1, 4, dtype=torch.bfloat16)
    return float(engine.train_batch(iter([(row, row)] * 2)))


def environment_of_rank(rank: int) -> tuple[int, dict[str, str], bool]:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return rank, {name: os.environ[name] for name in names}, "tests.preload" in sys.modules


def fail_on_rank_1(rank: int) -> None:
    if rank == 1:
        raise ValueError("the tensor of rank 1 is upside down")
    dist.barrier()


def die_on_rank_1(rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def hang_on_rank_1(rank: int) -> None:
    if rank == 1:
        time.sleep(3600)
    dist.barrier()


def test_results_come_back_in_rank_order_with_the_environment_of_a_launcher() -> None:
    for expected_rank, (rank, environment, preloaded) in enumerate(run_ranks(3, environment_of_rank)):
        assert rank == expected_rank
        assert (environment["RANK"], environment["LOCAL_RANK"]) == (str(rank), str(rank))
        assert (environment["WORLD_SIZE"], environment["MASTER_ADDR"]) == ("3", "127.0.0.1")
        assert preloaded, "a module of the fork server's list could not be imported: every rank imports it anew"


def test_layouts_follow_each_other() -> None:
    assert [float(total) for total in run_ranks(2, sum_of_ranks, scale=0.5)] == [0.5] * 2
    losses = run_ranks(8, train_pipeline, pipeline=2, tensor=2)
    assert len(set(losses)) == 1
    assert [float(total) for total in run_ranks(1, sum_of_ranks, 2.0)] == [0.0]
    losses = run_ranks(4, train_pipeline, pipeline=4, tensor=1)
    assert len(set(losses)) == 1


def test_a_failing_rank_is_the_text_of_the_failure() -> None:
    with pytest.raises(RankFailure, match=r"rank 1 of 2 failed[\s\S]*fail_on_rank_1[\s\S]*upside down"):
        run_ranks(2, fail_on_rank_1)


def test_a_killed_rank_ends_the_call() -> None:
    with pytest.raises(RankFailure, match="rank 1 of 2 died with exit code -9"):
        run_ranks(2, die_on_rank_1)


def test_a_hanging_rank_shows_where_it_stands() -> None:
    with pytest.raises(RankFailure, match=r"not finished in 3 s[\s\S]*rank 1:[\s\S]*hang_on_rank_1"):
        run_ranks(2, hang_on_rank_1, timeout_seconds=3)
    assert [float(total) for total in run_ranks(2, sum_of_ranks, 1.0)] == [1.0, 1.0]
