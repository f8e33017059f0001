"""Both implementations of the kernels, on whatever this machine has.

Without a GPU, Triton's interpreter runs the kernels (see `tests.conftest`). Tiles are small: a small row has many.
"""

from __future__ import annotations

import pytest
import torch

from megacpt_kernels.replay_cross_entropy.op import Kernel

TILE_COLUMNS = 64


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def is_interpreted(device: str) -> bool:
    """Whether Triton's interpreter runs the kernels; it truncates float32 to bfloat16, where a GPU rounds."""
    return device == "cpu"


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from megacpt_kernels.replay_cross_entropy import kernel

    monkeypatch.setattr(kernel, "BLOCK_COLUMNS", TILE_COLUMNS)


@pytest.fixture(params=["reference", "triton"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """The `kernel` argument of the ops."""
    if request.param == "triton":
        request.getfixturevalue("small_tiles")
    name: Kernel = request.param
    return name
