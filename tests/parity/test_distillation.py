"""Training held to a teacher: the same on every layout as with whole logits in one process."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from megacpt.model.objective import Distillation
from megacpt.optim.adamw import Additions
from tests.distributed import run_ranks
from tests.long_form import cases
from tests.parity import tiny
from tests.parity.engines import train
from tests.parity.runs import metrics_of, run_command, write_recipe
from tests.parity.test_training import assert_same

NUM_STEPS = 4
LAYOUTS: dict[str, list[tuple[tuple[int, int, int], dict[str, Any]]]] = {
    "llama-tied": [((1, 1, 1), {}), ((2, 2, 2), {}), ((1, 1, 2), {"zero_stage": 3, "checkpointing": True})],
    "llama": [((2, 2, 1), {"sequence_parallel": True, "checkpointing": True})],
}
BFLOAT16 = ["--set", "model.dtype=bfloat16"]
DISTILLATION = Distillation(weight=0.5, temperature=2.0, domains=(1,))


def save_teacher(student: Path, folder: Path) -> Path:
    """A model of the student's architecture that predicts otherwise."""
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def row_divergence(student: torch.nn.Module, teacher: torch.nn.Module, row: tiny.Row) -> torch.Tensor:
    """The summed KL(teacher || student) of a row's predicted tokens, from whole logits."""
    total = torch.zeros(())
    for start, stop in tiny.spans(row):
        if stop - start < 2:
            continue
        ids = row.tokens[None, start : stop - 1]
        with torch.no_grad():
            target = (teacher(input_ids=ids).logits / DISTILLATION.temperature).log_softmax(-1)
        predicted = (student(input_ids=ids).logits / DISTILLATION.temperature).log_softmax(-1)
        total = total + F.kl_div(predicted, target, reduction="sum", log_target=True)
    return total


def slow_training(
    folder: Path, teacher_folder: Path, average_decay: float | None = None, weight: float = DISTILLATION.weight
) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step, with transformers alone; the teacher may follow the average."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    teacher = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32, attn_implementation="eager")
    groups = [
        dict(params=[p for p in model.parameters() if p.ndim > 1], weight_decay=tiny.WEIGHT_DECAY),
        dict(params=[p for p in model.parameters() if p.ndim == 1], weight_decay=0.0),
    ]
    optimizer = torch.optim.AdamW(groups, lr=tiny.LEARNING_RATE, betas=tiny.BETAS)
    factor = weight * DISTILLATION.temperature**2
    history = []
    for step in range(NUM_STEPS):
        rows = tiny.rows_of_step(step)
        losses = []
        for row in rows:
            loss = tiny.document_losses(model, row).sum()
            if row.domain in DISTILLATION.domains:
                loss = loss + factor * row_divergence(model, teacher, row)
            losses.append(tiny.DOMAIN_WEIGHTS[row.domain] * loss)
        total = torch.stack(losses).sum() / tiny.total_weight(rows)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), tiny.CLIPPING)
        optimizer.step()
        optimizer.zero_grad()
        if average_decay is not None:
            with torch.no_grad():
                for average, parameter in zip(teacher.parameters(), model.parameters(), strict=True):
                    average.copy_(average_decay * average + (1 - average_decay) * parameter)
        history.append((total.item(), norm.item()))
    return history


def test_a_taught_run_is_the_same_on_every_layout(tmp_path: Path) -> None:
    for architecture, layouts in LAYOUTS.items():
        folder = tiny.save_tiny_model(architecture, tmp_path / architecture)
        teacher = save_teacher(folder, tmp_path / f"{architecture}-teacher")
        expected = slow_training(folder, teacher)
        options: dict[str, Any] = dict(teacher=teacher, distillation=DISTILLATION, num_steps=NUM_STEPS)
        for layout, variant in layouts:
            world_size = layout[0] * layout[1] * layout[2]
            assert_same(run_ranks(world_size, train, folder, layout, **options, **variant), expected)


AVERAGED: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "pipeline 2 x data 2": ((2, 1, 2), {}),
    "data 2, ZeRO-3": ((1, 1, 2), {"zero_stage": 3}),
    "data 2, ZeRO-2": ((1, 1, 2), {"zero_stage": 2}),
}


@pytest.mark.parametrize("layout", cases(AVERAGED, always=("pipeline 2 x data 2", "data 2, ZeRO-3")))
def test_a_teacher_can_follow_the_average(layout: str, tmp_path: Path) -> None:
    degrees, variant = AVERAGED[layout]
    folder = tiny.save_tiny_model("llama-tied", tmp_path)
    expected = slow_training(folder, folder, average_decay=0.6, weight=5.0)
    options: dict[str, Any] = dict(
        teacher=folder,
        distillation=replace(DISTILLATION, of_average=True, weight=5.0),
        additions=Additions(average_decay=0.6),
        num_steps=NUM_STEPS,
    )
    assert_same(run_ranks(math.prod(degrees), train, folder, degrees, **options, **variant), expected)


def test_a_teacher_may_join_a_run_that_kept_no_average(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, evaluation={"every": None, "at_start": False, "at_end": False})
    assert run_command(1, recipe, "--set", "training.stop_at_step=2") == [0]
    taught = ["loss.distillation={weight: 0.5, teacher: average}", "optimizer.average_decay=0.9"]
    changes = [text for change in (*taught, "training.stop_at_step=4") for text in ("--set", change)]
    accepted = ["--accept", "loss.distillation", "--accept", "optimizer.average_decay"]
    assert run_command(1, recipe, "--resume", "auto", *changes, *accepted) == [0]
    distances = [step["domains"]["new"].get("divergence") for step in metrics_of(recipe)]
    assert distances[:2] == [None, None]
    assert abs(distances[2]) < 1e-6 < distances[3], "the average begins at the weights that are there"


def test_a_resume_has_the_same_teacher(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, parallel={"pipeline": 2}, loss={"distillation": {"weight": 0.5}})
    assert run_command(2, recipe, *BFLOAT16) == [0, 0]
    interrupted = [*BFLOAT16, "--set", "name=interrupted"]
    assert run_command(2, recipe, *interrupted, "--set", "training.stop_at_step=4") == [0, 0]
    assert run_command(2, recipe, *interrupted, "--resume", "auto") == [0, 0]
    assert metrics_of(recipe, "interrupted") == metrics_of(recipe)
    plain = ["--set", "name=plain", "--set", "loss.distillation=null", "--set", "training.stop_at_step=2"]
    assert run_command(2, recipe, *BFLOAT16, *plain) == [0, 0]
    first, second = metrics_of(recipe, "plain"), metrics_of(recipe)[:2]
    assert first[0]["loss"] == second[0]["loss"], "a teacher that is the model itself says nothing yet"
    assert first[1]["grad_norm"] != second[1]["grad_norm"]
    distances = [step["domains"]["new"]["divergence"] for step in metrics_of(recipe)]
    assert abs(distances[0]) < 1e-6 < distances[1] < distances[-1]
    assert not any("divergence" in domain for step in (*first, second[0]) for domain in [step["domains"]["old"]])
