"""Gradients are compared in every layout as in one process, and looking at them changes nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from megacpt.continual.drift import layer_of
from megacpt.model.objective import Distillation
from megacpt.observe.record import GradientAlignment
from megacpt.parallel.grid import Grid
from tests.distributed import run_ranks
from tests.long_form import cases
from tests.parity import tiny
from tests.parity.engines import History, build_engine, train_steps

LAYOUTS: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "plain": ((1, 1, 1), {"zero_stage": 0}),
    "pipeline 2 x tensor 2": ((2, 2, 1), {}),
    "pipeline 2 x tensor 2 x data 2": ((2, 2, 2), {"sequence_parallel": True}),
    "data 2, ZeRO-2": ((1, 1, 2), {"zero_stage": 2}),
    "data 2, ZeRO-3": ((1, 1, 2), {"zero_stage": 3}),
    "pipeline 2 x data 2, bf16": ((2, 1, 2), {"dtype": torch.bfloat16}),
    "taught, data 2, ZeRO-0": (
        (1, 1, 2),
        {"zero_stage": 0, "distillation": Distillation(weight=0.5, temperature=1.0, domains=(0, 1))},
    ),
}
NEW, OLD = tiny.rows_of_step(100), {"old": tiny.rows_of_step(101), "same": tiny.rows_of_step(100)}


def batches(rows: list[tiny.Row], grid: Grid, rank: int) -> list[Any]:
    mine = rows[grid.coordinate(rank).data :: grid.data]
    return [tiny.micro_batch([row], tiny.total_weight(rows)) for row in mine]


def train(
    rank: int, folder: Path, layout: tuple[int, int, int], looks: bool, settings: dict[str, Any]
) -> tuple[History, list[dict[str, GradientAlignment]]]:
    """The body of a rank: three steps, and gradients compared before the first, the second and the third."""
    grid = Grid(pipeline=layout[0], tensor=layout[1], data=layout[2])
    engine = build_engine(rank, folder, grid, teacher=folder if "distillation" in settings else None, **settings)
    history: History = []
    seen = []
    for step in range(3):
        if looks:
            before = engine.counters()
            # More micro-batches on one side than in a training step, fewer on the other.
            old = {name: batches(rows, grid, rank) for name, rows in OLD.items()}
            seen.append(engine.alignment(batches(NEW, grid, rank), old | {"half": old["same"][:1]}))
            assert engine.counters() == before
        history += train_steps(engine, rank, grid, [step])
    return history, seen


def gradient(folder: Path, rows: list[tiny.Row]) -> dict[str, torch.Tensor]:
    """By transformers, in one process."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    losses = [tiny.DOMAIN_WEIGHTS[row.domain] * tiny.document_losses(model, row).sum() for row in rows]
    (torch.stack(losses).sum() / tiny.total_weight(rows)).backward()
    return {name: parameter.grad.double().flatten() for name, parameter in model.named_parameters()}


def cosine(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], layer: int | None = None) -> float:
    names = [name for name in one if layer is None or layer_of(name) == layer]
    first, second = (torch.cat([gradients[name] for name in names]) for gradients in (one, other))
    return float(first @ second / (first.norm() * second.norm()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny_model("llama-tied", tmp_path_factory.mktemp("models") / "llama-tied")


@pytest.mark.parametrize("layout", cases(LAYOUTS, always=("pipeline 2 x tensor 2", "data 2, ZeRO-2")))
def test_the_cosines_are_those_of_one_process_and_training_does_not_notice(layout: str, folder: Path) -> None:
    degrees, settings = LAYOUTS[layout]
    results = run_ranks(math.prod(degrees), train, folder, degrees, True, settings)
    undisturbed = run_ranks(math.prod(degrees), train, folder, degrees, False, settings)
    assert [history for history, _ in results] == [history for history, _ in undisturbed]
    seen = results[0][1]
    assert all(other == seen for _, other in results)
    # Rounding to bf16 is of relative size 2^-9 an element, and independent between elements.
    tolerance = 2e-2 if settings.get("dtype") is torch.bfloat16 else 1e-5
    new, old = gradient(folder, NEW), gradient(folder, OLD["old"])
    first = seen[0]["old"]
    assert first.whole == pytest.approx(cosine(new, old), abs=tolerance)
    assert first.layers == pytest.approx([cosine(new, old, layer) for layer in range(3)], abs=tolerance)
    assert seen[0]["same"].whole == pytest.approx(1.0, abs=1e-6)
    assert seen[0]["half"].whole < 0.999
    assert seen[1]["old"] != first != seen[2]["old"], "the weights have moved"
