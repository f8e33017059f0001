"""The loss adds the head's gradient straight to DeepSpeed's buffer: same training, nothing of the head's size made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megacpt.engine.pipelined import PipelinedEngine
from megacpt.parallel.grid import Grid
from tests.allocations import Allocations
from tests.distributed import run_ranks
from tests.long_form import cases
from tests.parity import tiny
from tests.parity.engines import History, build_engine, train_steps

NUM_STEPS, MICRO_ROWS = 2, 2
BFLOAT16 = 2**-8
"""The rounding of a gradient that autograd carries."""


def train(rank: int, folder: Path, layout: tuple[int, int, int], uses_buffer: bool) -> tuple[History, list[str] | None]:
    """The body of a rank: bf16 steps, and on the last stage what made tensors of the head's shape."""
    grid = Grid(pipeline=layout[0], tensor=layout[1], data=layout[2])
    engine = build_engine(rank, folder, grid, micro_rows=MICRO_ROWS, dtype=torch.bfloat16)
    assert isinstance(engine, PipelinedEngine)
    is_last = grid.coordinate(rank).pipeline == grid.pipeline - 1
    assert (engine.head_gradient is not None) == is_last
    if not uses_buffer:
        engine.head_gradient = engine.objective.grad_head_VD = None
    with Allocations(engine.module.head_weight().shape if is_last else torch.Size()) as allocations:
        history = train_steps(engine, rank, grid, range(NUM_STEPS), MICRO_ROWS)
    return history, allocations.names if is_last else None


@pytest.mark.parametrize(
    "architecture, layout",
    cases(
        [("llama", (2, 1, 2)), ("llama-tied", (2, 2, 1)), ("llama-tied", (1, 1, 2))], always=[("llama-tied", (2, 2, 1))]
    ),
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
        num_products = NUM_STEPS * tiny.GLOBAL_ROWS // MICRO_ROWS // layout[2]
        for _, names in buffered[2:]:
            # A CPU's products are made in fp32, from a copy of the head; on a GPU even that is not made.
            assert names == ["aten::_to_copy"] * num_products
        for _, names in carried[2:]:
            assert len(names) > 2 * num_products
