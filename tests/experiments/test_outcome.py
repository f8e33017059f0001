"""A study's table says what its runs did."""

from __future__ import annotations

from experiments.outcome import Outcome, table
from megacpt.continual.curves import Curve


def outcome(arm: str, seed: int, *losses: float) -> Outcome:
    return Outcome(arm, seed, {"old": 0.25}, {"old": Curve(tuple(range(len(losses))), losses)})


def test_a_row_has_means_and_half_the_range_over_the_seeds() -> None:
    runs = [outcome("a", 1, 2.0, 2.7, 2.1), outcome("a", 2, 2.0, 2.5, 2.3), outcome("b", 1, 2.0, 1.5, 1.0)]
    assert table(runs).splitlines() == [
        "| | old: share | loss | change | peak |",
        "|---|---|---|---|---|",
        "| base model | | 2.000 | | |",
        "| a | 25.0% | 2.200 | +0.200 ± 0.100 | +0.600 ± 0.100 |",
        "| b | 25.0% | 1.000 | -1.000 ± 0.000 |  |",
    ]


def test_results_survive_their_file() -> None:
    run = outcome("a", 1, 2.0, 2.5)
    assert Outcome.from_json(run.to_json()) == run
