"""The charts of a report, as Vega-Lite specifications: https://vega.github.io/vega-lite.

A specification is plain data, drawn by the browser in the page and by vl-convert into PNG files. Colours are names of
the page's CSS variables, so one chart serves light and dark pages and print; `resolved` puts values in their place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from megacpt.continual.gap import Verdict
from megacpt.continual.transfer import pareto, prequential_loss
from megacpt_tools.report.records import RunRecords

Spec = dict[str, Any]
Row = dict[str, Any]

LIGHT = {
    "--ink": "#1b1f24",
    "--soft": "#5d6772",
    "--line": "#d9dee3",
    "--paper": "#ffffff",
    "--rise": "#c4432b",
    "--fall": "#1f7a4d",
    "--c0": "#c2570c",
    "--c1": "#1769aa",
    "--c2": "#2e7d4f",
    "--c3": "#8e44ad",
    "--c4": "#b8860b",
    "--c5": "#0f8b8d",
    "--c6": "#c0396b",
    "--c7": "#5b6770",
}
DARK = LIGHT | {
    "--ink": "#e8ebee",
    "--soft": "#9aa5b1",
    "--line": "#333c46",
    "--paper": "#161b20",
    "--rise": "#ff8a70",
    "--fall": "#5fd197",
    "--c0": "#ff9d52",
    "--c1": "#63b3f2",
    "--c2": "#6fd08c",
    "--c3": "#cf8bea",
    "--c4": "#e6bf55",
    "--c5": "#4fd1d3",
    "--c6": "#ff7fae",
    "--c7": "#a8b3bd",
}
"""The page's colours; c0 to c7 are of domains and runs, in the order in which they come."""

NUM_COLOURS = 8
MINUS = "\N{MINUS SIGN}"
MAX_POINTS = 200
"""A curve of more points is drawn by the means of as many stretches of equal length; a screen shows no more."""

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_COMPACT = "upper(replace(format(datum.value, '~s'), 'G', 'B'))"
_TOKENS = {
    "field": "tokens",
    "type": "quantitative",
    "axis": {"title": "tokens", "labelExpr": _COMPACT, "tickCount": 6},
}
_LAYERS = {
    "field": "layer",
    "type": "quantitative",
    "axis": {"title": "layer, bottom to top", "labelExpr": "datum.value % 1 ? '' : format(datum.value, 'd')"},
}
_FONT = "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_CONFIG = {
    "font": _FONT,
    "background": None,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "titleFontWeight": "normal",
        "titleFontSize": 11,
        "labelFontSize": 11,
        "gridColor": "var(--line)",
        "domain": False,
        "tickColor": "var(--line)",
        "labelFlush": True,
    },
    "axisX": {"grid": False, "domain": True, "domainColor": "var(--line)"},
    "legend": {
        "orient": "top",
        "title": None,
        "labelColor": "var(--ink)",
        "labelFontSize": 12,
        "symbolStrokeWidth": 3,
        "symbolOpacity": 1,
    },
    "line": {"strokeWidth": 2},
    "text": {"font": _FONT, "fontSize": 11},
}


def resolved(spec: Spec, colours: Mapping[str, str]) -> Spec:
    """A specification with colours in place of the names of CSS variables."""
    text = json.dumps(spec)
    for name, colour in colours.items():
        text = text.replace(f"var({name})", colour)
    return json.loads(text)


def colour(number: int) -> str:
    """That of a domain or run."""
    return f"var(--c{number % NUM_COLOURS})"


def domain_loss(run: RunRecords, domain: str) -> Spec:
    """A domain's held-out loss, the base model as a line, and the stability gap between them."""
    curve, gap = run.curves[domain], run.gaps[domain]
    number = list(run.roles).index(domain)
    rows = [
        {"tokens": tokens, "loss": loss, "base": curve.base, "rise": loss - curve.base, "upper": max(loss, curve.base)}
        for tokens, loss in zip(curve.tokens, curve.losses, strict=True)
        if math.isfinite(loss)
    ]
    tooltip = _tooltip(tokens=",", loss=".4f", rise="+.4f")
    scale = {"zero": False, "padding": 14}
    losses = {
        "field": "loss",
        "type": "quantitative",
        "scale": scale,
        "axis": {"title": "nats per token", "tickCount": 5},
    }
    layers: list[Spec] = [
        {"mark": {"type": "rule", "strokeDash": [4, 4], "color": "var(--soft)"}, "encoding": {"y": _y(curve.base)}},
        {
            "mark": {"type": "area", "color": "var(--rise)", "opacity": 0.18},
            "encoding": {"x": _TOKENS, "y": {"field": "upper", "type": "quantitative"}, "y2": {"field": "base"}},
        },
        {"mark": {"type": "line", "color": colour(number)}, "encoding": {"x": _TOKENS, "y": losses}},
        {
            "mark": {"type": "point", "filled": True, "size": 36, "color": colour(number), "opacity": 1},
            "encoding": {"x": _TOKENS, "y": losses, "tooltip": tooltip},
        },
    ]
    if domain in run.budgets:
        limit = {"mark": {"type": "rule", "strokeDash": [1, 3], "color": "var(--rise)"}}
        layers.append(limit | {"encoding": {"y": _y(curve.base + run.budgets[domain])}})
    if gap.verdict is not Verdict.NONE and math.isfinite(gap.depth):
        peak = {"tokens": gap.peak_tokens, "loss": curve.base + gap.depth, "text": f"+{gap.depth:.3f}"}
        layers.append(
            {
                "data": {"values": [peak]},
                "mark": {
                    "type": "text",
                    "dx": 6,
                    "dy": -9,
                    "align": "left",
                    "color": "var(--rise)",
                    "fontWeight": "bold",
                },
                "encoding": {"x": _TOKENS, "y": losses, "text": {"field": "text"}},
            }
        )
    return _chart(rows, layers, height=190)


def first_steps(run: RunRecords) -> Spec:
    """Every domain's change from the base model, over the logarithm of tokens: what the first steps do."""
    rows = [
        {"tokens": tokens, "domain": domain, "change": change}
        for domain, curve in run.curves.items()
        for tokens, change in zip(curve.tokens, curve.rises, strict=True)
        if tokens and math.isfinite(change)
    ]
    x = _TOKENS | {
        "scale": {"type": "log", "nice": False},
        "axis": {"title": "tokens, logarithmic", "labelExpr": _COMPACT},
    }
    return _series(
        rows, x, "change", "domain", list(run.roles), title="nats from the base", format=".4f", zero_line=True
    )


def training_loss(run: RunRecords) -> Spec:
    """Each domain's training loss, and (thin) its running mean over all tokens so far: the prequential loss."""
    rows: list[Row] = []
    running: list[Row] = []
    for domain in run.roles:
        points = [(s["tokens"], s["domains"][domain]) for s in run.steps if domain in s["domains"]]
        losses = [_number(point["loss"]) for _, point in points]
        means = prequential_loss(losses, [point["tokens"] for _, point in points])
        tokens = [position for position, _ in points]
        rows += [{"tokens": t, "domain": domain, "loss": v} for t, v in thinned(tokens, losses)]
        running += [{"tokens": t, "domain": domain, "loss": v} for t, v in thinned(tokens, means)]
    spec = _series(rows, _TOKENS, "loss", "domain", list(run.roles), title="nats per token", format=".4f")
    thin = {
        "data": {"values": running},
        "mark": {"type": "line", "strokeWidth": 1, "strokeDash": [2, 2]},
        "encoding": spec["layer"][0]["encoding"],
    }
    spec["layer"].insert(0, thin)
    return spec


def divergence(run: RunRecords) -> Spec:
    """How far each taught domain's predictions are from the teacher's."""
    rows: list[Row] = []
    for domain in run.roles:
        points = [
            (step["tokens"], _number(step["domains"][domain]["divergence"]))
            for step in run.steps
            if "divergence" in step["domains"].get(domain, {})
        ]
        thin = thinned([tokens for tokens, _ in points], [value for _, value in points])
        rows += [{"tokens": tokens, "domain": domain, "divergence": value} for tokens, value in thin]
    return _series(rows, _TOKENS, "divergence", "domain", list(run.roles), title="nats per token", format=".4f")


def mixture(run: RunRecords) -> Spec:
    """Each domain's share of the tokens, as it was trained."""
    shares: dict[str, list[float]] = {name: [] for name in run.roles}
    tokens = []
    for step in run.steps:
        total = sum(domain["tokens"] for domain in step["domains"].values())
        if total:
            tokens.append(step["tokens"])
            for name, share in shares.items():
                share.append(step["domains"].get(name, {"tokens": 0})["tokens"] / total)
    rows: list[Row] = [
        {"tokens": t, "domain": name, "share": value, "order": number}
        for number, (name, share) in enumerate(shares.items())
        if any(share)
        for t, value in thinned(tokens, share)
    ]
    y = {
        "field": "share",
        "type": "quantitative",
        "stack": "normalize",
        "axis": {"title": "share of tokens", "format": "%", "tickCount": 5},
    }
    encoding = {
        "x": _TOKENS,
        "y": y,
        "color": _colours("domain", list(run.roles), {row["domain"] for row in rows}),
        "order": {"field": "order"},
        "tooltip": _tooltip(tokens=",", domain="", share=".1%"),
    }
    return _chart(rows, [{"mark": {"type": "area", "opacity": 0.75}, "encoding": encoding}], height=150)


def step_values(run: RunRecords, key: str, title: str, format: str = "~s") -> Spec:
    """A value of every step: learning rate, throughput, gradient norm."""
    points = [(step["tokens"], _number(step.get(key))) for step in run.steps]
    rows = [{"tokens": t, "value": v} for t, v in thinned([t for t, _ in points], [v for _, v in points])]
    y = {"field": "value", "type": "quantitative", "axis": {"title": title, "format": format, "tickCount": 4}}
    mark = {"type": "line", "color": "var(--c1)", "point": len(rows) <= 2}
    encoding = {"x": _TOKENS, "y": y, "tooltip": _tooltip(tokens=",", value=format)}
    return _chart(rows, [{"mark": mark, "encoding": encoding}], height=120)


def stage_matrix(run: RunRecords) -> Spec:
    """R: every domain's loss after every stage, coloured by its change from the base model."""
    matrix = run.matrix
    rows: list[Row] = [
        {
            "stage": "base" if not stage else f"stage {stage}",
            "domain": domain,
            "loss": loss,
            "change": loss - matrix.loss(0, domain),
            "text": [f"{loss:.3f}"] + [f"{loss - matrix.loss(0, domain):+.3f}".replace("-", MINUS)] * (stage > 0),
        }
        for stage, losses in enumerate(matrix.losses)
        for domain, loss in zip(matrix.domains, losses, strict=True)
        if math.isfinite(loss)
    ]
    largest = max((abs(row["change"]) for row in rows), default=0.0) or 1.0
    for row in rows:
        row["strength"] = 0.65 * abs(row["change"]) / largest
    x = {
        "field": "domain",
        "type": "nominal",
        "sort": None,
        "axis": {"title": None, "orient": "top", "labelAngle": 0, "labelFlush": False},
    }
    y = {"field": "stage", "type": "nominal", "sort": None, "axis": {"title": None, "grid": False, "labelFlush": False}}
    rise = {"condition": {"test": "datum.change > 0", "value": "var(--rise)"}, "value": "var(--fall)"}
    cells = {
        "mark": {"type": "rect", "stroke": "var(--paper)", "strokeWidth": 3, "cornerRadius": 4},
        "encoding": {
            "x": x,
            "y": y,
            "fill": rise,
            "fillOpacity": {"field": "strength", "type": "quantitative", "scale": None},
            "tooltip": _tooltip(stage="", domain="", loss=".4f", change="+.4f"),
        },
    }
    numbers = {
        "mark": {
            "type": "text",
            "color": "var(--ink)",
            "lineHeight": 14,
            "dy": {"expr": "-7 * (length(datum.text) - 1)"},
        },
        "encoding": {"x": x, "y": y, "text": {"field": "text"}},
    }
    return _chart(rows, [cells, numbers], height=40 + 40 * len(matrix.losses))


def tasks(run: RunRecords) -> Spec:
    """Downstream results over the run; the base model's stand at 0 tokens."""
    rows = [
        {"tokens": line["tokens"], "task": task, "score": value, "low": value - error, "high": value + error}
        for line in sorted(run.tasks, key=lambda line: line["tokens"])
        for task, value in line["scores"].items()
        for error in [line.get("errors", {}).get(task, 0.0)]
    ]
    names = list(dict.fromkeys(row["task"] for row in rows))
    spec = _series(rows, _TOKENS, "score", "task", names, title="score", format=".3f")
    ends = {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}}
    spec["layer"].insert(0, {"mark": {"type": "rule", "opacity": 0.5}, "encoding": spec["layer"][0]["encoding"] | ends})
    return spec


def recall(run: RunRecords) -> Spec:
    """The share of each group of probes that the model would write by itself, over the run."""
    shares: dict[tuple[int, str], dict[str, float]] = {}
    for line in run.probes:
        for probe in line["probes"]:
            group = shares.setdefault((line["tokens"], probe["group"] or probe["name"]), {})
            group[probe["name"]] = probe["recalled"] / probe["tokens"]
    rows: list[Row] = [
        {"tokens": tokens, "probes": group, "recalled": math.fsum(found.values()) / len(found)}
        for (tokens, group), found in sorted(shares.items())
    ]
    names = list(dict.fromkeys(row["probes"] for row in rows))
    return _series(rows, _TOKENS, "recalled", "probes", names, title="share recalled", format=".1%")


def alignment(run: RunRecords) -> Spec:
    """The cosine of every old domain's gradient and that of the new ones, over the run."""
    rows = [
        {"tokens": evaluation.tokens, "domain": domain, "cosine": cosine.whole}
        for evaluation in run.evaluations
        for domain, cosine in (evaluation.alignment or {}).items()
        if math.isfinite(cosine.whole)
    ]
    return _series(rows, _TOKENS, "cosine", "domain", list(run.roles), title="cosine", format="+.3f", zero_line=True)


def layer_alignment(run: RunRecords) -> Spec:
    """The same by layer, when it was measured last."""
    last = next(evaluation.alignment for evaluation in reversed(run.evaluations) if evaluation.alignment)
    rows = [
        {"layer": layer, "domain": domain, "cosine": value}
        for domain, cosine in last.items()
        for layer, value in enumerate(cosine.layers)
        if math.isfinite(value)
    ]
    return _series(rows, _LAYERS, "cosine", "domain", list(run.roles), title="cosine", format="+.3f", zero_line=True)


def drift(run: RunRecords) -> Spec:
    """How far every layer is from the base model's, at each checkpoint that was measured."""
    rows = [
        {"layer": layer, "change": value, "checkpoint": f"{line['tokens']:,} tokens"}
        for line in run.drift
        for layer, value in enumerate(line["layers"])
    ]
    names = list(dict.fromkeys(row["checkpoint"] for row in rows))
    return _series(rows, _LAYERS, "change", "checkpoint", names, title="|change| / |base|", format=".2e")


def runs_by(runs: Sequence[RunRecords], domain: str, unit: str) -> Spec:
    """A domain's loss in several runs, over tokens or over FLOPs."""
    rows = []
    for run in runs:
        factor = 1.0 if unit == "tokens" else run.flops_per_token
        if factor is None or domain not in run.curves:
            continue
        curve = run.curves[domain]
        rows += [
            {"at": tokens * factor, "run": run.name, "loss": loss}
            for tokens, loss in zip(curve.tokens, curve.losses, strict=True)
            if math.isfinite(loss)
        ]
    labels = {"labelExpr": _COMPACT} if unit == "tokens" else {"format": ".1e"}
    axis = {"title": unit, "tickCount": 5, **labels}
    x = {"field": "at", "type": "quantitative", "axis": axis}
    names = [run.name for run in runs]
    return _series(rows, x, "loss", "run", names, title="nats per token", format=".4f", height=190)


def tokens_of_all(runs: Sequence[RunRecords]) -> float:
    """The most tokens after which every run has been evaluated."""
    return min(run.evaluations[-1].tokens if run.evaluations else run.tokens for run in runs)


def learned_against_forgotten(runs: Sequence[RunRecords]) -> Spec:
    """Every run's way through (forgotten, learned), as far as all have come; a line joins the ends that none beats."""
    common = tokens_of_all(runs)
    rows: list[Row] = []
    ends: list[Row] = []
    for run in runs:
        tokens = {point for curve in run.curves.values() for point in curve.tokens if point < common} | {common}
        for point in sorted(tokens):
            if (pair := run.learned_and_forgotten(point)) is not None and all(map(math.isfinite, pair)):
                rows.append({"run": run.name, "tokens": point, "learned": pair[0], "forgotten": pair[1]})
        if rows and rows[-1]["run"] == run.name and rows[-1]["tokens"] == common:
            ends.append(rows[-1])
    best = [ends[i] for i in pareto([(end["learned"], end["forgotten"]) for end in ends])]
    x = {"field": "forgotten", "type": "quantitative", "axis": {"title": "forgotten, nats (left is better)"}}
    y = {"field": "learned", "type": "quantitative", "axis": {"title": "learned, nats (up is better)"}}
    way = {"x": x, "y": y, "color": _colours("run", [run.name for run in runs]), "order": {"field": "tokens"}}
    tooltip = _tooltip(run="", tokens=",", learned=".4f", forgotten="+.4f")
    end = way | {"tooltip": tooltip}
    layers: list[Spec] = [
        {"mark": {"type": "rule", "color": "var(--line)"}, "encoding": {"x": {"datum": 0}}},
        {"mark": {"type": "line", "strokeWidth": 1, "opacity": 0.6}, "encoding": way},
        {"mark": {"type": "point", "filled": True, "size": 18, "opacity": 0.6}, "encoding": way | {"tooltip": tooltip}},
        {
            "data": {"values": ends},
            "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
            "encoding": end,
        },
    ]
    if len(best) > 1:
        frontier = {"x": x, "y": y, "order": {"field": "forgotten"}}
        mark = {"type": "line", "strokeDash": [5, 4], "color": "var(--soft)", "strokeWidth": 1}
        layers.insert(1, {"data": {"values": best}, "mark": mark, "encoding": frontier})
    return _chart(rows, layers, height=260)


def thinned(
    tokens: Sequence[float], values: Sequence[float], num_points: int = MAX_POINTS
) -> list[tuple[float, float]]:
    """A curve by at most `num_points`: means of its stretches, at their last tokens. What is not finite is left out."""
    points = [(t, v) for t, v in zip(tokens, values, strict=True) if math.isfinite(v)]
    length = max(1, math.ceil(len(points) / num_points))
    stretches = (points[start : start + length] for start in range(0, len(points), length))
    return [(stretch[-1][0], math.fsum(v for _, v in stretch) / len(stretch)) for stretch in stretches]


def _series(
    rows: list[Row],
    x: Spec,
    value: str,
    by: str,
    names: Sequence[str],
    *,
    title: str,
    format: str,
    zero_line: bool = False,
    height: int = 220,
) -> Spec:
    """Lines in colours with a legend; under the pointer, the values of the nearest point."""
    y = {"field": value, "type": "quantitative", "scale": {"zero": False}, "axis": {"title": title, "tickCount": 5}}
    present = {row[by] for row in rows}
    encoding = {"x": x, "y": y, "color": _colours(by, names, present)}
    tooltip = _tooltip(**{x["field"]: ".3~s", by: "", value: format})
    has_few = len(rows) <= 40 * max(1, len(present))
    layers: list[Spec] = [
        {"mark": {"type": "line"}, "encoding": encoding},
        {
            "mark": {"type": "point", "filled": True, "size": 30 if has_few else 60},
            "encoding": encoding | {"tooltip": tooltip, "opacity": {"value": 1 if has_few else 0}},
        },
    ]
    if zero_line:
        rule = {"type": "rule", "strokeDash": [4, 4], "color": "var(--soft)"}
        layers.insert(0, {"mark": rule, "encoding": {"y": {"datum": 0}}})
    return _chart(rows, layers, height=height)


def _chart(rows: list[Row], layers: list[Spec], *, height: int) -> Spec:
    return {
        "$schema": _SCHEMA,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit", "contains": "padding"},
        "data": {"values": rows},
        "layer": layers,
        "config": _CONFIG,
    }


def _colours(field: str, names: Sequence[str], present: Iterable[str] | None = None) -> Spec:
    """A name has its colour whether or not the others are there."""
    shown = [(name, colour(number)) for number, name in enumerate(names) if present is None or name in present]
    scale = {"domain": [name for name, _ in shown], "range": [value for _, value in shown]}
    return {"field": field, "type": "nominal", "scale": scale}


def _tooltip(**formats: str) -> list[Spec]:
    return [
        {"field": field, "type": "quantitative" if format else "nominal"} | ({"format": format} if format else {})
        for field, format in formats.items()
    ]


def _y(value: float) -> Spec:
    return {"datum": value, "type": "quantitative"}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
