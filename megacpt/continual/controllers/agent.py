"""A mixing agent: a small policy, trained on the records of pilot runs, that reads losses and sets shares.

This is the reference for policies. Another one is another `Controller`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from megacpt.continual.controllers.controller import Controller, Numbers, Observation, base_losses, softmax
from megacpt.errors import DataError
from megacpt.observe.record import EvaluationRecord

FEATURES = ("constant", "rise", "change", "share")
"""What the agent sees of a domain: 1; its loss above the base model's; the change of its loss since the last decision;
its present share."""

_WEIGHTS, _DESCRIPTION, _FORMAT = "agent.safetensors", "agent.json", 1

Floats = npt.NDArray[np.float64]


def features(observations: Sequence[Observation], domain: str) -> Floats:
    """`FEATURES` of a domain at the last observation: [4]."""
    now, before = observations[-1], observations[-2] if len(observations) > 1 else observations[-1]
    loss = now.losses[domain]
    rise = loss - base_losses(observations)[domain]
    return np.array([1.0, rise, loss - before.losses.get(domain, loss), now.weights.get(domain, 0.0)])


@dataclass(frozen=True, eq=False)
class Agent(Controller):
    """A policy that values each domain by what it sees, and leans towards the valuable ones.

    With phi_i the features of domain i, b_i an offset of its own (0 for domains that no pilot had) and p_i the plan,

        q_i = theta . phi_i + b_i,        w_i = p_i * exp(q_i / beta) / sum_j p_j * exp(q_j / beta)

    The shares maximise the expected value sum_i w_i q_i less beta * KL(w || p). The idea is that of "Data Mixing Agent:
    Learning to Re-weight Domains for Continual Pre-training", arXiv:2507.15640, which trains a network by conservative
    Q-learning on 50M-parameter pilots. Ours is linear in the features, so that tens of pilots of tens of decisions
    are enough to fit it, and is kept near the plan by the KL term instead of by pessimism.

    Attributes:
        theta: [4], by `FEATURES`.
        offsets: domain -> b.
        temperature: beta, in standard deviations of the reward; small ones trust the values more than the plan.
    """

    theta: Floats
    offsets: Mapping[str, float]
    temperature: float = 0.5

    def value(self, observations: Sequence[Observation], domain: str) -> float:
        """q of a domain."""
        return float(self.theta @ features(observations, domain)) + self.offsets.get(domain, 0.0)

    def weights(self, observations: Sequence[Observation], planned: Numbers) -> dict[str, float]:
        return softmax(
            {
                name: math.log(share) + self.value(observations, name) / self.temperature
                for name, share in planned.items()
            }
        )

    def save(self, folder: Path) -> None:
        """Write agent.safetensors (the numbers) and agent.json (what they mean)."""
        folder.mkdir(parents=True, exist_ok=True)
        offsets = np.array(list(self.offsets.values()), dtype=np.float64)
        save_file({"theta": self.theta, "offsets": offsets}, folder / _WEIGHTS)
        description = {
            "format": _FORMAT,
            "features": FEATURES,
            "domains": list(self.offsets),
            "temperature": self.temperature,
        }
        (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Agent:
        """Read what `save` wrote.

        Raises:
            DataError: the folder holds no agent, or one of another version of the program.
        """
        try:
            description = json.loads((folder / _DESCRIPTION).read_text())
            if description["format"] != _FORMAT or tuple(description["features"]) != FEATURES:
                raise ValueError("it was trained by another version")
            numbers = load_file(folder / _WEIGHTS)
            offsets = dict(zip(description["domains"], numbers["offsets"].tolist(), strict=True))
            return cls(numbers["theta"], offsets, float(description["temperature"]))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DataError(
                "this is no agent",
                where=str(folder),
                found=f"{type(error).__name__}: {error}",
                hint="Train one on pilot runs: megacpt mixture train-agent RUN... --output FOLDER.",
            ) from error


def trajectory(evaluations: Sequence[EvaluationRecord], mixtures: Mapping[int, Numbers]) -> list[Observation]:
    """What a pilot run observed at its decisions: the evaluations after which its mixture changed, and the last one.

    Args:
        evaluations: of the run, oldest first.
        mixtures: step, counted from 1 -> the shares that held from it on, as in `metrics.jsonl`.
    """
    observations = []
    mixed = dict.fromkeys(name for shares in mixtures.values() for name in shares)
    for number, record in enumerate(evaluations, 1):
        begun = [step for step in mixtures if step <= max(record.step, 1)]
        if begun and (record.step + 1 in mixtures or number == len(evaluations)):
            shares = mixtures[max(begun)]
            losses = {name: record.domains[name].loss for name in mixed if name in record.domains}
            observations.append(Observation(record.step, record.tokens, losses, dict(shares)))
    return observations


def train_agent(
    trajectories: Sequence[Sequence[Observation]],
    value_of: Mapping[str, float] | None = None,
    *,
    discount: float = 0.5,
    temperature: float = 0.5,
    ridge: float = 1e-3,
    num_iterations: int = 30,
) -> Agent:
    """Fit an agent to what happened in pilot runs, by fitted Q-iteration; deterministic.

    A step of a trajectory is (what was seen, the shares w chosen, the reward r), with r the fall of the losses up to
    the next observation, weighted by `value_of` and divided by its standard deviation over all steps. Since the value
    of shares is linear in them, Q(s, w) = sum_i w_i q_i, each iteration is one ridge regression onto
    r + discount * V(s'), with V(s') = beta * log sum_i w_i exp(q_i(s') / beta), the soft maximum of the policy around
    the shares that the pilot had.

    Args:
        trajectories: the observations of each pilot, oldest first.
        value_of: domain -> what a nat of its loss is worth; domains not named 1.
        discount: what the next step's value counts.
        temperature: beta of the agent.
        ridge: penalty on the squares of theta and offsets, relative to the number of steps.
        num_iterations: of the Q-iteration; its error shrinks by `discount` in each.

    Raises:
        DataError: there are no steps to learn from, or every one has the same reward; no pilot measured a domain of
            `value_of`.
    """
    measured = {name for pilot in trajectories for seen in pilot for name in seen.losses}
    if unknown := (value_of or {}).keys() - measured:
        raise DataError(
            "no pilot measured what a value is stated for",
            found=", ".join(sorted(unknown)),
            expected=", ".join(sorted(measured)),
        )
    steps = [
        (pilot[:t], pilot[t].weights, _reward(pilot[t - 1], pilot[t], value_of or {}), pilot[: t + 1])
        for pilot in trajectories
        for t in range(1, len(pilot))
    ]
    names = sorted({name for _, weights, _, _ in steps for name in weights})
    rewards = np.array([reward for _, _, reward, _ in steps])
    if len(steps) < 2 or not rewards.std() > 0:
        raise DataError(
            "there is nothing to learn an agent from",
            found=f"{len(steps)} decisions",
            hint="Give it pilot runs with mixture.controller random_walk, of different seeds, with many evaluations.",
        )
    rewards = rewards / rewards.std()
    inputs = np.array([_mixed(seen, weights, names) for seen, weights, _, _ in steps])
    successors = [np.array([_of_domain(seen, name, names) for name in weights]) for _, weights, _, seen in steps]
    logs = [np.log(np.maximum(list(weights.values()), 1e-12)) for _, weights, _, _ in steps]
    solve = np.linalg.inv(inputs.T @ inputs + ridge * len(steps) * np.eye(inputs.shape[1])) @ inputs.T
    parameters: Floats = np.zeros(inputs.shape[1])
    for _ in range(num_iterations):
        next_values = [
            temperature * _log_sum_exp(log + successor @ parameters / temperature)
            for log, successor in zip(logs, successors, strict=True)
        ]
        parameters = solve @ (rewards + discount * np.array(next_values))
    num_features = len(FEATURES)
    return Agent(
        parameters[:num_features], dict(zip(names, parameters[num_features:].tolist(), strict=True)), temperature
    )


def _reward(before: Observation, after: Observation, value_of: Numbers) -> float:
    common = before.losses.keys() & after.losses.keys()
    return math.fsum(value_of.get(name, 1.0) * (before.losses[name] - after.losses[name]) for name in sorted(common))


def _of_domain(seen: Sequence[Observation], name: str, names: Sequence[str]) -> Floats:
    """What q of a domain is linear in: its features, then which domain it is."""
    return np.concatenate([features(seen, name), [float(name == other) for other in names]])


def _mixed(seen: Sequence[Observation], weights: Numbers, names: Sequence[str]) -> Floats:
    """What Q of shares is linear in."""
    vectors = [share * _of_domain(seen, name, names) for name, share in weights.items()]
    return np.sum(vectors, axis=0, dtype=np.float64)


def _log_sum_exp(values: Floats) -> float:
    highest = float(values.max())
    return highest + float(np.log(np.exp(values - highest).sum()))
