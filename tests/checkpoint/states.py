"""Small states to save: what ranks of a layout hold of given tensors, made without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.folder import CheckpointFolder, Retention
from megacpt.checkpoint.saving import Saver
from megacpt.parallel.fragments import Fragment, Held

KINDS = ("master", "exp_avg", "exp_avg_sq")


def held_of(tensors: Mapping[str, torch.Tensor]) -> list[Held]:
    """All of these tensors on one rank; their moments are the tensors, scaled."""
    return [
        Held(
            Fragment(name, tuple(tensor.shape), None, 0, tensor.numel()),
            {kind: tensor.detach().float().reshape(-1) * (1 + i) for i, kind in enumerate(KINDS)},
        )
        for name, tensor in tensors.items()
    ]


def random_tensors(num_elements: int = 1000, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(num_elements // 10, 10, generator=generator), "b": torch.randn(7, generator=generator)}


def save_checkpoint(run: Path, step: int, tensors: Mapping[str, torch.Tensor] | None = None, **state: Any) -> Path:
    """A complete checkpoint of one process in the run folder; none is removed."""
    saver = Saver(CheckpointFolder(run / "checkpoints"), Channel(), Retention(keep_last=100))
    state = {"step": step, "tokens": 100 * step} | state
    record = saver.save(state, {"optimizer_updates": step}, held_of(tensors or random_tensors(seed=step)))
    assert record is not None and record.path is not None, record
    return Path(record.path)
