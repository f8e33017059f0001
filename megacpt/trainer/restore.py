"""Putting an engine into the state of a checkpoint, whichever layout wrote it, and proving that it is in it."""

from __future__ import annotations

import time
from pathlib import Path

from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.state import StoredState
from megacpt.engine.engine import Engine
from megacpt.observe.log import logger

LINE_EVERY_SECONDS = 10.0


def restore(engine: Engine, checkpoint: Path, channel: Channel) -> None:
    """Load a checkpoint and compare the digest of every tensor with the one it was saved with. Collective.

    Args:
        engine: of any layout.
        checkpoint: a complete one, verified.
        channel: to the other ranks; no save may be under way.

    Raises:
        CheckpointError: the checkpoint is of another model, or what was loaded is not what was saved.
    """
    total_bytes = sum(tensor.nbytes for held in engine.held() for tensor in held.values.values())
    begun = last_line = time.monotonic()
    done_bytes = 0

    def progress(num_bytes: int) -> None:
        nonlocal done_bytes, last_line
        done_bytes += num_bytes
        if time.monotonic() - last_line > LINE_EVERY_SECONDS:
            last_line = time.monotonic()
            share = done_bytes / (total_bytes * len(source.kinds))
            logger().info("reading %s: %.0f %% after %.0f s", checkpoint, 100 * share, last_line - begun)

    source = StoredState(checkpoint, progress)
    engine.load(source)
    source.check(engine.held(), channel)
    logger().info("continuing %s, read and verified in %.1f s", checkpoint, time.monotonic() - begun)
