"""A run of any layout gives the losses and gradient norms of plain transformers: every architecture on every layout."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch

from megacpt_kernels.replay_cross_entropy.op import Kernel
from tests.distributed import run_ranks
from tests.long_form import cases
from tests.parity import tiny
from tests.parity.engines import train

LAYOUTS = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 2)]
TOLERANCE = 1e-5


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


@pytest.mark.parametrize(
    "architecture, layout",
    cases(
        product(tiny.ARCHITECTURES, LAYOUTS),
        always=[
            *product(["llama-tied"], LAYOUTS),
            *product(tiny.ARCHITECTURES, [(1, 1, 1), (2, 2, 2)]),
        ],
    ),
)
def test_training_is_that_of_transformers(architecture: str, layout: tuple[int, int, int], model_root: Path) -> None:
    folder, expected = plain(architecture, model_root)
    world_size = layout[0] * layout[1] * layout[2]
    assert_same(run_ranks(world_size, train, folder, layout), expected)


@pytest.mark.parametrize(
    "architecture",
    cases(
        ["llama-tied", "qwen2", "qwen3", "olmo2", "gemma2", "phi3"], always=["llama-tied", "qwen3", "gemma2", "phi3"]
    ),
)
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


@pytest.mark.parametrize("kernel", cases(["reference", "triton"], always=["triton"]))
@pytest.mark.parametrize("architecture", ["llama", "llama-tied"])
def test_either_kernel_trains_as_transformers(architecture: str, kernel: Kernel, model_root: Path) -> None:
    """On the last stage, its vocabulary split; without a GPU, Triton's interpreter runs the kernels."""
    folder, expected = plain(architecture, model_root)
    assert_same(run_ranks(4, train, folder, (2, 2, 1), kernel=kernel, num_steps=3), expected[:3])
