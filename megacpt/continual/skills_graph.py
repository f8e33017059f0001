"""A graph of skills: how much training on one domain lowers the loss of another, learned from pilot runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megacpt.continual.curves import Curve
from megacpt.errors import DataError


@dataclass(frozen=True)
class SkillsGraph:
    """The adjacency matrix of a skills graph.

    Attributes:
        skills: names of the domains.
        effects: A; row i, column j says what training on i does for j: 0 nothing, 1 as much as training on j itself.
    """

    skills: tuple[str, ...]
    effects: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        rows = [len(row) for row in self.effects]
        if len(set(self.skills)) != len(self.skills) or rows != [len(self.skills)] * len(self.skills):
            raise DataError("a skills graph has a row and a column for each skill", found=f"{self.skills}, rows {rows}")
        if not all(math.isfinite(effect) for row in self.effects for effect in row):
            raise DataError("the effects of a skills graph are finite numbers", found=self.effects)

    def effect(self, trained: str, measured: str) -> float:
        """A_ij of two skills of the graph."""
        return self.effects[self.skills.index(trained)][self.skills.index(measured)]

    def save(self, path: Path) -> None:
        """Write the graph as JSON, a row of A a line, for reading and editing by hand."""
        rows = ",\n    ".join(json.dumps([round(effect, 4) for effect in row]) for row in self.effects)
        path.write_text(f'{{\n  "skills": {json.dumps(self.skills)},\n  "effects": [\n    {rows}\n  ]\n}}\n')

    @classmethod
    def load(cls, path: Path) -> SkillsGraph:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing or is no skills graph.
        """
        try:
            stored = json.loads(path.read_text())
            effects = tuple(tuple(float(effect) for effect in row) for row in stored["effects"])
            return cls(tuple(map(str, stored["skills"])), effects)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                "this is no skills graph",
                where=str(path),
                found=f"{type(error).__name__}: {error}",
                hint="Make one of pilot runs: megacpt mixture learn-graph RUN... --output FILE.",
            ) from error


def learn_skills_graph(pilots: Mapping[str, Mapping[str, Curve]]) -> SkillsGraph:
    """The graph that one-domain pilot runs show.

    With g_j(i) how far training on i alone has lowered the loss of j, all after the same number of tokens,

        A_ij = max(0, g_j(i)) / g_j(j)

    After Chen et al. 2023, "Skill-it!", arXiv:2307.14430, whose edges say that training on i lowers the loss of j. Here
    k pilots are read on k losses, instead of a pilot for each of the k * (k - 1) pairs; dividing by g_j(j) is ours, and
    makes rows comparable between skills whose losses fall by different amounts.

    Args:
        pilots: the domain that a pilot was trained on -> domain -> its held-out loss.

    Raises:
        DataError: a pilot did not measure a domain, or did not learn its own.
    """
    skills = tuple(pilots)
    for trained, curves in pilots.items():
        if missing := [skill for skill in skills if skill not in curves]:
            raise DataError(
                f"the pilot of {trained} has no held-out loss of {', '.join(missing)}",
                hint="Every pilot must evaluate the domains of all, as anchors where it is not trained on them.",
            )
    budget_tokens = min(curve.tokens[-1] for curves in pilots.values() for curve in curves.values())
    gains = {i: {j: pilots[i][j].base - pilots[i][j].at(budget_tokens) for j in skills} for i in skills}
    for skill in skills:
        if not gains[skill][skill] > 0:
            raise DataError(
                f"the pilot of {skill} has not lowered its own loss",
                found=f"{-gains[skill][skill]:+.4f} nats after {budget_tokens:,} tokens",
                hint="Train the pilots for longer, or with a higher learning rate.",
            )
    return SkillsGraph(skills, tuple(tuple(max(0.0, gains[i][j]) / gains[j][j] for j in skills) for i in skills))
