"""A run goes on under any other layout as it would have gone on under its own.

The short form is a relay: every layout takes the run over from the one before it, so each is once what is read and once
what reads. The full form, marked slow, has every layout continue the checkpoints of every layout, tied and untied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.folder import CheckpointFolder, Retention
from megacpt.checkpoint.saving import Saver
from megacpt.engine.engine import Engine
from megacpt.engine.pipelined import PipelinedEngine
from megacpt.parallel.fragments import MASTER
from megacpt.parallel.grid import Grid
from megacpt.trainer.restore import restore
from tests.distributed import run_ranks
from tests.parity import tiny
from tests.parity.engines import History, build_engine, train_steps

LAYOUTS: dict[str, dict[str, Any]] = {
    "1": {},
    "pipeline 2": {"pipeline": 2},
    "tensor 2": {"tensor": 2},
    "data 2": {"data": 2},
    "2 x 2 x 2": {"pipeline": 2, "tensor": 2, "data": 2},
    "ZeRO-3 x 4": {"data": 4, "zero_stage": 3},
}
MODELS = ("llama", "llama-tied")
SAVED, LAST = 2, 4
LEG = 2
"""Steps of the relay under each layout."""


def split(layout: str) -> tuple[Grid, dict[str, Any]]:
    settings = dict(LAYOUTS[layout])
    return Grid(*(settings.pop(axis, 1) for axis in ("pipeline", "data", "tensor"))), settings


def save(engine: Engine, folder: Path, step: int, channel: Channel) -> None:
    record = Saver(CheckpointFolder(folder), channel, Retention(9)).save(
        {"step": step, "tokens": step}, engine.counters(), engine.held()
    )
    assert record is not None and record.path is not None, record


def newest(folder: Path) -> Path:
    checkpoint = CheckpointFolder(folder).newest()
    assert checkpoint is not None
    return checkpoint


def run_leg(rank: int, model: Path, layout: str, leg: int, num_steps: int) -> History:
    """The body of a rank: take over from the leg before, train for `num_steps`, save after `LEG`."""
    grid, settings = split(layout)
    channel, first = Channel(), leg * LEG
    engine = build_engine(rank, model, grid, **settings)
    if leg:
        restore(engine, newest(model / "checkpoints"), channel)
    history = train_steps(engine, rank, grid, range(first, first + LEG))
    save(engine, model / "checkpoints", first + LEG, channel)
    return history + train_steps(engine, rank, grid, range(first + LEG, first + num_steps))


def test_a_relay_of_all_layouts_is_one_run(tmp_path: Path) -> None:
    model = tiny.save_tiny_model("llama-tied", tmp_path)
    num_steps = LEG * len(LAYOUTS)
    whole: History = []
    for leg, layout in enumerate(LAYOUTS):
        histories = run_ranks(split(layout)[0].world_size, run_leg, model, layout, leg, LEG if leg else num_steps)
        assert all(history == histories[0] for history in histories)
        whole = whole or histories[0]
        expected = whole[leg * LEG : (leg + 1) * LEG]
        assert histories[0][:LEG] == [pytest.approx(values, rel=1e-5) for values in expected], layout


def weight_decays(engine: Engine) -> set[tuple[int, float]]:
    """(dims of a parameter, the decay of the group that it is in)."""
    assert isinstance(engine, PipelinedEngine)
    groups = zip(engine.engine.optimizer.bf16_groups, engine.engine.optimizer.param_groups, strict=True)
    return {(parameter.ndim, group["weight_decay"]) for parameters, group in groups for parameter in parameters}


ONE_STAGE, WITH_ONE_OF_NORMS = (0, 6), (0, 2, 4, 6)
"""Stages of: embedding, three layers, norm, head. With the matrices of the layers frozen, the middle one of three has
only norms to train. Where parameter groups are matched by their position, as in DeepSpeed's universal checkpoints, two
things then go wrong without an error: some norms are never read, and some are decayed."""
FROZEN = {"*.self_attn.*": 0.0, "*.mlp.*": 0.0}


def cross_stages(
    rank: int, model: Path, bounds: tuple[int, ...], is_first: bool
) -> tuple[set[tuple[int, float]], dict[str, list[float]]]:
    """The body of a rank: train and save as these stages, or go on as these; its decays, and name -> each norm."""
    grid = Grid(pipeline=len(bounds) - 1, data=1, tensor=1)
    engine = build_engine(rank, model, grid, dtype=torch.bfloat16, bounds=bounds, lr_multipliers=FROZEN)
    if is_first:
        train_steps(engine, rank, grid, range(2))
        save(engine, model / "checkpoints", 2, Channel())
    else:
        restore(engine, newest(model / "checkpoints"), Channel())
    held = [(held.fragment, held.values[MASTER]) for held in engine.held()]
    return weight_decays(engine), {part.name: values.tolist() for part, values in held if len(part.shape) == 1}


def test_all_norms_are_read_from_stages_with_other_groups(tmp_path: Path) -> None:
    model = tiny.save_tiny_model("llama", tmp_path)
    trained: dict[str, list[float]] = {}
    for _, norms in run_ranks(3, cross_stages, model, WITH_ONE_OF_NORMS, True):
        trained |= norms
    ((_, read),) = run_ranks(1, cross_stages, model, ONE_STAGE, False)
    assert len(trained) == 7 and read == trained


def test_norms_are_not_decayed_as_another_stage_decays(tmp_path: Path) -> None:
    model = tiny.save_tiny_model("llama", tmp_path)
    run_ranks(1, cross_stages, model, ONE_STAGE, True)
    first, middle, last = (decays for decays, _ in run_ranks(3, cross_stages, model, WITH_ONE_OF_NORMS, False))
    assert first == last == {(2, tiny.WEIGHT_DECAY), (1, 0.0)} and middle == {(1, 0.0)}


def save_and_go_on(rank: int, root: Path, layout: str) -> dict[str, History]:
    """The body of a rank: of each model a checkpoint, and what follows it."""
    grid, settings = split(layout)
    channel = Channel()
    histories = {}
    for model in MODELS:
        engine = build_engine(rank, root / model, grid, **settings)
        train_steps(engine, rank, grid, range(SAVED))
        save(engine, root / f"{model} {layout}", SAVED, channel)
        histories[model] = train_steps(engine, rank, grid, range(SAVED, LAST))
    return histories


def go_on(rank: int, root: Path, layout: str) -> dict[str, dict[str, History]]:
    """The body of a rank: what follows every layout's checkpoint of each model, all in one engine."""
    grid, settings = split(layout)
    channel = Channel()
    histories: dict[str, dict[str, History]] = {}
    for model in MODELS:
        engine = build_engine(rank, root / model, grid, **settings)
        for source in LAYOUTS:
            restore(engine, newest(root / f"{model} {source}"), channel)
            histories.setdefault(model, {})[source] = train_steps(engine, rank, grid, range(SAVED, LAST))
    return histories


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, History]]]:
    """Where every layout's checkpoints lie, and layout -> model -> its own way on."""
    root = tmp_path_factory.mktemp("reshape")
    for model in MODELS:
        tiny.save_tiny_model(model, root / model)
    return root, {layout: run_ranks(split(layout)[0].world_size, save_and_go_on, root, layout)[0] for layout in LAYOUTS}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_continues_every_layout(layout: str, saved: tuple[Path, dict[str, dict[str, History]]]) -> None:
    root, expected = saved
    for histories in run_ranks(split(layout)[0].world_size, go_on, root, layout):
        for model, by_source in histories.items():
            for source, history in by_source.items():
                own = expected[source][model]
                assert history == [
                    (pytest.approx(loss, rel=1e-6), pytest.approx(norm, rel=1e-5)) for loss, norm in own
                ], f"{model}: {source} -> {layout}"
                if source == layout:
                    assert history == own, f"{model}: {layout}"
