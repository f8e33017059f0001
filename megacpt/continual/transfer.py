"""Forgetting and transfer between the stages of a run, from the losses of every domain after every stage.

R[i][j] is the held-out loss of domain j after stage i; stage 0 is the base model. Signs are chosen so that a positive
transfer is good and a positive forgetting is bad. The measures are those of Lopez-Paz and Ranzato 2017,
arXiv:1706.08840, and of the survey of Shi et al. 2024, arXiv:2404.16789, turned from accuracies to losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from megacpt.continual.curves import Curve


def forgetting(curve: Curve) -> float:
    """How far the loss is above the base model's, L(T) - L(0), in nats per token; what `forgetting:` budgets limit."""
    return curve.last - curve.base


def forgetting_from_best(curve: Curve) -> float:
    """How far the loss is above its own lowest, L(T) - min_t L(t) >= 0: also counts what the run itself had gained."""
    return curve.last - min(curve.losses)


@dataclass(frozen=True)
class StageMatrix:
    """R: the loss of every domain after every stage.

    Attributes:
        domains: the columns.
        tokens: where each row was measured; the first is 0.
        losses: the rows, in nats per token.
        learned_in: domain -> the stage that first trains on it as new text; 0 for what the base model brings along.
    """

    domains: tuple[str, ...]
    tokens: tuple[int, ...]
    losses: tuple[tuple[float, ...], ...]
    learned_in: Mapping[str, int]

    @classmethod
    def from_curves(
        cls, curves: Mapping[str, Curve], stage_ends_tokens: Sequence[int], learned_in: Mapping[str, int]
    ) -> StageMatrix:
        """Read R off the curves.

        Args:
            curves: of the domains.
            stage_ends_tokens: where each stage ends; stages that begin beyond the last evaluation are left out, and the
                present one is measured where it stands.
            learned_in: as the attribute; domains not named count as brought along.
        """
        last = max((curve.tokens[-1] for curve in curves.values()), default=0)
        begun = [end for begin, end in zip((0, *stage_ends_tokens), stage_ends_tokens, strict=False) if begin < last]
        tokens = (0, *(min(end, last) for end in begun))
        losses = tuple(tuple(curve.at(point) for curve in curves.values()) for point in tokens)
        return cls(tuple(curves), tokens, losses, {name: learned_in.get(name, 0) for name in curves})

    @property
    def last_stage(self) -> int:
        """T, the number of stages so far."""
        return len(self.losses) - 1

    def loss(self, stage: int, domain: str) -> float:
        """R[stage][domain]."""
        return self.losses[stage][self.domains.index(domain)]

    def backward_transfer(self) -> float | None:
        """What later stages did to earlier domains: the mean of R[s][j] - R[T][j] over all j learned in a stage s < T.

        None where there is no such domain.
        """
        earlier = [(name, stage) for name, stage in self.learned_in.items() if stage < self.last_stage]
        return _mean(self.loss(stage, name) - self.loss(self.last_stage, name) for name, stage in earlier)

    def forward_transfer(self) -> float | None:
        """What earlier stages did for later domains: the mean of R[0][j] - R[s - 1][j] over all j learned in s >= 2.

        None where there is no such domain.
        """
        later = [(name, stage) for name, stage in self.learned_in.items() if 2 <= stage <= self.last_stage]
        return _mean(self.loss(0, name) - self.loss(stage - 1, name) for name, stage in later)

    def retained_loss(self) -> float | None:
        """Stability: the mean of R[T][j] over all domains met so far (arXiv:2508.01908)."""
        return _mean(
            self.loss(self.last_stage, name) for name, stage in self.learned_in.items() if stage <= self.last_stage
        )

    def learned_loss(self) -> float | None:
        """Plasticity: the mean of R[s][j], each domain at the end of the stage s that trained it (arXiv:2508.01908)."""
        trained = [(name, stage) for name, stage in self.learned_in.items() if 1 <= stage <= self.last_stage]
        return _mean(self.loss(stage, name) for name, stage in trained)


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return math.fsum(found) / len(found) if found else None


def prequential_loss(losses: Sequence[float], tokens: Sequence[int]) -> list[float]:
    """The mean loss of all tokens so far, each measured before it was trained on.

    In the first epoch the training loss of a step is the loss of unseen text, so its running mean (the code length of
    the stream, in nats per token) says how fast the model adapts, without held-out text. From the second epoch on it
    is flattered by what the model remembers.

    Args:
        losses: of each step, unweighted, in nats per token; one that is not finite, whose step was not applied, is left
            out.
        tokens: each a mean of how many.
    """
    running, nats, count = [], 0.0, 0
    for loss, num_tokens in zip(losses, tokens, strict=True):
        if math.isfinite(loss):
            nats, count = nats + loss * num_tokens, count + num_tokens
        running.append(nats / count if count else math.nan)
    return running


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which of several (learned, forgotten) pairs no other one beats: learned at least as much, forgot no more, and
    better in one of the two. Indices, by falling forgetting."""

    def beaten(one: tuple[float, float]) -> bool:
        return any(other[0] >= one[0] and other[1] <= one[1] and other != one for other in points)

    return sorted((i for i, point in enumerate(points) if not beaten(point)), key=lambda i: -points[i][1])
