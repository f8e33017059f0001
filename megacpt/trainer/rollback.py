"""Going back to a checkpoint within a run, and leaving out the samples that led astray.

The jump becomes part of the data's history, which every later checkpoint stores: a resume, under whatever layout,
reads the same samples. A run that dies between a rollback and its next checkpoint starts from the checkpoint before,
meets the same bad steps, and rolls back in the same way: going back is resuming, with the same data and controllers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.folder import CheckpointFolder, read_state, step_of
from megacpt.checkpoint.intact import first_intact
from megacpt.data.history import History, Jump
from megacpt.data.loader import Loader
from megacpt.data.stream import Stream
from megacpt.errors import TrainingError
from megacpt.observe.events import Events
from megacpt.observe.log import logger
from megacpt.trainer.guard import Guard, Rollback


class Rollbacks:
    """Does what a guard asks for. Collective.

    Args:
        restore: puts a checkpoint's weights and optimizer state into the engine.
        folder: the run's checkpoints.
        channel: to the other ranks.
        continued: a checkpoint and its state -> the data of a run that goes on from there.
        bounded: the rows of a run, and the step where it goes on -> its last step, and the rows where domains leave
            that are exhausted: what is left out is as good as read, and brings both nearer.
        loader: gets that data, with the jumps.
        guard: gets its standing at the checkpoint.
        events: where rollbacks are noted.
        finish_saving: waits for a checkpoint that is being written.
        rewind: told the step, once all this is as it was there.
    """

    def __init__(
        self,
        restore: Callable[[Path], None],
        folder: CheckpointFolder,
        channel: Channel,
        continued: Callable[[Path, Mapping[str, Any]], History],
        bounded: Callable[[Stream, int], tuple[int, Stream]],
        loader: Loader,
        guard: Guard,
        events: Events,
        finish_saving: Callable[[], None],
        rewind: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.restore, self.folder, self.channel = restore, folder, channel
        self.continued, self.bounded, self.loader, self.rewind = continued, bounded, loader, rewind
        self.guard, self.events, self.finish_saving = guard, events, finish_saving

    def __call__(self, wanted: Rollback) -> tuple[int, int]:
        """Go back to the newest intact checkpoint from before the first bad step.

        Returns:
            The number of steps done there, and the last step of the run.

        Raises:
            TrainingError: there is none.
        """
        self.finish_saving()
        older = [path for path in self.folder.complete()[::-1] if step_of(path) < wanted.before_step]
        checkpoint, damaged = first_intact(self.channel.broadcast(older), self.channel)
        if checkpoint is None:
            raise TrainingError(
                "there is no checkpoint to roll back to",
                where=str(self.folder.folder),
                found="; ".join(damaged) or None,
                expected=f"an intact one of an earlier step than {wanted.before_step}",
                hint="Raise checkpoint.keep_last, or save more often.",
            )
        state = read_state(checkpoint)
        step = state["step"]
        history = self.loader.stream.history
        jump_at_step = max(wanted.jump_from_step - 1, step)
        num_samples = history.first_sample(wanted.jump_to_step) - history.first_sample(jump_at_step)
        self.restore(checkpoint)
        self.guard.restore(state["guard"])
        restored = self.continued(checkpoint, state)
        earlier = Counter(history.jumps) - Counter(restored.jumps)  # the checkpoint cannot know of them
        reason = f"bad steps {wanted.before_step} to {wanted.jump_to_step}"
        for jump in (*earlier.elements(), Jump(jump_at_step, num_samples, reason)):
            restored = restored.jump(jump.at_step, jump.num_samples, jump.reason)
        last_step, rows = self.bounded(self.loader.stream.with_history(restored), step)
        self.loader.change(rows.history, step)
        self.rewind(step)
        logger().info(
            "rolled back from step %d to %s, leaving out %d samples before step %d",
            wanted.jump_to_step,
            checkpoint,
            num_samples,
            jump_at_step + 1,
        )
        self.events.write(
            "rollback",
            from_step=wanted.jump_to_step,
            to_step=step,
            jump_at_step=jump_at_step + 1,
            num_samples=num_samples,
        )
        return step, last_step
