"""What all ranks must have in common before they start: versions, recipe, data, time.

A node with another library, another copy of the recipe, or a stale copy of the shards trains without an error, and
wrongly. Comparing costs one gather of a few hundred bytes.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping
from importlib import metadata

import torch.distributed as dist

from megacpt.errors import LaunchError

PACKAGES = ("megacpt", "torch", "deepspeed", "transformers", "triton", "numpy", "safetensors", "tokenizers")
MAX_CLOCK_SKEW_SECONDS = 5.0
"""Beyond this, times in the logs of two nodes cannot be compared."""


def versions() -> dict[str, str]:
    """Python and the packages whose versions decide what is computed; "none" for what is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def digest(values: object) -> str:
    """A short name for JSON values: equal for equal ones."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def compare_ranks(facts: Mapping[str, str], world_size: int) -> float:
    """Refuse ranks that differ in a fact. Collective.

    Args:
        facts: name -> value, the same names on every rank.
        world_size: ranks; 1 has nothing to compare.

    Returns:
        How far the ranks' clocks are apart, in seconds.

    Raises:
        LaunchError: on every rank, naming the first difference and who differs from most others.
    """
    if world_size == 1:
        return 0.0
    group = dist.new_group(backend="gloo")
    dist.barrier(group)  # so that all look at their clocks at the same time
    everyone: list[tuple[dict[str, str], float]] = [({}, 0.0)] * world_size
    dist.all_gather_object(everyone, (dict(facts), time.time()), group=group)
    dist.destroy_process_group(group)
    for name in facts:
        values = [theirs[name] for theirs, _ in everyone]
        usual = max(values, key=values.count)
        odd = [rank for rank, value in enumerate(values) if value != usual]
        if odd:
            ranks = ", ".join(map(str, odd[:8])) + (", ..." if len(odd) > 8 else "")
            raise LaunchError(
                f"the ranks do not agree about {name}",
                where=f"rank {ranks}" if len(odd) == 1 else f"ranks {ranks}",
                found=values[odd[0]],
                expected=f"{usual}, as on the other ranks",
                hint="All nodes must see the same environment, recipe and shards.",
            )
    clocks = [clock for _, clock in everyone]
    return max(clocks) - min(clocks)
