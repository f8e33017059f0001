"""Which of several checkpoints can be trusted: all ranks compare the files with their manifests, each its share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.folder import damage
from megacpt.observe.log import logger


def first_intact(candidates: Sequence[Path], channel: Channel) -> tuple[Path | None, list[str]]:
    """The first checkpoint whose files are what was saved; says which damaged ones are passed over for it. Collective.

    Args:
        candidates: the best one first, the same on every rank.
        channel: to the other ranks.

    Returns:
        The checkpoint, None if there is no intact one, and what is wrong with those before it, a line each.
    """
    damaged: list[str] = []
    for candidate in candidates:
        shares = channel.gather(damage(candidate, share=(channel.rank, channel.size)))
        found = channel.broadcast([line for share in shares for line in share][:1])
        if not found:
            for line in damaged if channel.is_main else ():
                logger().warning("a damaged checkpoint is passed over for %s: %s", candidate.name, line)
            return candidate, damaged
        damaged += found
    return None, damaged
