"""Learning rates as pure functions of the tokens trained so far.

A schedule is a sequence of phases. Each phase goes from the rate where the one before it ended to a rate of its own,
along a shape that is exact at both ends; so a schedule is continuous and reaches its minimum exactly, by
construction. Counting tokens instead of steps means that a change of batch size does not bend the curve, and having
no state means that a resumed run cannot warm up again: the rate after n tokens is the same number however the run
got there. Nothing here needs torch, so a plan can be explained on a login node.

All rates are absolute (not factors of the peak), all positions are absolute token counts from the start of the run.
Beyond `end_tokens` the rate stays where it ended.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from megacpt.errors import RecipeError

Shape = Callable[[float, float, float], float]
"""(rate at the start, rate at the end, fraction of the phase in [0, 1]) -> rate."""


class Milestone(NamedTuple):
    """A point where a schedule's shape changes."""

    tokens: int
    learning_rate: float
    name: str


class Phase(NamedTuple):
    """A stretch of a schedule: from the rate before it to `rate`, over `num_tokens`."""

    name: str
    num_tokens: int
    rate: float
    shape: Shape


def _hold(start: float, end: float, fraction: float) -> float:
    return end


def _linear(start: float, end: float, fraction: float) -> float:
    return start * (1 - fraction) + end * fraction


def _cosine(start: float, end: float, fraction: float) -> float:
    return _linear(start, end, (1 - math.cos(math.pi * fraction)) / 2)


def _one_minus_sqrt(start: float, end: float, fraction: float) -> float:
    return _linear(start, end, math.sqrt(fraction))


def _exponential(start: float, end: float, fraction: float) -> float:
    return start ** (1 - fraction) * end**fraction


def _inverse_sqrt(steepness: float) -> Shape:
    def fall(fraction: float) -> float:
        return 1 / math.sqrt(1 + steepness * fraction) - 1

    return lambda start, end, fraction: _linear(start, end, fall(fraction) / fall(1.0))


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """What all schedules share: a linear warm-up to the peak, an end, and the walk through the phases.

    Args:
        peak: the highest rate.
        warmup_tokens: length of the linear warm-up from 0; 0 starts at the peak.
        end_tokens: tokens of the whole run.

    Raises:
        RecipeError: if the phases do not fit into `end_tokens`, or a rate is out of order.
    """

    peak: float
    end_tokens: int
    warmup_tokens: int = 0

    @abstractmethod
    def after_warmup(self) -> tuple[Phase, ...]:
        """The phases that follow the warm-up, in order."""

    def __post_init__(self) -> None:
        if not self.peak > 0:
            raise RecipeError("the peak learning rate must be above 0", where="lr.peak", found=self.peak)
        num_tokens = self.warmup_tokens
        for phase in self.after_warmup():
            if not 0 <= phase.rate <= self.peak:
                raise RecipeError(
                    f"the {phase.name} phase must end between 0 and the peak learning rate",
                    where="lr",
                    found=phase.rate,
                    expected=f"0 to {self.peak}",
                )
            if phase.num_tokens < (0 if phase.shape is _hold else 1):
                raise self._does_not_fit()
            num_tokens += phase.num_tokens
        if self.warmup_tokens < 0 or num_tokens > self.end_tokens:
            raise self._does_not_fit()

    def __call__(self, tokens: int) -> float:
        """The learning rate after `tokens` tokens of training."""
        start_tokens, rate = 0, self._first_rate
        for phase in self._phases():
            if tokens < start_tokens + phase.num_tokens:
                return phase.shape(rate, phase.rate, (tokens - start_tokens) / phase.num_tokens)
            start_tokens, rate = start_tokens + phase.num_tokens, phase.rate
        return rate

    def milestones(self) -> list[Milestone]:
        """The start, the end of every phase that has a length, and the end: for tables and plots."""
        points = [Milestone(0, self._first_rate, "start")]
        tokens = 0
        for phase in self._phases():
            if phase.num_tokens:
                tokens += phase.num_tokens
                points.append(Milestone(tokens, phase.rate, f"{phase.name} ends"))
        if tokens < self.end_tokens:
            points.append(Milestone(self.end_tokens, self(self.end_tokens), "constant ends"))
        return points

    @property
    def _first_rate(self) -> float:
        return 0.0 if self.warmup_tokens else self.peak

    def _phases(self) -> tuple[Phase, ...]:
        return (Phase("warm-up", self.warmup_tokens, self.peak, _linear), *self.after_warmup())

    def _does_not_fit(self) -> RecipeError:
        lengths = ", ".join(f"{phase.name} {phase.num_tokens:,}" for phase in self._phases())
        return RecipeError(
            "the phases of the learning rate do not fit into the run",
            where="lr",
            found=f"{lengths} tokens",
            expected=f"decays of at least 1 token, and all of them within {self.end_tokens:,} tokens",
            hint="Shorten lr.warmup, lr.decay, lr.cooldown or lr.anneal, or raise training.tokens",
        )


@dataclass(frozen=True)
class Chain:
    """Schedules one after another, each counting from where it begins: a learning rate for each stage of a run.

    Args:
        links: (first token, schedule), the first from token 0, each after the one before.
    """

    links: tuple[tuple[int, Schedule], ...]

    def __call__(self, tokens: int) -> float:
        """The learning rate after `tokens` tokens of training. A step belongs to the schedule that it begins in."""
        start, schedule = self.links[max(0, bisect_left(self.links, tokens, key=lambda link: link[0]) - 1)]
        return schedule(tokens - start)

    def milestones(self) -> list[Milestone]:
        """Those of all schedules."""
        return [
            Milestone(start + point.tokens, point.learning_rate, point.name)
            for start, schedule in self.links
            for point in schedule.milestones()
        ]


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """Warm up, then hold the peak: pilots, curricula by quality, and runs whose checkpoints are averaged."""

    def after_warmup(self) -> tuple[Phase, ...]:
        return ()


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Re-warm, then decay along half a cosine to the minimum at the end: the default of continued pre-training.

    With w the end of the warm-up and e the end of the run,

        eta(n) = minimum + (peak - minimum) / 2 * (1 + cos(pi * (n - w) / (e - w)))

    Ibrahim et al. 2024, "Simple and Scalable Strategies to Continually Pre-train Large Language Models",
    arXiv:2403.08763; Gupta et al. 2023, arXiv:2308.04014. Their minimum is a tenth of the peak.

    Args:
        minimum: the rate at `end_tokens`.
    """

    minimum: float

    def after_warmup(self) -> tuple[Phase, ...]:
        return (Phase("cosine", self.end_tokens - self.warmup_tokens, self.minimum, _cosine),)


@dataclass(frozen=True, kw_only=True)
class WSD(Schedule):
    """Warm up, stay at the peak, decay over the last `decay_tokens`.

    With r the fraction of the decay that is done,

        linear:          eta = peak * (1 - r) + minimum * r
        one_minus_sqrt:  eta = peak * (1 - sqrt(r)) + minimum * sqrt(r)

    The stable part can be branched into several deliverables, each with a decay of its own. Hu et al. 2024, "MiniCPM",
    arXiv:2404.06395; the 1-sqrt decay is of Haegele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond
    Fixed Training Durations", arXiv:2405.18392.

    Args:
        minimum: the rate at `end_tokens`.
        decay_tokens: length of the decay.
        decay_shape: "linear" or "one_minus_sqrt".
    """

    minimum: float
    decay_tokens: int
    decay_shape: Literal["linear", "one_minus_sqrt"] = "linear"

    def after_warmup(self) -> tuple[Phase, ...]:
        shape = {"linear": _linear, "one_minus_sqrt": _one_minus_sqrt}[self.decay_shape]
        num_stable_tokens = self.end_tokens - self.warmup_tokens - self.decay_tokens
        return (
            Phase("stable", num_stable_tokens, self.peak, _hold),
            Phase("decay", self.decay_tokens, self.minimum, shape),
        )


@dataclass(frozen=True, kw_only=True)
class _Infinite(Schedule):
    """Warm up, cool down to a constant rate, stay there; anneal only when a deliverable is wanted.

    The constant phase may span any number of data sets without warming up again: continue from the checkpoint before
    the anneal. The anneal covers the last `anneal_tokens`; with d its first token and e its last,

        eta(n) = constant * (minimum / constant) ** ((n - d) / (e - d))

    Args:
        constant: the rate of the open-ended phase.
        cooldown_tokens: length of the way from the peak to `constant`.
        anneal_tokens: length of the anneal at the end; 0 for none.
        minimum: the rate at `end_tokens`, if there is an anneal; above 0, for no exponential reaches 0.
    """

    constant: float
    cooldown_tokens: int
    anneal_tokens: int = 0
    minimum: float | None = None

    @abstractmethod
    def cooldown(self) -> Shape:
        """The shape of the way from the peak to the constant rate."""

    def __post_init__(self) -> None:
        if self.anneal_tokens and not (self.minimum and 0 < self.minimum <= self.constant):
            raise RecipeError(
                "an exponential anneal needs a minimum learning rate above 0 and not above the constant one",
                where="lr.min",
                found=self.minimum,
                expected=f"0 < min <= {self.constant}",
                hint="Set lr.min, or leave lr.anneal out",
            )
        super().__post_init__()

    def after_warmup(self) -> tuple[Phase, ...]:
        phases = (Phase("cooldown", self.cooldown_tokens, self.constant, self.cooldown()),)
        if not self.anneal_tokens or self.minimum is None:
            return phases
        num_constant_tokens = self.end_tokens - self.warmup_tokens - self.cooldown_tokens - self.anneal_tokens
        return (
            *phases,
            Phase("constant", num_constant_tokens, self.constant, _hold),
            Phase("anneal", self.anneal_tokens, self.minimum, _exponential),
        )


@dataclass(frozen=True, kw_only=True)
class InfiniteCosine(_Infinite):
    """An infinite schedule whose cooldown is half a cosine.

    With w and c the first and the last token of the cooldown,

        eta(n) = constant + (peak - constant) / 2 * (1 + cos(pi * (n - w) / (c - w)))

    Singh et al. 2025, "Beyond Cosine Decay: On the Effectiveness of Infinite Learning Rate Schedule for Continual
    Pre-training", arXiv:2503.02844; Ibrahim et al. 2024, arXiv:2403.08763.
    """

    def cooldown(self) -> Shape:
        return _cosine


@dataclass(frozen=True, kw_only=True)
class InfiniteInverseSqrt(_Infinite):
    """An infinite schedule whose cooldown is an inverse square root, stretched to end at the constant rate.

    With x the fraction of the cooldown that is done and h(x) = 1 / sqrt(1 + steepness * x) - 1,

        eta = peak + (constant - peak) * h(x) / h(1)

    Ibrahim et al. 2024, "Simple and Scalable Strategies to Continually Pre-train Large Language Models",
    arXiv:2403.08763.

    Args:
        steepness: how early the rate falls, above 0; at the default of 10, which is our choice, 85 % of the way down
            is done after half the cooldown.
    """

    steepness: float = 10.0

    def cooldown(self) -> Shape:
        if not self.steepness > 0:
            raise RecipeError("the steepness of the cooldown must be above 0", where="lr", found=self.steepness)
        return _inverse_sqrt(self.steepness)
