"""AdamW with what continual training adds to an update: pulls, interpolations and averages of the fp32 weights.

DeepSpeed's optimizers hand torch's optimizer the fp32 master weights that this rank owns, and make the weights of the
forward from them after every update. What is done here to the masters, inside that update, is therefore kept and
costs no communication, under every ZeRO stage and in a pipeline. (The published code of arXiv:2508.01908 interpolates
the bf16 weights instead; the next update copies the untouched masters over them.) All of it is elementwise, so a rank
need not know which parameters its elements belong to. What must be remembered is optimizer state beside AdamW's
moments, 4 bytes per parameter each, split over the data axis like them, and saved and loaded with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

STEP = "step"
"""AdamW's own state: the number of updates."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's own state: the moving averages of the gradient and of its square."""

INITIAL, SLOW, AVERAGE = "initial", "slow", "average"
"""State added here: the weights before the first update, at the last interpolation, and averaged over updates."""

WEIGHTS = (INITIAL, SLOW, AVERAGE)
"""State that is weights of another time, not a moment: where there is none, the present weights are meant."""


@dataclass(frozen=True)
class Reptile:
    """Every so many updates, go back most of the way to where the last interpolation left the weights.

        theta <- slow + step_size * (theta - slow),  slow <- theta

    To first order this also maximises the inner products of the gradients of the batches in between (Nichol et al.
    2018, arXiv:1803.02999, section 5), which with replay are old and new ones: meta-experience replay (Riemer et al.
    2019, arXiv:1810.11910; for pre-training arXiv:2508.01908, with 500 updates and 0.1). AdamW's moments go on.

    Attributes:
        every_updates: updates between two interpolations.
        step_size: the share of the way that is kept, 0 < step_size <= 1; 1 is plain training.
    """

    every_updates: int
    step_size: float


@dataclass(frozen=True)
class Additions:
    """What is done besides AdamW's update.

    Attributes:
        decay_to_initial: weight decay pulls to the weights before the first update instead of to zero.
        reptile: interpolation with earlier weights.
        average_decay: average <- average_decay * average + (1 - average_decay) * theta after every update.
    """

    decay_to_initial: bool = False
    reptile: Reptile | None = None
    average_decay: float | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The state that this takes: tensors of the parameters' shapes."""
        wanted = {INITIAL: self.decay_to_initial, SLOW: self.reptile, AVERAGE: self.average_decay is not None}
        return tuple(kind for kind, is_wanted in wanted.items() if is_wanted)


NOTHING = Additions()
"""Plain AdamW."""


class ContinualAdamW(torch.optim.AdamW):
    """torch's AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) and `Additions`.

    With `decay_to_initial` the decoupled decay of a group's `weight_decay` w becomes, before AdamW's update,

        theta <- theta - rate * w * (theta - initial)

    the decoupled form of L2-SP (Li et al. 2018, arXiv:1802.01483): decay to zero pulls a continued model away from what
    it knows. A group's `lr_multiplier` (1 where absent) is a factor on the rate that `set_rate` sets.

    Args:
        groups: as `megacpt.optim.groups.parameter_groups` makes them.
        betas, eps: AdamW's.
        additions: what else is done.

    Attributes:
        is_refused: asked before every update; True: weights and state stay as they are. DeepSpeed's optimizers reduce
            and clip gradients, call `step` of this one (once for each group), and write the masters back, so an update
            that is refused here leaves no trace, under every ZeRO stage.
    """

    is_refused: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(
        self,
        groups: list[dict[str, Any]],
        betas: tuple[float, float],
        eps: float,
        additions: Additions = NOTHING,
    ) -> None:
        self.additions = additions
        if additions.decay_to_initial:
            groups = [{**group, "weight_decay": 0.0, "pull": group["weight_decay"]} for group in groups]
        super().__init__(groups, lr=0.0, betas=betas, eps=eps, fused=True)

    def set_rate(self, learning_rate: float) -> None:
        """The learning rate of the next update."""
        for group in self.param_groups:
            group["lr"] = learning_rate * group.get("lr_multiplier", 1.0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """AdamW's update and the additions, on the parameters that have a gradient, unless it is refused."""
        if self.is_refused():
            return None
        # AdamW makes its state only where there is none, so what is remembered of a first update waits beside it.
        began = {
            parameter: {kind: parameter.clone() for kind in self.additions.kinds if kind not in self.state[parameter]}
            for _, parameter in self._updated()
        }
        if self.additions.decay_to_initial:
            for group, parameter in self._updated():
                initial = self.state[parameter].get(INITIAL)
                if initial is not None and group["pull"]:
                    parameter.lerp_(initial, group["lr"] * group["pull"])
        result = super().step(closure)
        for _, parameter in self._updated():
            self.state[parameter].update(began[parameter])
            self._interpolate(parameter)
        return result

    def _updated(self) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
        """What this update changes, with its group; DeepSpeed calls `step` with a part of the groups at a time."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield group, parameter

    def _interpolate(self, parameter: torch.Tensor) -> None:
        state, reptile, decay = self.state[parameter], self.additions.reptile, self.additions.average_decay
        if reptile is not None and int(state[STEP]) % reptile.every_updates == 0:
            parameter.copy_(torch.lerp(state[SLOW], parameter, reptile.step_size))
            state[SLOW].copy_(parameter)
        if decay is not None:
            state[AVERAGE].lerp_(parameter, 1.0 - decay)

    @torch.no_grad()
    def forget_moments(self) -> None:
        """Begin anew from the present weights: moments and the count of updates are zero, an interpolation starts here.

        The bias correction then acts as a warm-up of its own (arXiv:2403.08763 resets between datasets).
        """
        for state in self.state.values():
            for moment in MOMENTS:
                state[moment].zero_()
            state[STEP].zero_()
            state.pop(SLOW, None)
