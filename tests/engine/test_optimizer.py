"""What every rank must be able to train, so that DeepSpeed can sum over stages."""

from __future__ import annotations

import re

import pytest
import torch.distributed as dist
from torch import nn

from megacpt.engine.optimizer import make_optimizer
from megacpt.engine.settings import EngineSettings
from megacpt.errors import ModelError


def beside(monkeypatch: pytest.MonkeyPatch, *others: tuple[int, int]) -> None:
    """Let there be other ranks, with so many (groups, tensors)."""

    def gather(sizes: list[tuple[int, int]], mine: tuple[int, int]) -> None:
        sizes[:] = [mine, *others]

    monkeypatch.setattr(dist, "get_world_size", lambda: 1 + len(others))
    monkeypatch.setattr(dist, "all_gather_object", gather)


@pytest.mark.parametrize(
    "multipliers, message",
    [
        ({}, "found 1 tensors, expected at least 2). Freeze less"),
        ({"*": 0.0}, "every parameter of a pipeline stage is frozen"),
    ],
)
def test_a_stage_with_too_little_to_train_is_refused(
    multipliers: dict[str, float], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(monkeypatch, (2, 9))
    with pytest.raises(ModelError, match=rf"^optimizer\.lr_multipliers: .*{re.escape(message)}"):
        make_optimizer(nn.Embedding(8, 4).named_parameters(), EngineSettings(1, 1, lr_multipliers=multipliers))


def test_groups_are_as_many_as_on_the_other_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    beside(monkeypatch, (4, 9))
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    assert len(make_optimizer(layers.named_parameters(), EngineSettings(1, 1)).param_groups) == 4
