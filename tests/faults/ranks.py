"""A rank as a process of its own, for those that will not come back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def start(
    rank: int,
    recipe: Path,
    port: int,
    *arguments: str,
    code: str = "",
    address: str = "127.0.0.1",
    interface: str = "lo",
    prefix: tuple[str, ...] = (),
) -> subprocess.Popen[str]:
    """Start one of two ranks of the training command.

    Args:
        rank: 0 or 1.
        recipe: its path.
        port: of the meeting, at `address`.
        arguments: more of the training command.
        code: Python to run before it.
        interface: the network that it may use.
        prefix: a command that starts it.
    """
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": interface,
    }
    program = f"{code}\nfrom megacpt.cli import main\nraise SystemExit(main({['--recipe', str(recipe), *arguments]!r}))"
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", program],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
