"""What came out of a study's runs: a table and a picture of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacpt.continual.curves import Curve
from megacpt.continual.gap import stability_gap
from megacpt_tools.report.charts import LIGHT, Spec, colour, resolved
from megacpt_tools.report.records import RunRecords


@dataclass(frozen=True)
class Outcome:
    """One run of an arm.

    Attributes:
        arm, seed: which run.
        shares: domain -> its share of the tokens that were trained on.
        curves: domain -> its held-out loss over the run; the first point is the base model's.
    """

    arm: str
    seed: int
    shares: dict[str, float]
    curves: dict[str, Curve]

    @classmethod
    def read(cls, folder: Path, arm: str, seed: int) -> Outcome:
        """From a run folder."""
        run = RunRecords.read(folder)
        tokens = {
            name: sum(step["domains"].get(name, {"tokens": 0})["tokens"] for step in run.steps) for name in run.roles
        }
        total = sum(tokens.values())
        return cls(arm, seed, {name: count / total for name, count in tokens.items()}, run.curves)

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Outcome:
        """What `to_json` gave."""
        curves = {
            name: Curve(tuple(curve["tokens"]), tuple(curve["losses"])) for name, curve in entry["curves"].items()
        }
        return cls(entry["arm"], entry["seed"], entry["shares"], curves)

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded to what a file should hold."""
        return {
            "arm": self.arm,
            "seed": self.seed,
            "shares": {name: round(share, 4) for name, share in self.shares.items()},
            "curves": {
                name: {"tokens": curve.tokens, "losses": [round(loss, 4) for loss in curve.losses]}
                for name, curve in self.curves.items()
            },
        }


def table(outcomes: Sequence[Outcome]) -> str:
    """A row for each arm: means over the seeds, with half the distance between the outermost seeds.

    For each domain: its share of the tokens trained on, the loss at the end, its change from the base model's, and the
    highest rise above it on the way, if there was one.
    """
    domains = list(outcomes[0].curves)
    heads = "".join(f" {name}: share | loss | change | peak |" for name in domains)
    bases = "".join(f" | {outcomes[0].curves[name].base:.3f} | | |" for name in domains)
    rows = [f"| |{heads}", f"|---|{'---|' * 4 * len(domains)}", f"| base model |{bases}"]
    for arm in dict.fromkeys(outcome.arm for outcome in outcomes):
        runs = [outcome for outcome in outcomes if outcome.arm == arm]
        cells = [arm]
        for name in domains:
            curves = [run.curves[name] for run in runs]
            depths = [stability_gap(curve).depth for curve in curves]
            cells += [
                f"{statistics.mean(run.shares[name] for run in runs):.1%}",
                f"{statistics.mean(curve.last for curve in curves):.3f}",
                _with_spread([curve.last - curve.base for curve in curves]),
                _with_spread(depths) if any(depths) else "",
            ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Each domain's held-out loss over the tokens, a line for each arm: its mean over the seeds, and their range."""
    import vl_convert

    arms = list(dict.fromkeys(outcome.arm for outcome in outcomes))
    scale = {"domain": arms, "range": [colour(number) for number in range(len(arms))]}
    x = {"field": "tokens", "type": "quantitative", "axis": {"title": "tokens", "format": "~s", "tickCount": 5}}
    colours = {"field": "arm", "type": "nominal", "scale": scale, "legend": {"title": None, "symbolOpacity": 1}}
    panels: list[Spec] = []
    for name in outcomes[0].curves:
        rows = [
            {"tokens": tokens, "loss": loss, "arm": outcome.arm}
            for outcome in outcomes
            for tokens, loss in zip(outcome.curves[name].tokens, outcome.curves[name].losses, strict=True)
        ]
        y = {"field": "loss", "type": "quantitative", "scale": {"zero": False}, "axis": {"title": "nats per token"}}
        shared = {"x": x, "color": colours}
        low, high = y | {"aggregate": "min"}, {"field": "loss", "aggregate": "max"}
        layers = [
            {"mark": {"type": "area", "opacity": 0.2}, "encoding": shared | {"y": low, "y2": high}},
            {"mark": {"type": "line", "point": {"size": 16}}, "encoding": shared | {"y": y | {"aggregate": "mean"}}},
        ]
        panels.append({"title": name, "width": 300, "height": 220, "data": {"values": rows}, "layer": layers})
    config = {"view": {"stroke": None}, "axis": {"gridColor": "var(--line)", "labelColor": "var(--soft)"}}
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": "var(--paper)",
        "padding": 12,
        "hconcat": panels,
        "config": config,
    }
    path.write_text(vl_convert.vegalite_to_svg(resolved(spec, LIGHT)), encoding="utf-8")


def _with_spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):+.3f} ± {(max(values) - min(values)) / 2:.3f}"
