"""Going back to a checkpoint within a run, and leaving out the samples that led astray.

The jump becomes part of the data's history, which every later checkpoint stores: a resume, under whatever layout,
reads the same samples. A run that dies between a rollback and its next checkpoint starts from the checkpoint before,
meets the same bad steps, and rolls back in the same way, since all of it follows from what checkpoints hold.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megacpt.checkpoint.folder import CheckpointFolder, read_state
from megacpt.data.history import History
from megacpt.data.loader import Loader
from megacpt.errors import TrainingError
from megacpt.observe.events import Events
from megacpt.observe.log import logger
from megacpt.trainer.guard import Guard, Rollback


class Rollbacks:
    """Does what a guard asks for. Collective.

    Args:
        restore: puts a checkpoint's weights and optimizer state into the engine.
        folder: the run's checkpoints.
        loader: gets the checkpoint's data history, with the jump.
        guard: gets its standing at the checkpoint.
        events: where rollbacks are noted.
        finish_saving: waits for a checkpoint that is being written.
    """

    def __init__(
        self,
        restore: Callable[[Path], None],
        folder: CheckpointFolder,
        loader: Loader,
        guard: Guard,
        events: Events,
        finish_saving: Callable[[], None],
    ) -> None:
        self.restore, self.folder, self.loader = restore, folder, loader
        self.guard, self.events, self.finish_saving = guard, events, finish_saving

    def __call__(self, wanted: Rollback) -> int:
        """Go back; returns the number of steps done there.

        Raises:
            TrainingError: no checkpoint is older than the first bad step.
        """
        self.finish_saving()
        states = [(path, read_state(path)) for path in self.folder.complete()]
        good = [(path, state) for path, state in states if state["step"] < wanted.before_step]
        if not good:
            raise TrainingError(
                "there is no checkpoint to roll back to",
                where=str(self.folder.folder),
                expected=f"one of an earlier step than {wanted.before_step}",
                hint="Raise checkpoint.keep_last, or save more often.",
            )
        checkpoint, state = good[-1]
        step = state["step"]
        history = self.loader.stream.history
        jump_at_step = max(wanted.jump_from_step - 1, step)
        num_samples = history.first_sample(wanted.jump_to_step) - history.first_sample(jump_at_step)
        self.restore(checkpoint)
        self.guard.restore(state["guard"])
        reason = f"bad steps {wanted.before_step} to {wanted.jump_to_step}"
        restored = History.from_json(state["data"])
        for jump in history.jumps:  # those of earlier rollbacks, which the checkpoint cannot know
            if jump not in restored.jumps:
                restored = restored.jump(jump.at_step, jump.num_samples, jump.reason)
        self.loader.change(restored.jump(jump_at_step, num_samples, reason), step)
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
        return step
