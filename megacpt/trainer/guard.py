"""Bad numbers: which steps are refused, when a run is rolled back, and when it ends.

A step whose loss or gradient norm is not finite is never applied. A *spike* is a finite one that lies far above its
recent past. With x the loss or the logarithm of the gradient norm of a step, and W its values over the last
`window_steps` steps that were not bad,

    spike:  x > median(W) + threshold * max(1.4826 * median(|W - median(W)|), floor)

Median and MAD, unlike mean and standard deviation, are not moved by the spikes themselves; 1.4826 MAD is the standard
deviation of normal values (Rousseeuw and Croux 1993). The floor (0.01 nats; 5 % of a norm) keeps a run whose values
hardly vary from tripping over nothing. Norms are judged by their logarithm, for they vary by factors.

What a spike leads to is the recipe's choice (`guard.on_spike`). Rolling back and jumping over the samples around the
spike is what PaLM's authors did by hand (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1). They found that the
same samples trained without trouble from another state of the weights: a spike is an accident of both, so leaving out a
few steps' samples costs nothing.

Every rank sees the same numbers and holds a guard of its own: no decision needs communication.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from megacpt.data.loader import Loader
from megacpt.engine.engine import StepResult
from megacpt.errors import TrainingError
from megacpt.observe.events import Events
from megacpt.observe.log import logger

FLOORS = {"loss": 0.01, "grad_norm": 0.05}
MIN_STEPS = 16
"""Nothing is a spike before the window holds so many steps."""
NORMAL_MAD = 1.4826

OnSpike = Literal["warn", "skip", "rollback"]


@dataclass(frozen=True)
class GuardSettings:
    """See the recipe's section `guard`, whose keys these are."""

    on_spike: OnSpike
    window_steps: int
    threshold: float
    patience_steps: int
    jump_before_steps: int
    max_skipped_steps: int
    max_rollbacks: int


@dataclass(frozen=True)
class Rollback:
    """Go back to a checkpoint and leave samples out.

    Attributes:
        before_step: the checkpoint must be of an earlier step than this one: the first bad one.
        jump_from_step, jump_to_step: the steps, both included, whose samples are not to be used.
    """

    before_step: int
    jump_from_step: int
    jump_to_step: int


class Guard:
    """Judges every step. The steps here count from 1, as in records.

    Args:
        settings: the rules.
        events: where bad steps are noted.
        loader: says which samples a step has, for the notes.
    """

    def __init__(
        self,
        settings: GuardSettings,
        events: Events,
        loader: Loader,
    ) -> None:
        self.settings = settings
        self.events = events
        self.loader = loader
        self.num_rollbacks = 0
        self.num_skipped_steps = 0
        self._windows = {name: deque[float](maxlen=settings.window_steps) for name in FLOORS}
        self._first_bad_step: int | None = None

    def is_acceptable(self, loss: float, grad_norm: float) -> bool:
        """Whether a step's update may be applied."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return False
        return self.settings.on_spike == "warn" or not self._spikes(loss, grad_norm)

    def after_step(self, step: int, result: StepResult) -> Rollback | None:
        """Note what a step gave; what is to be done about it, if anything.

        Raises:
            TrainingError: bad steps do not end, or the rollbacks are used up.
        """
        values = {"loss": result.loss, "grad_norm": result.grad_norm}
        finite = all(map(math.isfinite, values.values()))
        limits = self._spikes(**values) if finite else {}
        is_bad = not finite or bool(limits)
        if is_bad:
            self._report(step, values, limits, result.skipped)
        if not is_bad or (finite and self.settings.on_spike == "warn"):
            self._first_bad_step = None
            self._windows["loss"].append(result.loss)
            self._windows["grad_norm"].append(math.log(max(result.grad_norm, 1e-30)))
            return None
        self.num_skipped_steps += 1
        self._first_bad_step = step if self._first_bad_step is None else self._first_bad_step
        num_bad = step - self._first_bad_step + 1
        if self.settings.on_spike == "rollback" and num_bad >= self.settings.patience_steps:
            return self._roll_back(step)
        if num_bad >= self.settings.max_skipped_steps:
            raise TrainingError(
                f"{num_bad} steps in a row were skipped: this does not pass by itself",
                where=f"step {step}",
                found=f"loss {result.loss:.4g}, gradient norm {result.grad_norm:.4g}",
                hint="Look at events.jsonl. Continue from an older checkpoint with a lower lr.peak, or on other data.",
            )
        return None

    def _roll_back(self, step: int) -> Rollback:
        assert self._first_bad_step is not None
        if self.num_rollbacks >= self.settings.max_rollbacks:
            raise TrainingError(
                f"the run has been rolled back {self.num_rollbacks} times, which is guard.max_rollbacks",
                where=f"step {step}",
                hint="Look at events.jsonl. A lower lr.peak, or a look at the data, will help more than another jump.",
            )
        first_bad, self._first_bad_step = self._first_bad_step, None
        self.num_rollbacks += 1
        return Rollback(first_bad, max(1, first_bad - self.settings.jump_before_steps), step)

    def _spikes(self, loss: float, grad_norm: float) -> dict[str, float]:
        """What lies above its limit, and the limit."""
        values = {"loss": loss, "grad_norm": math.log(max(grad_norm, 1e-30))}
        limits = {}
        for name, window in self._windows.items():
            if len(window) >= min(MIN_STEPS, self.settings.window_steps):
                middle = median(window)
                spread = max(NORMAL_MAD * median(abs(value - middle) for value in window), FLOORS[name])
                limit = middle + self.settings.threshold * spread
                if values[name] > limit:
                    limits[name] = limit if name == "loss" else math.exp(limit)
        return limits

    def _report(self, step: int, values: dict[str, float], limits: dict[str, float], skipped: bool) -> None:
        history = self.loader.stream.history
        first_sample = history.first_sample(step - 1)
        num_samples = history.settings(step - 1).global_rows
        what = ", ".join(f"{name} {values[name]:.4g} above {limit:.4g}" for name, limit in limits.items())
        what = what or f"loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}"
        logger().info(
            "step %d is %s: %s (samples %d to %d)",
            step,
            "skipped" if skipped else "a spike",
            what,
            first_sample,
            first_sample + num_samples - 1,
        )  # rank 0 says it for all
        self.events.write(
            "spike" if limits else "not_finite",
            step=step,
            skipped=skipped,
            **values,
            limits=limits,
            first_sample=first_sample,
            num_samples=num_samples,
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "num_rollbacks": self.num_rollbacks,
            "num_skipped_steps": self.num_skipped_steps,
            "first_bad_step": self._first_bad_step,
            "windows": {name: list(window) for name, window in self._windows.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint kept; rollbacks made since it still count."""
        self.num_rollbacks = max(self.num_rollbacks, state["num_rollbacks"])
        self.num_skipped_steps = state["num_skipped_steps"]
        self._first_bad_step = state["first_bad_step"]
        for name, window in self._windows.items():
            window.clear()
            window.extend(state["windows"][name])
