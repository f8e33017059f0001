"""The page of a report: what stands on it, in which order, in words and numbers; the charts are `charts`'s."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from megacpt.continual.drift import bottom_to_top
from megacpt.continual.gap import StabilityGap
from megacpt.continual.transfer import forgetting_from_best
from megacpt.data.parts import domain_of
from megacpt.observe.console import compact
from megacpt_tools.probe import COLUMNS as COLUMNS_OF_PROBES
from megacpt_tools.probe import rows_of
from megacpt_tools.report import charts
from megacpt_tools.report.charts import MINUS, Spec
from megacpt_tools.report.records import RunRecords

COLUMNS = (
    "domain",
    "role",
    "base",
    "now",
    "change",
    "bits/byte",
    "from best",
    "depth",
    "peak at",
    "back at",
    "area",
    "gap",
)

COLUMNS_OF_PARTS = ("part", "tokens", "of its domain", "loss in the first tenth", "loss in the last tenth")


@dataclass(frozen=True)
class Chart:
    """A chart with its words."""

    id: str
    title: str
    caption: str


@dataclass
class Page:
    """A page being put together: the charts on it, by their id."""

    specs: dict[str, Spec] = field(default_factory=dict)

    def chart(self, name: str, title: str, caption: str, spec: Spec) -> Chart:
        """Put a chart on the page."""
        chart = Chart(f"chart-{len(self.specs)}-{name}", title, caption)
        self.specs[chart.id] = spec
        return chart


def render(runs: Sequence[RunRecords]) -> tuple[str, dict[str, Spec]]:
    """The page, and the charts on it by their names."""
    import jinja2

    page = Page()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["sign"] = lambda text: "rise" if text.startswith("+") else "fall"
    environment.tests["sign"] = lambda text: text[:1] in ("+", MINUS) and any(digit in text for digit in "123456789")
    html = environment.get_template("page.html.j2").render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs)}",
        progress="; ".join(_progress(run, with_name=len(runs) > 1) for run in runs),
        comparison=_comparison(page, runs) if len(runs) > 1 else None,
        runs=[_run(page, run) for run in runs],
        specs=page.specs,
        library=_library(),
        light=charts.LIGHT,
        dark=charts.DARK,
    )
    return html, {chart.split("-", 2)[2]: spec for chart, spec in page.specs.items()}


@cache
def _library() -> str:
    """What draws the charts in a browser, whole: vega-embed with Vega and Vega-Lite."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed")


def _progress(run: RunRecords, with_name: bool) -> str:
    name = f"{run.name}: " if with_name else ""
    done = (
        "finished" if run.is_finished else f"at {run.tokens / run.planned_tokens:.0%} of {compact(run.planned_tokens)}"
    )
    return f"{name}{compact(run.tokens)} tokens in {run.steps[-1]['step'] if run.steps else 0:,} steps, {done}"


def _run(page: Page, run: RunRecords) -> dict[str, Any]:
    return {
        "name": run.name,
        "headline": run.headline() or "No held-out text is evaluated",
        "domains": [_domain(page, run, name) for name in run.curves],
        "columns": COLUMNS,
        "table": [_row(run, name) for name in run.curves],
        "sections": list(_sections(page, run)),
        "recipe": yaml.safe_dump(dict(run.recipe), sort_keys=False),
    }


def _domain(page: Page, run: RunRecords, name: str) -> dict[str, Any]:
    gap = run.gaps[name]
    return {
        "name": name,
        "role": run.roles.get(name, ""),
        "change": _signed(gap.residual),
        "verdict": f"gap: {gap.verdict}",
        "verdict_class": gap.verdict.name.lower(),
        "chart": page.chart(f"loss-{name}", name, _told(run, name, gap), charts.domain_loss(run, name)),
    }


def _told(run: RunRecords, name: str, gap: StabilityGap) -> str:
    """What the chart shows, in words."""
    curve = run.curves[name]
    words = f"{curve.base:.3f} before training, {curve.last:.3f} now"
    if gap.depth > 0 and gap.verdict != "none":
        words += f"; worst, {_signed(gap.depth)}, after {compact(gap.peak_tokens)} tokens"
        if math.isfinite(gap.recovery_tokens):
            words += f", back after {compact(gap.recovery_tokens)}"
    if name in run.budgets:
        over = "over" if gap.residual > run.budgets[name] else "within"
        words += f"; {over} its budget of {run.budgets[name]:g}"
    return words


def _row(run: RunRecords, name: str) -> list[str]:
    curve, gap = run.curves[name], run.gaps[name]
    bits = run.evaluations[-1].domains[name].bits_per_byte if name in run.evaluations[-1].domains else None
    return [
        name,
        run.roles.get(name, ""),
        f"{curve.base:.4f}",
        f"{curve.last:.4f}",
        _signed(gap.residual, 4),
        "" if bits is None else f"{bits:.4f}",
        f"{forgetting_from_best(curve):.4f}",
        f"{gap.depth:.4f}",
        compact(gap.peak_tokens) if gap.depth > 0 else "",
        compact(gap.recovery_tokens) if math.isfinite(gap.recovery_tokens) else "",
        compact(gap.area),
        str(gap.verdict),
    ]


def _sections(page: Page, run: RunRecords) -> Any:
    """The parts of a run's report that it has records for: (title, text, charts, table)."""
    if len(run.evaluations) > 2:
        spec = charts.first_steps(run)
        yield _section(
            "The first steps",
            "What is forgotten first is forgotten within a few steps, and much of it comes back.",
            page.chart("first-steps", "", "Change of the held-out loss from the base model; below 0 is better.", spec),
        )
    if run.matrix.last_stage > 1:
        matrix = run.matrix
        rows = [
            [title, form(value)]
            for title, value, form in (
                ("backward transfer", matrix.backward_transfer(), _signed),
                ("forward transfer", matrix.forward_transfer(), _signed),
                ("retained loss", matrix.retained_loss(), "{:.3f}".format),
                ("learned loss", matrix.learned_loss(), "{:.3f}".format),
            )
            if value is not None
        ]
        chart = page.chart(
            "stages",
            "",
            "Held-out loss after each stage, and its change from the base model.",
            charts.stage_matrix(run),
        )
        text = (
            "Positive transfer is good: later stages helped earlier domains (backward), or earlier stages later ones."
        )
        yield _section("Stages and domains", text, chart, rows=rows, columns=["over all domains", "nats per token"])
    if run.tasks:
        chart = page.chart(
            "tasks",
            "",
            "Scores of exported checkpoints, with standard errors; at 0 tokens, the base model's.",
            charts.tasks(run),
        )
        columns = ("task", "base", "now", "change")
        yield _section(
            "Tasks", "Losses and abilities can part: look at both.", chart, rows=_tasks(run), columns=columns
        )
    if run.probes:
        last = {probe["name"]: probe for line in run.probes for probe in line["probes"]}
        chart = page.chart(
            "recall", "", "Share of the text behind the given tokens, mean of each group of probes.", charts.recall(run)
        )
        text = (
            "What the model would write by itself of a text whose first tokens it is given, when it was measured last."
        )
        yield _section("Learned by heart", text, chart, rows=rows_of(list(last.values())), columns=COLUMNS_OF_PROBES)
    if any(evaluation.alignment for evaluation in run.evaluations):
        yield _section(
            "Alignment of the gradients",
            "Above 0, a small step on the new text also lowers the old one's loss; below 0 it raises it.",
            page.chart("alignment", "Whole model", "Cosine with the new text's gradient.", charts.alignment(run)),
            page.chart("alignment-layers", "By layer", "When it was measured last.", charts.layer_alignment(run)),
        )
    if run.drift:
        ratio = bottom_to_top(run.drift[-1]["layers"])
        text = "Bottom layers that move more than 1.35 times as far as top ones go with a stability gap."
        if math.isfinite(ratio):
            text += f" Here they have moved {ratio:.2f} times as far."
        chart = page.chart(
            "drift", "", "Relative change of each layer's weights from the base model.", charts.drift(run)
        )
        yield _section("Drift of the layers", text, chart)
    if run.steps:
        text = "Thick: the loss of each step. Thin: the mean over all tokens so far, each before it was trained on."
        chart = page.chart("training", "", "Unweighted training loss of each domain.", charts.training_loss(run))
        rows = [_part(run, part) for part in run.parts]
        yield _section("Training", text, chart, rows=rows, columns=COLUMNS_OF_PARTS if rows else ())
        if any("divergence" in domain for domain in run.steps[-1]["domains"].values()):
            text = "KL(teacher || model) on the text that is taught, in nats per token. The loss holds it down."
            chart = page.chart("divergence", "", "Mean of each domain's tokens in a step.", charts.divergence(run))
            yield _section("Distance from the teacher", text, chart)
        yield _section(
            "How it was trained",
            "",
            page.chart("mixture", "Mixture", "Share of the tokens, as trained.", charts.mixture(run)),
            page.chart(
                "rate",
                "Learning rate",
                "As a function of tokens.",
                charts.step_values(run, "learning_rate", "rate", ".1e"),
            ),
            page.chart(
                "throughput",
                "Throughput",
                "Tokens per second, all devices.",
                charts.step_values(run, "tokens_per_second", "tokens/s"),
            ),
            page.chart(
                "gradient", "Gradient norm", "Before clipping.", charts.step_values(run, "grad_norm", "norm", ".2~g")
            ),
        )


def _part(run: RunRecords, name: str) -> list[str]:
    """A part of a domain: its tokens, their share of the domain's, its loss in the first and last tenth of steps."""
    tokens = _trained(run.steps, "parts", name)[1]
    of_domain = _trained(run.steps, "domains", domain_of(name))[1]
    tenth = math.ceil(len(run.steps) / 10)
    losses = [_trained(steps, "parts", name)[0] for steps in (run.steps[:tenth], run.steps[-tenth:])]
    return [name, compact(tokens), f"{tokens / of_domain:.1%}", *("" if math.isnan(x) else f"{x:.4f}" for x in losses)]


def _trained(steps: Sequence[dict[str, Any]], key: str, name: str) -> tuple[float, int]:
    """The mean loss, and the number, of the labels of a domain or part in some steps."""
    found = [step[key][name] for step in steps if name in step.get(key, {})]
    tokens = sum(each["tokens"] for each in found)
    nll = sum(math.nan if each["loss"] is None else each["loss"] * each["tokens"] for each in found)
    return nll / tokens if tokens else math.nan, tokens


def _tasks(run: RunRecords) -> list[list[str]]:
    """Every task: its score by the base model, as it was measured last, and the difference."""
    scores: dict[str, dict[float, tuple[float, float | None]]] = {}
    for line in run.tasks:
        for task, value in line["scores"].items():
            scores.setdefault(task, {})[line["tokens"]] = (value, line.get("errors", {}).get(task))
    rows = []
    for task, found in scores.items():
        shown = {
            tokens: f"{value:.3f}" + ("" if error is None else f" \N{PLUS-MINUS SIGN} {error:.3f}")
            for tokens, (value, error) in found.items()
        }
        last = max(found)
        change = _signed(found[last][0] - found[0][0]) if 0 in found and last else ""
        rows.append([task, shown.get(0, ""), shown[last] if last else "", change])
    return rows


def _section(title: str, text: str, *shown: Chart, rows: Any = (), columns: Any = ()) -> dict[str, Any]:
    return {"title": title, "text": text, "charts": list(shown), "rows": rows, "columns": columns}


def _comparison(page: Page, runs: Sequence[RunRecords]) -> dict[str, Any]:
    domains = list(dict.fromkeys(name for run in runs for name in run.curves))
    costs = {run.flops_per_token for run in runs}
    units = ["tokens"] + ["FLOPs"] * (None not in costs and len(costs) > 1)
    return {
        "pareto": page.chart(
            "pareto",
            "",
            f"Large points: after {compact(charts.tokens_of_all(runs))} tokens, the most that all runs have. "
            "Dashed: what no other run beats.",
            charts.learned_against_forgotten(runs),
        ),
        "tables": [_at_equal(runs, domains, unit) for unit in units],
        "charts": [
            page.chart(
                f"runs-{name}-{unit}", f"{name}, over {unit}", "Held-out loss.", charts.runs_by(runs, name, unit)
            )
            for name in domains
            for unit in units
        ],
    }


def _at_equal(runs: Sequence[RunRecords], domains: Sequence[str], unit: str) -> dict[str, Any]:
    """Every run's changes from its base at the most tokens, or FLOPs, after which all were evaluated."""
    costs = [1.0 if unit == "tokens" else run.flops_per_token or math.nan for run in runs]
    common = min(charts.tokens_of_all([run]) * cost for run, cost in zip(runs, costs, strict=True))
    rows = []
    for run, cost in zip(runs, costs, strict=True):
        changes = (
            run.curves[name].at(common / cost) - run.curves[name].base if name in run.curves else None
            for name in domains
        )
        rows.append([run.name, *("" if change is None else _signed(change, 4) for change in changes)])
    amount = f"{compact(common)} tokens" if unit == "tokens" else f"{common:.3g} FLOPs"
    if len({run.flops_per_token for run in runs}) == 1 and runs[0].flops_per_token:
        amount += ", which are equal FLOPs too"
    return {"title": f"Change from the base at {amount}", "rows": rows, "columns": ["run", *domains]}


def _signed(value: float, digits: int = 3) -> str:
    """+0.020, or with a true minus."""
    return f"{value:+.{digits}f}".replace("-", MINUS) if math.isfinite(value) else "not finite"
