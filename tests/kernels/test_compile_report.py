"""What the kernels are on GPUs that are not here: the compiler says it, in a process that does not interpret them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

ARCHITECTURES = (80, 90, 100)


@pytest.fixture(scope="module")
def report() -> list[dict[str, Any]]:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "megacpt_kernels.compile_report", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    results: list[dict[str, Any]] = json.loads(output)
    return results


def test_every_kernel_compiles_for_every_architecture(report: list[dict[str, Any]]) -> None:
    compiled = {(result["variant"]["kernel"], result["architecture"]) for result in report}
    assert compiled == {(name, number) for name in ("scan", "combine", "differentiate") for number in ARCHITECTURES}


def test_nothing_spills(report: list[dict[str, Any]]) -> None:
    assert [result for result in report if result["local_bytes"]] == []


def test_logits_move_sixteen_bytes_at_a_time(report: list[dict[str, Any]]) -> None:
    """Whatever the number of columns: only a row's last tile is masked."""
    over_logits = [result for result in report if result["variant"]["kernel"] != "combine"]
    assert {result["widest_load_bytes"] for result in over_logits} == {16}
    writing = [
        result
        for result in over_logits
        if result["variant"]["kernel"] == "differentiate" or "WRITES" in result["variant"]["flags"]
    ]
    assert {result["widest_store_bytes"] for result in writing} == {16}
    assert {result["variant"]["is_aligned"] for result in writing} == {True, False}


def test_enough_warps_fit(report: list[dict[str, Any]]) -> None:
    """24 warps have 24 KB under way on a multiprocessor; 3 TB/s over 132 of them at 700 ns ask for 16."""
    from megacpt_kernels.compile_report import Compiled, Variant

    for result in report:
        compiled = Compiled(**result | {"variant": Variant(**result["variant"])})
        assert compiled.resident_warps >= 24, compiled
