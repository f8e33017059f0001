"""Branches: runs with learning rates of their own that go on from a checkpoint of a common trunk."""

from __future__ import annotations

import json
from pathlib import Path

from tests.parity.runs import evaluations_of, metrics_of, run_command, write_recipe

WSD = "lr={schedule: wsd, peak: 2e-3, warmup: 20%, decay: 50%, min: 0}"


def test_an_anneal_off_a_trunk_is_the_run_that_had_it_from_the_start(tmp_path: Path) -> None:
    checkpoints = {"every": "25%", "keep_last": 9}
    trunk = write_recipe(tmp_path, lr={"schedule": "constant"}, checkpoint=checkpoints, forgetting={"old": 9.0})
    assert run_command(1, trunk) == [0]
    checkpoint = trunk.parent / "runs" / "small" / "checkpoints" / "step_000004"
    branch = ["--set", "name=branch", "--set", WSD]
    assert run_command(1, trunk, *branch, "--resume", str(checkpoint), "--accept", "lr") == [0]
    assert run_command(1, trunk, "--set", "name=whole", "--set", WSD) == [0]
    assert metrics_of(trunk, "branch") == metrics_of(trunk, "whole")
    assert evaluations_of(trunk, "branch") == evaluations_of(trunk, "whole"), "the base model's among them"
    assert len(metrics_of(trunk)) == 8, "the trunk stays as it was"
    assert metrics_of(trunk, "branch")[-1] != metrics_of(trunk)[-1]
    state = json.loads((trunk.parent / "runs" / "branch" / "checkpoints" / "step_000008" / "state.json").read_text())
    assert state["recipe"]["lr"]["schedule"] == "wsd"
