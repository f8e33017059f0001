"""Bodies of ranks that train a tiny model in a given layout, without the training command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from megacpt_kernels.replay_cross_entropy.op import Kernel
from tests.parity import tiny

History = list[tuple[float, float]]


def build_engine(
    rank: int,
    folder: Path,
    grid: Grid,
    *,
    micro_rows: int = 1,
    sequence_parallel: bool = False,
    zero_stage: int = 1,
    checkpointing: bool = False,
    dtype: torch.dtype = torch.float32,
    bounds: Sequence[int] | None = None,
    teacher: Path | None = None,
    distillation: Distillation | None = None,
    kernel: Kernel = "auto",
    **changes: Any,
) -> Engine:
    """An engine for the tiny model at `folder`; stages of equal numbers of layers unless `bounds` says otherwise.

    `changes` are of the other settings.
    """
    group = make_tensor_group(grid, rank)
    blueprint = Blueprint(read_config(folder), dtype)
    source = SafetensorsWeights(folder, blueprint.base_name)
    factory = StageFactory(blueprint, source, group, sequence_parallel=sequence_parallel, vocab_multiple=8)
    settings = EngineSettings(
        micro_rows=micro_rows,
        num_micro_batches=tiny.GLOBAL_ROWS // grid.data // micro_rows,
        dtype=dtype,
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
        kernel=kernel,
        distillation=distillation,
    )
    taught_by = None
    if teacher is not None:
        source = SafetensorsWeights(teacher, blueprint.base_name)
        taught_by = replace(factory, blueprint=Blueprint(read_config(teacher), dtype), source=source)
    if zero_stage >= 2:
        return ShardedEngine(factory, objective, grid, settings, taught_by)
    bounds = bounds or partition([1.0] * (blueprint.num_layers + 3), grid.pipeline)
    return PipelinedEngine(factory, objective, grid, bounds, settings, taught_by)


def train_steps(engine: Engine, rank: int, grid: Grid, steps: Sequence[int], micro_rows: int = 1) -> History:
    """(loss, gradient norm) of each of these steps."""
    history = []
    for step in steps:
        rows = tiny.rows_of_step(step)
        mine = rows[grid.coordinate(rank).data :: grid.data]
        batches = [
            tiny.micro_batch(mine[start : start + micro_rows], tiny.total_weight(rows))
            for start in range(0, len(mine), micro_rows)
        ]
        result = engine.train_step(batches, tiny.LEARNING_RATE)
        history.append((result.loss, result.grad_norm))
    return history


def train(
    rank: int,
    folder: Path,
    layout: tuple[int, int, int],
    *,
    micro_rows: int = 1,
    num_steps: int = tiny.NUM_STEPS,
    **settings: Any,
) -> History:
    """The body of a rank: train the tiny model; (loss, gradient norm) of each step."""
    grid = Grid(pipeline=layout[0], tensor=layout[1], data=layout[2])
    engine = build_engine(rank, folder, grid, micro_rows=micro_rows, **settings)
    return train_steps(engine, rank, grid, range(num_steps), micro_rows)
