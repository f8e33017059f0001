"""A teacher that follows: its weights are the running average that the optimizer keeps of the model's.

After every update each rank puts its part of the averages together with those of the other data-parallel ranks, one
parameter at a time, and rounds them to the teacher's dtype. Done after every update, a resumed run has the teacher that
the uninterrupted one has. Under ZeRO-3 a teacher is split over the data axis as the averages are, and nothing is sent.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from megacpt.engine.master import MasterState
from megacpt.model.taught import TaughtStage
from megacpt.optim.adamw import AVERAGE
from megacpt.parallel.fragments import MASTER


class AverageTeacher:
    """The teacher's parameters in a module of `TaughtStage`s, and the averages that they are made from.

    Args:
        module: what the engine trains.
        master: finds the averages.
        data_group: the data-parallel ranks.
    """

    def __init__(self, module: nn.Module, master: MasterState, data_group: dist.ProcessGroup) -> None:
        self.master, self.data_group = master, data_group
        self.pairs = [
            pair
            for stage in module.modules()
            if isinstance(stage, TaughtStage)
            for pair in zip(stage.student.parameters(), stage.teacher.parameters(), strict=True)
        ]

    @torch.no_grad()
    def follow(self) -> None:
        """Make the teacher's weights the averages. Collective.

        Before the first update there are none, and the teacher is what it was made as. In a run that goes on from a
        checkpoint without averages they begin at the weights of that checkpoint, and until then those teach.
        """
        if not self.master.num_updates():
            return
        with self.master.weights_change():
            for student, teacher in self.pairs:
                if student.requires_grad:
                    self._copy_average(student, teacher)

    def _copy_average(self, student: nn.Parameter, teacher: nn.Parameter) -> None:
        place = self.master.place(student)
        values = {} if place is None else self.master.values(place)
        mine = values.get(AVERAGE, values.get(MASTER))
        if hasattr(teacher, "ds_tensor"):
            if mine is not None:
                teacher.ds_tensor[: len(mine)].copy_(mine)
            return
        average = torch.zeros(teacher.numel(), device=student.device)
        if place is not None and mine is not None:
            average[place.start : place.start + place.numel] = mine
        if place is None or place.is_sharded:
            dist.all_reduce(average, group=self.data_group)
        teacher.copy_(average.view_as(teacher))
