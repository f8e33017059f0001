"""The report of runs: its numbers are the records', its charts are drawn by a real browser without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megacpt.checkpoint.folder import CheckpointFolder
from megacpt.data.history import CorpusRecord, History, Settings, Stage
from megacpt.errors import USER_ERROR
from megacpt_tools import cli
from megacpt_tools.report import write
from megacpt_tools.report.charts import DARK, LIGHT, learned_against_forgotten, thinned
from megacpt_tools.report.page import render
from megacpt_tools.report.records import RunRecords, told_apart
from tests.checkpoint.states import save_checkpoint
from tests.tools.report_runs import LOSSES, write_run

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
CONFIG = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 128,
}  # fmt: skip
MEASURE = """<script>
addEventListener("load", () => setInterval(() => {
  document.body.dataset.width = document.documentElement.scrollWidth;
  document.body.dataset.marks = document.querySelectorAll(".chart svg path, .chart svg text").length;
}, 50));
</script>"""


class Tables(HTMLParser):
    """The cells of a page, and what it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.loads: list[str] = []
        self._is_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._is_cell = tag == "td"
        self.loads += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        if self._is_cell and data.strip():
            self.cells.append(data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    better = LOSSES | {"general": [2.0, 2.125, 1.9375]}
    return [
        write_run(folder / "plain", config=CONFIG, forgetting={"general": 0.02}),
        write_run(folder / "more-replay", better, config=CONFIG | {"num_hidden_layers": 4}),
    ]


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(runs, tmp_path_factory.mktemp("report") / "report.html")


def test_the_numbers_are_those_of_the_records(runs: list[Path]) -> None:
    html, specs = render([RunRecords.read(runs[0])])
    page = Tables(html)
    row = page.cells[page.cells.index("general") :]
    assert row[:6] == ["general", "replay", "2.0000", "2.0625", "+0.0625", "0.9000"]
    assert row[6:12] == ["0.0625", "0.2500", "2K", "562", "damage", "code"]  # the area: 250 + 312.5
    assert "medical was learned by 0.500 nats; general lost 0.062 nats" in html
    assert "over its budget of 0.02" in html
    assert {"loss-medical", "first-steps", "alignment", "alignment-layers", "mixture", "rate"} <= specs.keys()


def test_parts_of_domains_have_a_table(tmp_path: Path) -> None:
    run = write_run(tmp_path / "parts")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        line["parts"] = {"medical/a": {"loss": 3.0 - number, "tokens": 150}, "medical/b": {"loss": None, "tokens": 600}}
    lines[0]["parts"].pop("medical/b")
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    page = Tables(render([RunRecords.read(run)])[0])
    first, second = (page.cells.index(f"medical/{part}") for part in "ab")
    assert page.cells[first : first + 5] == ["medical/a", "600", "20.0%", "3.0000", "0.0000"]
    assert page.cells[second : second + 3] == ["medical/b", "1.8K", "60.0%"]


def test_runs_are_compared_at_equal_tokens_and_flops(page: Path) -> None:
    html = page.read_text()
    assert "Change from the base at 4K tokens" in html
    assert "FLOPs</h3>" in html
    assert "more-replay" in html


def test_learned_against_forgotten_is_of_equal_tokens(runs: list[Path], tmp_path: Path) -> None:
    short = write_run(tmp_path / "plain", LOSSES | {"medical": [3.0, 2.0, 2.0]})
    lines = (short / "evaluations.jsonl").read_text().splitlines()
    (short / "evaluations.jsonl").write_text("\n".join(lines[:2]) + "\n")
    records = told_apart([RunRecords.read(run) for run in (*runs, short)])
    assert [run.name for run in records] == [str(runs[0]), "more-replay", str(short)]  # two are named plain
    ends = learned_against_forgotten(records)["layer"][-1]["data"]["values"]
    assert [(end["tokens"], end["learned"], end["forgotten"]) for end in ends] == [
        (2000, pytest.approx(learned), forgotten) for learned, forgotten in ((0.1, 0.125), (0.1, 0.0625), (1.0, 0.125))
    ]


def test_nothing_is_loaded_and_nothing_may_be(page: Path) -> None:
    html = page.read_text()
    assert Tables(html).loads == []
    assert "default-src 'none'" in html


def test_pictures_are_written(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, figures = tmp_path / "deep" / "page.html", tmp_path / "figures"
    assert cli.main(["report", str(runs[0]), "--output", str(output), "--figures", str(figures)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert (figures / "loss-general.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "young")
    (run / "metrics.jsonl").unlink()
    lines = (run / "evaluations.jsonl").read_text().splitlines()
    (run / "evaluations.jsonl").write_text(f"{lines[0]}\n{lines[1][:20]}")
    html, _ = render([RunRecords.read(run)])
    assert "gap: none" in html


def test_stages_are_those_of_the_plan_in_the_checkpoint(tmp_path: Path) -> None:
    """Stages begin, and the run ends, with whole steps, where it was evaluated: nothing is read between evaluations."""
    run = write_run(tmp_path / "staged", training={"tokens": "3500"})
    checkpoints = CheckpointFolder(run / "checkpoints")
    checkpoints.begin(4)
    plan = (Stage(0, Settings({"general": 1.0}, 100, 10)), Stage(1500, Settings({"medical": 1.0}, 100, 10)))
    data = History.begin(0, plan, {name: CorpusRecord(5000, 9) for name in ("general", "medical")}).to_json()
    checkpoints.commit(4, {"state.json": {"step": 4, "tokens": 4000, "data": data}}, {})
    records = RunRecords.read(run)
    html, specs = render([records])
    assert records.matrix.learned_in == {"medical": 2, "general": 0, "code": 0}
    assert records.matrix.losses == ((3.0, 2.0, 1.0), (2.9, 2.25, 1.0), (2.5, 2.0625, 1.0))
    cells = Tables(html).cells
    assert cells[cells.index("forward transfer") + 1] == "+0.100"
    assert "stages" in specs


def test_layers_are_compared_with_the_base_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, base = write_run(tmp_path / "plain"), tmp_path / "base"
    base.mkdir()
    weights = {f"model.layers.{layer}.mlp.up_proj.weight": torch.full((3, 2), 2.0) for layer in range(2)}
    save_file(weights, base / "model.safetensors")
    for step, change in ((2, 0.5), (4, 1.0)):
        trained = {name: tensor + change * (1 - layer) for layer, (name, tensor) in enumerate(weights.items())}
        save_checkpoint(run, step, trained, data={})
    for _ in range(2):  # what is measured is not measured again
        assert cli.main(["report", str(run), "--base", str(base)]) == 0
    assert RunRecords.read(run).drift == [{"tokens": 200, "layers": [0.25, 0.0]}, {"tokens": 400, "layers": [0.5, 0.0]}]
    assert "Drift of the layers" in (run / "report.html").read_text()


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == USER_ERROR
    assert "this is no run folder" in capsys.readouterr().err


def test_long_curves_are_drawn_by_means() -> None:
    assert thinned([1, 2, 3, 4, 5], [1.0, 3.0, float("nan"), 5.0, 7.0], num_points=2) == [(2, 2.0), (5, 6.0)]
    assert thinned([1, 2], [1.0, 3.0]) == [(1, 1.0), (2, 3.0)]


def test_both_palettes_have_every_colour() -> None:
    assert LIGHT.keys() == DARK.keys()


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_draws_every_chart_within_the_page(page: Path, width: int, tmp_path: Path) -> None:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)}")
    measured = tmp_path / "measured.html"
    before, _, after = page.read_text().rpartition("</body>")
    measured.write_text(f"{before}{MEASURE}</body>{after}")
    options = [
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
        "--virtual-time-budget=5000",
        "--dump-dom",
    ]
    dumped = subprocess.run([browser, *options, measured.as_uri()], capture_output=True, text=True, timeout=120).stdout
    body = re.search(r"<body[^>]*>", dumped)
    assert body is not None
    data = dict(re.findall(r'data-(\w+)="([^"]*)"', body[0]))
    assert data["charts"] == "drawn"
    assert int(data["width"]) <= width
    num_charts = len(json.loads(re.search(r"const charts = (\{.*?\});\n", dumped)[1]))  # type: ignore[index]
    assert len(re.findall(r'<div class="chart[^>]*>(?:<[^>]*>)*?<svg', dumped)) == num_charts
    assert int(data["marks"]) > 10 * num_charts
