"""A step whose loss or gradient is not finite, or that is not acceptable, changes neither weights nor moments."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from megacpt.checkpoint.huggingface import SafetensorsWeights, read_config
from megacpt.engine.engine import Engine, is_finite
from megacpt.engine.pipelined import PipelinedEngine
from megacpt.engine.processes import make_tensor_group
from megacpt.engine.settings import EngineSettings
from megacpt.engine.sharded import ShardedEngine
from megacpt.model.blueprint import Blueprint
from megacpt.model.objective import Objective
from megacpt.model.stages import StageFactory
from megacpt.parallel.grid import Grid
from tests.distributed import run_ranks
from tests.long_form import cases
from tests.parity import tiny

ENGINES = {
    "plain, fp32": (Grid(1, 1, 1), 0, torch.float32),
    "pipeline 2, ZeRO-1, bf16": (Grid(2, 1, 1), 1, torch.bfloat16),
    "data 2, ZeRO-1, fp32": (Grid(1, 2, 1), 1, torch.float32),
    "data 2, ZeRO-2, bf16": (Grid(1, 2, 1), 2, torch.bfloat16),
    "data 2, ZeRO-3, bf16": (Grid(1, 2, 1), 3, torch.bfloat16),
}


def make_engine(rank: int, folder: Path, grid: Grid, zero_stage: int, dtype: torch.dtype) -> Engine:
    group = make_tensor_group(grid, rank)
    blueprint = Blueprint(read_config(folder), dtype)
    factory = StageFactory(blueprint, SafetensorsWeights(folder, blueprint.base_name), group, vocab_multiple=8)
    settings = EngineSettings(
        micro_rows=4, num_micro_batches=2 // grid.data, dtype=dtype, zero_stage=zero_stage, gradient_clipping=1.0
    )
    objective = Objective(group, blueprint.vocab_size, tiny.NUM_DOMAINS)
    if zero_stage >= 2:
        return ShardedEngine(factory, objective, grid, settings)
    return PipelinedEngine(factory, objective, grid, [0, 3, 6] if grid.pipeline == 2 else [0, 6], settings)


def train(
    rank: int, folder: Path, engine_arguments: tuple[Grid, int, torch.dtype], disturbed: bool
) -> list[tuple[float, float, bool]]:
    """The body of a rank: three steps and, if disturbed, two bad ones between the first and the second."""
    grid = engine_arguments[0]
    engine = make_engine(rank, folder, *engine_arguments)
    place = grid.coordinate(rank)
    history = []

    def step(number: int, factor: float = 1.0, acceptable: Callable[[float, float], bool] = is_finite) -> None:
        rows = tiny.rows_of_step(number)
        batches = [tiny.micro_batch(rows[start : start + 4], tiny.total_weight(rows)) for start in (0, 4)]
        for batch in batches:
            batch.weights.mul_(factor)
        mine = batches[place.data :: grid.data]
        result = engine.train_step(mine, tiny.LEARNING_RATE, acceptable)
        history.append((result.loss, result.grad_norm, result.skipped))

    step(0)
    if disturbed:
        step(7, factor=math.nan if place.data == 0 else 1.0)  # bad data on one data-parallel rank
        step(8, acceptable=lambda loss, grad_norm: loss < 0.0)
    step(1)
    step(2)
    return history


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.mark.parametrize("engine", cases(ENGINES, always=("pipeline 2, ZeRO-1, bf16", "data 2, ZeRO-3, bf16")))
def test_a_refused_step_leaves_no_trace(engine: str, folder: Path) -> None:
    grid = ENGINES[engine][0]
    world_size = grid.pipeline * grid.data * grid.tensor
    undisturbed = run_ranks(world_size, train, folder, ENGINES[engine], False)
    disturbed = run_ranks(world_size, train, folder, ENGINES[engine], True)
    for expected, (first, not_finite, refused, *after) in zip(undisturbed, disturbed, strict=True):
        assert [first, *after] == expected
        assert not any(skipped for *_, skipped in expected)
        assert not_finite[1:] == (math.inf, True)
        assert refused[2] and math.isfinite(refused[1])
