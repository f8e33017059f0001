"""`megacpt mixture`: learn from pilot runs how to mix, for the controllers that need it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megacpt_tools.report.records import RunRecords


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    graph = actions.add_parser(
        "learn-graph",
        help="a skills graph, for mixture.controller skill_it",
        description="Learn how much training on one domain lowers the loss of another, from one pilot run for each "
        "domain. A pilot trains on its domain alone and evaluates all of them, the others as anchors.",
    )
    graph.set_defaults(action=_learn_graph)
    graph.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of the pilots")
    graph.add_argument("--output", type=Path, required=True, metavar="FILE", help="the graph, as JSON")

    agent = actions.add_parser(
        "train-agent",
        help="a policy, for mixture.controller agent",
        description="Fit an agent to pilot runs whose mixtures varied: mixture.controller random_walk, a seed each.",
    )
    agent.set_defaults(action=_train_agent)
    agent.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of the pilots")
    agent.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the agent")
    agent.add_argument(
        "--value",
        action="append",
        default=[],
        type=_value,
        metavar="DOMAIN=NUMBER",
        help="what a nat of a domain's loss is worth, against 1 of the others; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what the action says."""
    code: int = arguments.action(arguments)
    return code


def _value(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not DOMAIN=NUMBER, such as general=2") from error


def _learn_graph(arguments: argparse.Namespace) -> int:
    from megacpt.continual.curves import Curve
    from megacpt.continual.skills_graph import learn_skills_graph
    from megacpt.errors import DataError
    from megacpt_tools.report.records import RunRecords

    pilots: dict[str, dict[str, Curve]] = {}
    for folder in arguments.runs:
        records = RunRecords.read(folder)
        trained = [name for name, share in _mixtures(records).get(1, {}).items() if share > 0]
        if len(trained) != 1:
            raise DataError(
                "a pilot of a skills graph trains on one domain",
                where=str(folder),
                found=f"{len(trained)} domains: {', '.join(trained)}",
            )
        if trained[0] in pilots:
            raise DataError(f"two pilots train on {trained[0]}", where=str(folder))
        pilots[trained[0]] = records.curves
    graph = learn_skills_graph(pilots)
    graph.save(arguments.output)
    for skill, row in zip(graph.skills, graph.effects, strict=True):
        helped = [f"{other} {effect:.2f}" for other, effect in zip(graph.skills, row, strict=True) if other != skill]
        print(f"{skill} helps {', '.join(helped) or 'itself'}")
    print(f"wrote {arguments.output}")
    return 0


def _train_agent(arguments: argparse.Namespace) -> int:
    from megacpt.continual.controllers.agent import FEATURES, train_agent, trajectory
    from megacpt_tools.report.records import RunRecords

    pilots = [RunRecords.read(folder) for folder in arguments.runs]
    trajectories = [trajectory(records.evaluations, _mixtures(records)) for records in pilots]
    agent = train_agent(trajectories, dict(arguments.value))
    agent.save(arguments.output)
    num_decisions = sum(max(len(observations) - 1, 0) for observations in trajectories)
    print(f"{len(pilots)} pilots, {num_decisions} decisions")
    print("values: " + ", ".join(f"{name} {value:+.2f}" for name, value in zip(FEATURES, agent.theta, strict=True)))
    print("domains: " + ", ".join(f"{name} {offset:+.2f}" for name, offset in agent.offsets.items()))
    print(f"wrote {arguments.output}")
    return 0


def _mixtures(records: RunRecords) -> dict[int, dict[str, float]]:
    """Step -> the shares that held from it on."""
    return {line["step"]: line["mixture"] for line in records.steps if "mixture" in line}
