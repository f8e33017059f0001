"""Two "nodes", which are network namespaces, lose each other: the run ends by its watchdog and goes on later."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megacpt.trainer.watchdog import HUNG
from tests.distributed import free_port
from tests.faults.ranks import start
from tests.parity.runs import metrics_of, run_command, write_recipe

NODES = ("megacpt-a", "megacpt-b")


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


@pytest.fixture
def nodes() -> Iterator[None]:
    """Two namespaces with a cable between them."""
    try:
        for node in NODES:
            ip(f"netns add {node}")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no network namespaces: they need root and iproute2")
    try:
        ip(f"link add cable-a netns {NODES[0]} type veth peer name cable-b netns {NODES[1]}")
        for number, (node, end) in enumerate(zip(NODES, ("cable-a", "cable-b"), strict=True), start=1):
            ip(f"-n {node} address add 10.99.0.{number}/24 dev {end}")
            ip(f"-n {node} link set lo up")
            ip(f"-n {node} link set {end} up")
        yield
    finally:
        for node in NODES:
            ip(f"netns delete {node}")


@pytest.mark.slow
def test_a_cut_network_ends_the_run_which_goes_on_when_it_is_back(nodes: None, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, parallel={"pipeline": 2}, training={"tokens": 32 * 8 * 16}, guard={"hang_timeout_seconds": 5}
    )
    arguments = ["--set", "name=cut", "--resume", "auto"]

    def start_both() -> list[subprocess.Popen[str]]:
        port = free_port()
        return [
            start(
                rank,
                recipe,
                port,
                *arguments,
                address="10.99.0.1",
                interface=f"cable-{'ab'[rank]}",
                prefix=("ip", "netns", "exec", NODES[rank]),
            )
            for rank in range(2)
        ]

    ranks = start_both()
    metrics = tmp_path / "runs" / "cut" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 8:
        assert ranks[0].poll() is None, ranks[0].communicate()
        time.sleep(0.02)
    ip(f"-n {NODES[0]} link set cable-a down")
    outcomes = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert HUNG in [rank.returncode for rank in ranks], outcomes
    assert "hung: nothing new for" in "".join(outcomes)
    ip(f"-n {NODES[0]} link set cable-a up")
    ip(f"-n {NODES[0]} address replace 10.99.0.1/24 dev cable-a")
    ranks = start_both()
    outcomes = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outcomes
    assert run_command(2, recipe) == [0, 0]
    assert metrics_of(recipe, "cut") == metrics_of(recipe)
