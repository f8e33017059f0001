"""What is done to the fp32 weights besides AdamW's update: the same on every layout, kept by the next step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megacpt.checkpoint.export import export
from megacpt.errors import CheckpointError
from megacpt.optim.adamw import AVERAGE, Additions, Reptile
from megacpt.parallel.grid import Grid
from tests.distributed import run_ranks
from tests.long_form import cases
from tests.parity import tiny
from tests.parity.engines import build_engine, train
from tests.parity.runs import evaluations_of, metrics_of, run_command, write_recipe
from tests.parity.test_training import assert_same

NUM_STEPS, EVERY, STEP_SIZE = 6, 2, 0.5
ADDITIONS = Additions(decay_to_initial=True, reptile=Reptile(EVERY, STEP_SIZE), average_decay=0.9)
MULTIPLIERS = {"model.embed_tokens.*": 0.0, "model.layers.0.*": 0.5, "model.layers.2.mlp.*": 0.25}


def slow_training(folder: Path) -> list[tuple[float, float]]:
    """(loss, gradient norm) of the methods as their formulas say, parameter by parameter, on a plain model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.train()
    model.model.embed_tokens.requires_grad_(False)
    rates = {}
    for name, _ in model.named_parameters():
        factor = 0.5 if ".layers.0." in name else 0.25 if ".layers.2.mlp." in name else 1.0
        rates[name] = factor * tiny.LEARNING_RATE
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        [dict(params=[p], lr=rates[name]) for name, p in named.items()], betas=tiny.BETAS, weight_decay=0.0
    )
    initial = {name: p.detach().clone() for name, p in named.items()}
    slow = {name: p.detach().clone() for name, p in named.items()}
    history = []
    for step in range(NUM_STEPS):
        rows = tiny.rows_of_step(step)
        losses = [tiny.DOMAIN_WEIGHTS[row.domain] * tiny.document_losses(model, row).sum() for row in rows]
        loss = torch.stack(losses).sum() / tiny.total_weight(rows)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(named.values(), tiny.CLIPPING)
        with torch.no_grad():
            for name, p in named.items():
                if p.ndim > 1:
                    p -= rates[name] * tiny.WEIGHT_DECAY * (p - initial[name])
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % EVERY == 0:
            with torch.no_grad():
                for name, p in named.items():
                    p.copy_(slow[name] + STEP_SIZE * (p - slow[name]))
                    slow[name] = p.clone()
        history.append((loss.item(), norm.item()))
    return history


def test_additions_are_the_methods_on_every_layout(tmp_path: Path) -> None:
    folder = tiny.save_tiny_model("llama-tied", tmp_path)
    expected = slow_training(folder)
    methods: dict[str, Any] = dict(num_steps=NUM_STEPS, lr_multipliers=MULTIPLIERS, additions=ADDITIONS)
    assert_same(run_ranks(1, train, folder, (1, 1, 1), **methods), expected)
    assert_same(run_ranks(8, train, folder, (2, 2, 2), **methods), expected)
    assert_same(run_ranks(2, train, folder, (1, 1, 2), zero_stage=3, **methods), expected)


def losses_around_an_interpolation(rank: int, folder: Path, zero_stage: int) -> list[float]:
    """The body of a rank, in bf16: the loss before and after each of three steps; only the second has a rate, and is
    followed by an interpolation."""
    grid = Grid(pipeline=1, tensor=1, data=2)
    additions = Additions(reptile=Reptile(2, 0.1))
    engine = build_engine(rank, folder, grid, zero_stage=zero_stage, dtype=torch.bfloat16, additions=additions)

    def loss() -> float:
        rows = tiny.rows_of_step(9)[rank::2]
        return engine.evaluate([tiny.micro_batch([row], 1.0) for row in rows])

    losses = [loss()]
    for step, rate in enumerate([0.0, 0.05, 0.0]):
        rows = tiny.rows_of_step(step)
        engine.train_step([tiny.micro_batch([row], tiny.total_weight(rows)) for row in rows[rank::2]], rate)
        losses.append(loss())
    return losses


@pytest.mark.parametrize("zero_stage", cases([1, 2, 3], always=[1]))
def test_the_next_step_keeps_an_interpolation(zero_stage: int, tmp_path: Path) -> None:
    folder = tiny.save_tiny_model("llama-tied", tmp_path)
    before, unmoved, interpolated, kept = run_ranks(2, losses_around_an_interpolation, folder, zero_stage)[0]
    assert before == unmoved != interpolated == kept


def test_a_stage_without_anything_to_train_is_refused(tmp_path: Path) -> None:
    folder = tiny.save_tiny_model("llama", tmp_path)
    with pytest.raises(AssertionError, match="every parameter of a pipeline stage is frozen"):
        run_ranks(2, train, folder, (2, 1, 1), lr_multipliers={"model.embed_tokens.*": 0.0, "model.layers.[01].*": 0.0})


def test_a_resume_goes_on_with_what_was_remembered_in_any_layout(tmp_path: Path) -> None:
    optimizer = {
        "decay_to": "initial",
        "reptile": {"every_steps": 3, "step_size": 0.5},
        "average_decay": 0.9,
        "lr_multipliers": {"model.layers.0.mlp.*": 0.5, "model.layers.1.mlp.*": 0},
    }
    recipe = write_recipe(tmp_path, parallel={"zero_stage": 3}, optimizer=optimizer)
    assert run_command(2, recipe) == [0, 0]
    interrupted = ["--set", "name=interrupted"]
    assert run_command(2, recipe, *interrupted, "--set", "training.stop_at_step=4") == [0, 0]
    assert run_command(2, recipe, *interrupted, "--resume", "auto") == [0, 0]
    assert metrics_of(recipe, "interrupted") == metrics_of(recipe)
    assert evaluations_of(recipe, "interrupted")[-1] == evaluations_of(recipe)[-1]

    checkpoint = tmp_path / "runs" / "interrupted" / "checkpoints" / "step_000006"
    elsewhere = ["--set", "name=elsewhere", "--set", "parallel.zero_stage=1", "--set", "parallel.pipeline=2"]
    assert run_command(2, recipe, *elsewhere, "--resume", str(checkpoint)) == [0, 0]
    losses = [[record["loss"] for record in metrics_of(recipe, name)[-2:]] for name in ("small", "elsewhere")]
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), rtol=1e-5, atol=0.0)


def test_the_average_is_exported(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, optimizer={"average_decay": 0.75, "lr_multipliers": {"*.norm.weight": 0}})
    exports = {}
    for step in (0, 1):
        name = f"stopped-{step}"
        assert run_command(1, recipe, "--set", f"name={name}", "--set", f"training.stop_at_step={step}") == [0]
        export(tmp_path / "runs" / name, tmp_path / name)
        exports[step] = load_file(tmp_path / name / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no average"):
        export(tmp_path / "runs" / "stopped-0", tmp_path / "average", kind=AVERAGE)
    export(tmp_path / "runs" / "stopped-1", tmp_path / "average", kind=AVERAGE)
    average = load_file(tmp_path / "average" / "model.safetensors")
    assert average.keys() == exports[0].keys()
    for name, values in average.items():
        torch.testing.assert_close(values, 0.75 * exports[0][name] + 0.25 * exports[1][name], rtol=1e-6, atol=1e-7)


def test_a_branch_forgets_the_moments_once(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    assert run_command(1, recipe, "--set", "training.stop_at_step=4") == [0]
    from_trunk = ["--resume", str(tmp_path / "runs" / "small")]
    reset = ["--set", "optimizer.reset=true"]
    assert run_command(1, recipe, *from_trunk, "--set", "name=plain") == [0]
    assert run_command(1, recipe, *from_trunk, *reset, "--set", "name=reset") == [0]
    halved = [*reset, "--set", "name=halved"]
    assert run_command(1, recipe, *from_trunk, *halved, "--set", "training.stop_at_step=6") == [0]
    assert run_command(1, recipe, *halved, "--resume", "auto") == [0]
    plain, forgetful, resumed = (metrics_of(recipe, name)[-4:] for name in ("plain", "reset", "halved"))
    assert plain[0]["loss"] == forgetful[0]["loss"]
    assert plain[1]["loss"] != forgetful[1]["loss"]
    assert resumed == forgetful
