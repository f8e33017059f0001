"""Which layers each pipeline stage holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacpt.assemble.stages import layer_costs, layers_per_stage, stage_bounds
from megacpt.recipe import Architecture
from tests.assemble.recipes import resolved


def cut(folder: Path, *changes: str, pipeline: int = 3) -> tuple[list[int], list[int]]:
    """The bounds, and the decoder layers of each stage."""
    run = resolved(folder, f"parallel.pipeline={pipeline}", *changes, world_size=pipeline)
    assert run.architecture is not None
    bounds = stage_bounds(run.recipe, run.architecture)
    return bounds, layers_per_stage(bounds, run.architecture.num_layers)


@pytest.mark.parametrize("cut_as", ["time", "uniform", "[6]"])
def test_one_stage_holds_everything(cut_as: str, tmp_path: Path) -> None:
    assert cut(tmp_path, f"parallel.partition={cut_as}", pipeline=1) == ([0, 8], [6])


def test_listed_layers(tmp_path: Path) -> None:
    # The embedding goes with the first stage, norm and head (one entry) with the last.
    assert cut(tmp_path, "parallel.partition=[3, 2, 1]") == ([0, 4, 6, 8], [3, 2, 1])


def test_uniform_counts_layers(tmp_path: Path) -> None:
    assert cut(tmp_path, "parallel.partition=uniform") == ([0, 3, 5, 8], [2, 2, 2])


def test_time_counts_the_head(tmp_path: Path) -> None:
    """A vocabulary whose head takes as long as three layers gets a stage of its own."""
    assert cut(tmp_path, "model.config.vocab_size=880")[1] == [3, 3, 0]
    assert cut(tmp_path, "model.config.vocab_size=8", pipeline=3)[1] == [2, 2, 2]


def test_costs_are_those_of_the_architecture(tmp_path: Path) -> None:
    architecture = resolved(tmp_path).architecture
    assert isinstance(architecture, Architecture)
    embedding, *layers, head = layer_costs(architecture, 16)
    assert embedding == 0.0
    assert len(layers) == 6 and sum(layers) + head == architecture.flops_per_token(16)
    assert head == 6.0 * 118 * 32
