"""The picture and the table of a run, from its own records: `python -m docs.figures.quickstart RUN_FOLDER`.

Writes docs/figures/quickstart.svg (held-out loss per domain and learning rate over tokens) and the table of README.md
between its marks. Text and axes are of a grey that can be read on white and on black, and nothing is painted behind
them, so one file serves light and dark pages.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from docs.marked import write_part

ROOT = Path(__file__).parents[2]
FIGURE = ROOT / "docs" / "figures" / "quickstart.svg"
GREY = "#7a828b"
COLOURS = ("#e0700f", "#2492d1", "#2a9d5c", "#b565c9")
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "megacpt",  # equal input gives an equal file
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": GREY,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(evaluations: list[dict[str, Any]]) -> str:
    """Each domain's first and last held-out loss, as a Markdown table."""
    first, last = evaluations[0], evaluations[-1]
    rows = ["| domain | before | after | change | bits per byte before | and after |", "|---|---|---|---|---|---|"]
    for name, before in first["domains"].items():
        after = last["domains"][name]
        bits = [f"{value['bits_per_byte']:.3f}" if "bits_per_byte" in value else "" for value in (before, after)]
        change = after["loss"] - before["loss"]
        rows.append(f"| {name} | {before['loss']:.3f} | {after['loss']:.3f} | {change:+.3f} | {bits[0]} | {bits[1]} |")
    return "\n".join(
        [f"Held-out loss in nats per token after {last['step']} steps, {last['tokens']:,} tokens:", "", *rows]
    )


def draw(run: Path, figure_path: Path) -> None:
    """Draw the run in folder `run` into an SVG file."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, MaxNLocator

    steps, evaluations = read_lines(run / "metrics.jsonl"), read_lines(run / "evaluations.jsonl")
    tokens = [evaluation["tokens"] for evaluation in evaluations]
    with matplotlib.rc_context(STYLE):
        figure, (losses, rates) = plt.subplots(
            2, 1, figsize=(8, 4.6), sharex=True, height_ratios=(3, 1), layout="constrained"
        )
        for (name, base), colour in zip(evaluations[0]["domains"].items(), COLOURS, strict=False):
            values = [evaluation["domains"][name]["loss"] for evaluation in evaluations]
            losses.axhline(base["loss"], color=colour, linestyle=(0, (4, 4)), linewidth=1)
            label = f"{name} {values[-1] - values[0]:+.2f}"
            losses.plot(tokens, values, color=colour, marker="o", markersize=4, linewidth=2, label=label)
        losses.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, labelcolor="linecolor")
        losses.set_ylabel("held-out loss, nats per token")
        losses.set_title("dashed: the base model", loc="left", fontsize=10, color=GREY)
        rates.plot([step["tokens"] for step in steps], [step["learning_rate"] for step in steps], color=GREY)
        rates.set_ylabel("learning rate")
        rates.set_xlabel("tokens trained")
        rates.set_ylim(bottom=0)
        rates.xaxis.set_major_formatter(EngFormatter(sep=""))
        rates.yaxis.set_major_locator(MaxNLocator(2))
        rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        figure.align_ylabels()
        figure.savefig(figure_path, transparent=True, metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    """Draw the picture and write the table."""
    parser = argparse.ArgumentParser(description="The picture and the table of a run, for README.md.")
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--output", type=Path, help="draw only, into this file")
    arguments = parser.parse_args()
    draw(arguments.run, arguments.output or FIGURE)
    if arguments.output is None:
        write_part(ROOT / "README.md", "quickstart results", table(read_lines(arguments.run / "evaluations.jsonl")))


if __name__ == "__main__":
    main()
