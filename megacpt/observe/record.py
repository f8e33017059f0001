"""What there is to say about a step and about an evaluation: the records that every sink receives.

The fields and their order are the lines of `metrics.jsonl` and `evaluations.jsonl`. A value that is not known (`mfu`
without a GPU, `bits_per_byte` of shards that do not tell their text's size) is None here and left out there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


def _number(value: float | None) -> float:
    """A loss as JSON has it: NaN and infinity are written as null."""
    return math.nan if value is None else value


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class DomainLoss:
    """What a domain, or a part of one, gives to a step: mean unweighted loss in nats per token, and how many tokens.

    `divergence` is the mean KL of the teacher's predictions from the model's, at the teacher's temperature, in nats per
    token; None where no teacher teaches.
    """

    loss: float
    tokens: int
    divergence: float | None = None


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step.

    Args:
        step: steps done, this one included.
        tokens: tokens trained since the start of the run.
        loss: weighted mean loss of the global batch, in nats.
        grad_norm: global norm of the gradient before clipping.
        learning_rate: the rate that this step used.
        tokens_per_second: of the whole run, all devices together.
        domains: the domains that had tokens in this step.
        data_wait_seconds: how long rank 0 waited for the step's rows; more than a few milliseconds is a slow disk.
        mfu: fraction of the devices' peak FLOP/s; None where that peak is not known.
        skipped: True where the update was not applied, else None.
        mixture: domain -> the share of the tokens that holds from this step on; None where it goes on as before.
        parts: "web/arxiv" -> its part in what `domains` says of web, of the domains that are divided; None: none is.
    """

    step: int
    tokens: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    domains: Mapping[str, DomainLoss]
    data_wait_seconds: float | None = None
    mfu: float | None = None
    skipped: bool | None = None
    mixture: Mapping[str, float] | None = None
    parts: Mapping[str, DomainLoss] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The object of a line in `metrics.jsonl`."""
        values = asdict(self)
        for key in ("domains", "parts"):
            if values[key] is not None:
                values[key] = {name: _known(losses) for name, losses in values[key].items()}
        return _known(values)

    def scalars(self) -> dict[str, float]:
        """Flat names for dashboards: "train/loss", "train/loss/medical", ..."""
        names = ("loss", "grad_norm", "learning_rate", "tokens_per_second", "tokens", "mfu")
        counted = {**self.domains, **(self.parts or {})}
        losses = {f"train/loss/{name}": each.loss for name, each in counted.items()}
        losses |= _known({f"train/divergence/{name}": each.divergence for name, each in counted.items()})
        shares = {f"train/share/{name}": share for name, share in (self.mixture or {}).items()}
        return _known({f"train/{name}": getattr(self, name) for name in names}) | losses | shares


@dataclass(frozen=True, slots=True)
class DomainEvaluation:
    """A domain's held-out text: mean loss in nats per token, bits per UTF-8 byte, and the tokens predicted."""

    loss: float
    bits_per_byte: float | None
    tokens: int


@dataclass(frozen=True, slots=True)
class GradientAlignment:
    """The cosine of two gradients: of all parameters, and of each decoder layer's, from the bottom to the top.

    NaN where one of them is zero or not finite.
    """

    whole: float
    layers: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """The held-out loss of every domain after `step` steps and `tokens` tokens of training.

    `alignment` has for each domain that is not new the cosine of its gradient and that of the new ones; None where it
    is not measured.
    """

    step: int
    tokens: int
    domains: Mapping[str, DomainEvaluation]
    alignment: Mapping[str, GradientAlignment] | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationRecord:
        """The inverse of `to_dict`."""
        domains = {
            name: DomainEvaluation(_number(domain["loss"]), domain.get("bits_per_byte"), domain["tokens"])
            for name, domain in values["domains"].items()
        }
        alignment = None
        if "alignment" in values:
            alignment = {
                name: GradientAlignment(_number(cosines["whole"]), tuple(map(_number, cosines["layers"])))
                for name, cosines in values["alignment"].items()
            }
        return cls(values["step"], values["tokens"], domains, alignment)

    def to_dict(self) -> dict[str, Any]:
        """The object of a line in `evaluations.jsonl`."""
        values = asdict(self)
        return _known(values | {"domains": {name: _known(domain) for name, domain in values["domains"].items()}})

    def scalars(self) -> dict[str, float]:
        """Flat names for dashboards: "evaluation/loss/medical", "evaluation/bits_per_byte/medical", ..."""
        losses = {f"evaluation/loss/{name}": domain.loss for name, domain in self.domains.items()}
        bits = {f"evaluation/bits_per_byte/{name}": domain.bits_per_byte for name, domain in self.domains.items()}
        cosines = {f"evaluation/alignment/{name}": cosine.whole for name, cosine in (self.alignment or {}).items()}
        return losses | _known(bits) | cosines
