"""The masters and the optimizer's state: what is taken over from a checkpoint."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megacpt.engine.master import TrainingState
from megacpt.optim.adamw import AVERAGE, INITIAL, MOMENTS, SLOW, Additions, ContinualAdamW, Reptile
from megacpt.parallel.fragments import MASTER, Fragment


class Source:
    """A state in which everything is 2."""

    kinds = (MASTER, *MOMENTS, INITIAL, SLOW, AVERAGE)
    counters = {"optimizer_updates": 7, "global_steps": 7, "global_samples": 7, "skipped_steps": 0}  # noqa: RUF012

    def fill(self, fragment: Fragment, kind: str, values: torch.Tensor) -> None:
        values.fill_(2.0)


@pytest.mark.parametrize(
    ("additions", "kept"),
    [
        (Additions(), {INITIAL}),
        (Additions(average_decay=0.9), {INITIAL, AVERAGE}),
        (Additions(decay_to_initial=True, reptile=Reptile(5, 0.5)), {INITIAL, SLOW}),
    ],
)
def test_what_is_no_longer_kept_up_is_left_behind(additions: Additions, kept: set[str]) -> None:
    """Weights of a last interpolation of long ago would pull all that was learned since back, once it is on again."""
    weight = torch.nn.Parameter(torch.zeros(3))
    groups = [{"params": [weight], "weight_decay": 0.1}]
    optimizer = ContinualAdamW(groups, betas=(0.9, 0.95), eps=1e-8, additions=additions)
    state = TrainingState(
        SimpleNamespace(optimizer=optimizer), lambda: iter([("w", weight, None)]), 9, tensor_rank=0, data_rank=0
    )
    state.fill(Source())
    assert weight.tolist() == [2.0] * 3
    assert optimizer.state[weight].keys() == {"step", *MOMENTS, *kept}
