"""The environment of every test, and which tests need something that a machine may not have."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

# Before anything imports torch, triton or DeepSpeed; the ranks of tests.distributed inherit it.
for _name, _value in {
    "DS_ACCELERATOR": "cpu",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # the fork server has to be single-threaded
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(_name, _value)

import hypothesis
import pytest
import torch

# The same examples in every run, and none that fails for being slow.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder of the source tree."""
    return Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run."""
    missing = {"gpu": not torch.cuda.is_available(), "slurm": shutil.which("sbatch") is None}
    for item in items:
        for marker, is_missing in missing.items():
            if is_missing and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"no {marker} on this machine"))
