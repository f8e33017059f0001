"""Two "nodes", which are network namespaces, lose each other: their watchdogs end the run, which goes on later."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megacpt.checkpoint.folder import CheckpointFolder, damage
from megacpt.trainer.watchdog import HUNG
from tests.distributed import free_port
from tests.faults.ranks import start
from tests.parity.runs import evaluations_of, metrics_of, run_command, write_recipe

NODES = ("megacpt-a", "megacpt-b")
NUM_STEPS = 160
"""More than are done until the cut, however fast the machine."""


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
        ip(f"link add cable netns {NODES[0]} type veth peer name cable netns {NODES[1]}")
        for number, node in enumerate(NODES, start=1):
            ip(f"-n {node} address add 10.99.0.{number}/24 dev cable")
            ip(f"-n {node} link set lo up")
            ip(f"-n {node} link set cable up")
        yield
    finally:
        for node in NODES:
            ip(f"netns delete {node}")


def start_nodes(recipe: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """A rank of the training command on each node."""
    port = free_port()
    return [
        start(
            rank,
            recipe,
            port,
            *arguments,
            code=f"import socket; socket.sethostname({node!r})",
            address="10.99.0.1",
            interface="cable",
            prefix=("ip", "netns", "exec", node, "unshare", "--uts"),
        )
        for rank, node in enumerate(NODES)
    ]


@pytest.mark.slow
def test_a_cut_network_ends_the_run_which_goes_on_when_it_is_back(nodes: None, tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        parallel={"pipeline": 2},
        training={"tokens": NUM_STEPS * 8 * 16},
        evaluation={"every": None},
        checkpoint={"every": 2 * 8 * 16},
        guard={"hang_timeout_seconds": 15},
    )
    arguments = ["--set", "name=cut", "--resume", "auto"]
    ranks = start_nodes(recipe, *arguments)
    checkpoints = CheckpointFolder(tmp_path / "runs" / "cut" / "checkpoints")
    while not checkpoints.complete():
        assert all(rank.poll() is None for rank in ranks), ranks[0].communicate()
        time.sleep(0.02)
    ip(f"-n {NODES[0]} link set cable down")
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [HUNG, HUNG], said
    for text, other in zip(said, NODES[::-1], strict=True):
        (line,) = (line for line in text.splitlines() if "error: hung" in line)
        assert other in line
    assert [damage(path) for path in checkpoints.complete()] == [[]] * len(checkpoints.complete())

    ip(f"-n {NODES[0]} link set cable up")
    stop = ["--set", f"training.stop_at_step={len(metrics_of(recipe, 'cut')) + 2}"]
    ranks = start_nodes(recipe, *arguments, *stop)
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert run_command(2, recipe, *stop) == [0, 0]
    assert metrics_of(recipe, "cut") == metrics_of(recipe)
    assert evaluations_of(recipe, "cut") == evaluations_of(recipe)
