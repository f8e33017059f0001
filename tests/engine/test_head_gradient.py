"""The loss adds the head's gradient straight to DeepSpeed's buffer: same training, nothing of the head's size made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megacpt.checkpoint.huggingface import SafetensorsWeights, read_config
from megacpt.engine.pipelined import PipelinedEngine
from megacpt.engine.processes import make_tensor_group
from megacpt.engine.settings import EngineSettings
from megacpt.model.blueprint import Blueprint
from megacpt.model.objective import Objective
from megacpt.model.stages import StageFactory
from megacpt.parallel.grid import Grid
from megacpt.parallel.partition import partition
from tests.allocations import Allocations
from tests.distributed import run_ranks
from tests.parity import tiny

NUM_STEPS = 2
BFLOAT16 = 2**-8
"""The rounding of a gradient that autograd carries."""


def train(
    rank: int, folder: Path, layout: tuple[int, int, int], uses_buffer: bool
) -> tuple[list[tuple[float, float]], list[str] | None]:
    """The body of a rank: (loss, norm) of each bf16 step; on the last stage, what made tensors of the head's shape."""
    grid = Grid(pipeline=layout[0], tensor=layout[1], data=layout[2])
    blueprint = Blueprint(read_config(folder), torch.bfloat16)
    factory = StageFactory(
        blueprint, SafetensorsWeights(folder, blueprint.base_name), make_tensor_group(grid, rank), vocab_multiple=8
    )
    settings = EngineSettings(micro_rows=2, num_micro_batches=tiny.GLOBAL_ROWS // 2 // grid.data, zero_stage=1)
    objective = Objective(factory.group, blueprint.vocab_size, tiny.NUM_DOMAINS)
    bounds = partition([1.0] * (blueprint.num_layers + 3), grid.pipeline)
    engine = PipelinedEngine(factory, objective, grid, bounds, settings)
    is_last = grid.coordinate(rank).pipeline == grid.pipeline - 1
    assert (engine.head_gradient is not None) == is_last
    if not uses_buffer:
        engine.head_gradient = objective.grad_head_VD = None
    allocations = Allocations(engine.module.head_weight().shape if is_last else torch.Size())
    history = []
    for step in range(NUM_STEPS):
        rows = tiny.rows_of_step(step)
        mine = rows[grid.coordinate(rank).data :: grid.data]
        batches = [tiny.micro_batch(mine[i : i + 2], tiny.total_weight(rows)) for i in range(0, len(mine), 2)]
        with allocations:
            result = engine.train_step(batches, tiny.LEARNING_RATE)
        history.append((result.loss, result.grad_norm))
    return history, allocations.names if is_last else None


@pytest.mark.parametrize(
    "architecture, layout",
    [("llama", (2, 1, 2)), ("llama-tied", (2, 2, 1)), ("llama-tied", (1, 1, 2))],
    ids=str,
)
def test_a_buffer_changes_nothing_but_rounding(architecture: str, layout: tuple[int, int, int], tmp_path: Path) -> None:
    folder = tiny.save_tiny_model(architecture, tmp_path / "model")
    world_size = layout[0] * layout[1] * layout[2]
    buffered = run_ranks(world_size, train, folder, layout, uses_buffer=True)
    carried = run_ranks(world_size, train, folder, layout, uses_buffer=False)
    for (history, _), (expected, _) in zip(buffered, carried, strict=True):
        torch.testing.assert_close(torch.tensor(history), torch.tensor(expected), rtol=BFLOAT16, atol=0.0)
        assert history[0][0] == expected[0][0]
    if layout[0] > 1:  # the first stage's embedding has a gradient of that shape too
        num_products = NUM_STEPS * tiny.GLOBAL_ROWS // 2 // layout[2]
        for _, names in buffered[2:]:
            # A CPU's products are made in fp32, from a copy of the head; on a GPU even that is not made.
            assert names == ["aten::_to_copy"] * num_products
        for _, names in carried[2:]:
            assert len(names) > 2 * num_products
