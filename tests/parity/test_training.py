"""A run of any layout gives the losses and gradient norms of plain transformers: every architecture on every layout."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from megacpt.checkpoint.huggingface import SafetensorsWeights, read_config
from megacpt.engine.engine import Engine
from megacpt.engine.pipelined import PipelinedEngine
from megacpt.engine.processes import make_tensor_group
from megacpt.engine.settings import EngineSettings
from megacpt.engine.sharded import ShardedEngine
from megacpt.model.blueprint import Blueprint
from megacpt.model.objective import Distillation, Objective
from megacpt.model.stages import StageFactory
from megacpt.parallel.grid import Grid
from megacpt.parallel.partition import partition
from tests.distributed import run_ranks
from tests.parity import tiny

LAYOUTS = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2)]
TOLERANCE = 1e-5


def train(
    rank: int,
    folder: Path,
    layout: tuple[int, int, int],
    *,
    micro_rows: int = 1,
    sequence_parallel: bool = False,
    zero_stage: int = 1,
    checkpointing: bool = False,
    num_steps: int = tiny.NUM_STEPS,
    teacher: Path | None = None,
    distillation: Distillation | None = None,
    **changes: Any,
) -> list[tuple[float, float]]:
    """The body of a rank: train the tiny model; (loss, gradient norm) of each step. `changes` are of the settings."""
    grid = Grid(pipeline=layout[0], tensor=layout[1], data=layout[2])
    group = make_tensor_group(grid, rank)
    blueprint = Blueprint(read_config(folder), torch.float32)
    source = SafetensorsWeights(folder, blueprint.base_name)
    factory = StageFactory(blueprint, source, group, sequence_parallel=sequence_parallel, vocab_multiple=8)
    settings = EngineSettings(
        micro_rows=micro_rows,
        num_micro_batches=tiny.GLOBAL_ROWS // grid.data // micro_rows,
        dtype=torch.float32,
        zero_stage=zero_stage,
        gradient_clipping=tiny.CLIPPING,
        activation_checkpointing=checkpointing,
        sequence_parallel=sequence_parallel,
        betas=tiny.BETAS,
        weight_decay=tiny.WEIGHT_DECAY,
        **changes,
    )
    objective = Objective(
        group,
        blueprint.vocab_size,
        tiny.NUM_DOMAINS,
        softcap=blueprint.logit_softcap,
        logit_scale=blueprint.logit_scale,
        distillation=distillation,
    )
    taught_by = None
    if teacher is not None:
        source = SafetensorsWeights(teacher, blueprint.base_name)
        taught_by = replace(factory, blueprint=Blueprint(read_config(teacher), torch.float32), source=source)
    engine = build_engine(factory, objective, grid, settings, taught_by)
    data_rank = grid.coordinate(rank).data
    history = []
    for step in range(num_steps):
        rows = tiny.rows_of_step(step)
        mine = rows[data_rank :: grid.data]
        batches = [
            tiny.micro_batch(mine[start : start + micro_rows], tiny.total_weight(rows))
            for start in range(0, len(mine), micro_rows)
        ]
        result = engine.train_step(batches, tiny.LEARNING_RATE)
        history.append((result.loss, result.grad_norm))
    return history


def build_engine(
    factory: StageFactory,
    objective: Objective,
    grid: Grid,
    settings: EngineSettings,
    teacher: StageFactory | None = None,
) -> Engine:
    if settings.zero_stage >= 2:
        return ShardedEngine(factory, objective, grid, settings, teacher)
    num_specs = factory.blueprint.num_layers + 3
    return PipelinedEngine(factory, objective, grid, partition([1.0] * num_specs, grid.pipeline), settings, teacher)


@cache
def plain(architecture: str, root: Path) -> tuple[Path, list[tuple[float, float]]]:
    folder = tiny.save_tiny_model(architecture, root / architecture)
    return folder, tiny.plain_training(folder)[0]


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def assert_same(histories: list[list[tuple[float, float]]], expected: list[tuple[float, float]]) -> None:
    for history in histories:
        torch.testing.assert_close(torch.tensor(history), torch.tensor(expected), rtol=TOLERANCE, atol=0.0)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_training_is_that_of_transformers(architecture: str, layout: tuple[int, int, int], model_root: Path) -> None:
    folder, expected = plain(architecture, model_root)
    world_size = layout[0] * layout[1] * layout[2]
    assert_same(run_ranks(world_size, train, folder, layout), expected)


@pytest.mark.parametrize("architecture", ["llama-tied", "qwen2", "qwen3", "olmo2", "gemma2", "phi3"])
def test_sequence_parallel_training_is_that_of_transformers(architecture: str, model_root: Path) -> None:
    folder, expected = plain(architecture, model_root)
    assert_same(run_ranks(4, train, folder, (2, 2, 1), sequence_parallel=True), expected)


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
def test_every_zero_stage_trains_as_transformers(architecture: str, zero_stage: int, model_root: Path) -> None:
    folder, expected = plain(architecture, model_root)
    assert_same(run_ranks(2, train, folder, (1, 1, 2), zero_stage=zero_stage), expected)


@pytest.mark.parametrize("layout, zero_stage", [((2, 1, 1), 1), ((1, 1, 2), 3), ((1, 2, 1), 2)], ids=str)
def test_recomputed_activations_change_nothing(layout: tuple[int, int, int], zero_stage: int, model_root: Path) -> None:
    folder, expected = plain("llama-tied", model_root)
    assert_same(run_ranks(2, train, folder, layout, zero_stage=zero_stage, checkpointing=True), expected)


def test_rows_per_micro_batch_change_nothing(model_root: Path) -> None:
    folder, expected = plain("gemma2", model_root)
    assert_same(run_ranks(2, train, folder, (1, 1, 2), micro_rows=4), expected)
