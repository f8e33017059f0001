"""What is learned by heart, of a tiny model that was taught one text by heart and not another."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from megacpt.errors import USER_ERROR
from megacpt_tools import cli
from megacpt_tools.probe import Probe, measure, read_probes
from megacpt_tools.report.page import render
from megacpt_tools.report.records import RunRecords
from tests.checkpoint.states import save_checkpoint
from tests.parity import tiny
from tests.tools.report_runs import write_run

PREFIX, LENGTH = 4, 20
KNOWN, UNKNOWN = (
    tuple(torch.randint(3, 118, (LENGTH,), generator=torch.Generator().manual_seed(seed)).tolist()) for seed in (1, 2)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows a text."""
    folder = tiny.save_tiny_model("llama-tied", tmp_path_factory.mktemp("models") / "llama")
    model = load(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    ids = torch.tensor([KNOWN])
    for _ in range(60):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def write_probes(path: Path, *probes: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(probe)}\n" for probe in probes))
    return path


def test_recall_is_that_of_a_greedy_generation(folder: Path) -> None:
    half_known = (*KNOWN[:12], *UNKNOWN[12:])
    texts = {"known": KNOWN, "unknown": UNKNOWN, "half": half_known}
    found = measure(folder, [Probe(name=name, tokens=tokens) for name, tokens in texts.items()], PREFIX)
    model = load(folder)
    for finding, tokens in zip(found, texts.values(), strict=True):
        written = model.generate(
            torch.tensor([tokens[:PREFIX]]), max_new_tokens=LENGTH - PREFIX, do_sample=False, eos_token_id=None
        )[0, PREFIX:].tolist()
        same = [one == other for one, other in zip(written, tokens[PREFIX:], strict=True)]
        assert (finding.prefix_tokens, finding.tokens) == (PREFIX, LENGTH - PREFIX)
        assert finding.recalled == [*same, False].index(False)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0, PREFIX - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[PREFIX:]))
        assert finding.loss == pytest.approx(float(expected), rel=1e-5)
    known, _, half = found
    assert known.recalled == LENGTH - PREFIX
    assert 12 - PREFIX <= half.recalled < LENGTH - PREFIX


def test_a_planted_canary_is_likelier_than_its_siblings(folder: Path) -> None:
    shorter = tuple(KNOWN[:PREFIX] + UNKNOWN[PREFIX:-3])
    probes = [
        Probe(name="random", tokens=KNOWN, siblings=63),
        Probe(name="given", tokens=UNKNOWN, siblings=(KNOWN, UNKNOWN)),
        Probe(name="shorter", tokens=KNOWN, siblings=(shorter,)),
    ]
    random, given, uneven = measure(folder, probes, PREFIX)
    assert (random.exposure, random.most_exposure) == (6.0, 6.0)
    assert given.exposure == math.log2(3 / 2), "one of its siblings is known"
    assert uneven.exposure == 1.0
    assert measure(folder, probes, PREFIX) == [random, given, uneven], "random siblings are the same at each call"


def test_a_run_is_measured_beside_its_base_and_its_report_draws_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, base = write_run(tmp_path / "run"), tiny.save_tiny_model("llama-tied", tmp_path / "base")
    shutil.copy(folder / "config.json", run / "model" / "config.json")
    weights = {name: tensor for name, tensor in load(folder).named_parameters()}
    save_checkpoint(run, 4, weights, dtype="float32", data={"plan": [{"from_tokens": 0, "weights": {"medical": 1.0}}]})
    probes = write_probes(
        tmp_path / "probes.jsonl",
        {"name": "known", "tokens": KNOWN, "siblings": 7, "group": "planted"},
        {"name": "unknown", "tokens": UNKNOWN, "group": "never"},
    )
    command = ["probe", str(run), "--probes", str(probes), "--prefix-tokens", str(PREFIX), "--base", str(base)]
    assert cli.main([*command, "--output", str(tmp_path / "found.json")]) == 0
    assert "16 of 16" in capsys.readouterr().out
    assert [line["tokens"] for line in RunRecords.read(run).probes] == [0, 400]
    assert json.loads((tmp_path / "found.json").read_text())[0]["exposure"] == 3.0
    html, specs = render([RunRecords.read(run)])
    assert "<h2>Learned by heart</h2>" in html
    planted = [row for row in specs["recall"]["data"]["values"] if row["probes"] == "planted"]
    assert [row["tokens"] for row in planted] == [0, 400]
    assert planted[0]["recalled"] < planted[1]["recalled"] == 1.0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"name": "a"}', "probes.jsonl:1: this is no probe (found a probe has one of text and tokens"),
        ('{"name": "a", "tokens": [1, 2], "txet": 1}', "probes.jsonl:1: txet: this is no probe (found Extra inputs"),
        ("", "probes.jsonl: there is no probe here"),
        (
            '{"name": "a", "tokens": [1, 2]}\n{"name": "a", "tokens": [1, 2]}',
            "probes.jsonl:2: two probes have one name",
        ),
        ('{"name": "a", "tokens": [7]}', "probe a: a text cannot be given to this model (found 1 tokens"),
        ('{"name": "a", "tokens": [1, 118]}', "the largest 118, expected 2 to 64 tokens below 118)"),
        (
            '{"name": "a", "tokens": [1, 2], "siblings": [[5]]}',
            "probe a: a sibling cannot be given to this model (found 1 tokens",
        ),
    ],
)
def test_mistakes_are_answered(
    line: str, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probes = tmp_path / "probes.jsonl"
    probes.write_text(line)
    assert cli.main(["probe", str(folder), "--probes", str(probes)]) == USER_ERROR
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_what_a_run_inserted_is_what_is_looked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [{"position": position, "step": 1, "row": 0, "column": 3} for position in (0, 399, 400)]
    probe = Probe.model_validate({"name": "canary", "tokens": KNOWN, "places": places})
    assert [measure(folder, [probe], PREFIX, seen_tokens=tokens)[0].seen for tokens in (0, 400, None)] == [0, 2, None]
    run = write_run(tmp_path / "run")
    save_checkpoint(run, 4)
    assert cli.main(["probe", str(run)]) == USER_ERROR
    assert "--probes: the run inserted nothing" in capsys.readouterr().err
    assert cli.main(["probe", str(folder)]) == USER_ERROR
    assert "--probes: a model alone does not say what to look for" in capsys.readouterr().err


def test_a_file_of_probes_may_have_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "probes.jsonl"
    path.write_text('{"name": "a", "text": "x", "prefix_tokens": 3}\n\n{"name": "b", "tokens": [1, 2]}\n')
    assert [probe.content for probe in read_probes(path)] == ["x", (1, 2)]
