"""A model and its teacher side by side: each stage runs both on the same tokens, and hands both on.

Between stages travel (hidden [B, S, D], positions [B, S], the teacher's hidden states as bytes). A pipeline asks for
the gradient of every float tensor that it moves; bytes have none, so the teacher costs a forward and its share of the
traffic, and no backward. (NCCL has no integers of 16 bits.) In evaluation the teacher rests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from megacpt.model.stages import EmbeddingStage, HeadStage, NormStage, Stage, StageFactory


class TaughtStage(nn.Module):
    """A stage of the student and the same stage of the teacher.

    Args:
        kind: the stage's class.
        factory: of the student.
        teacher: of the teacher: the same architecture, other weights, a blueprint of its own.
        args: what the class takes besides a factory.
        recompute: keep only the student's input for the backward.
    """

    def __init__(
        self, kind: type[Stage], factory: StageFactory, teacher: StageFactory, *args: Any, recompute: bool = False
    ) -> None:
        super().__init__()
        self.student = kind(factory, *args)
        self.teacher = kind(teacher, *args).requires_grad_(False)
        self.teacher.is_teacher = True
        self.recompute = recompute
        self.dtype = factory.blueprint.dtype

    def train(self, mode: bool = True) -> TaughtStage:
        """As torch's, but that a teacher never drops out."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if isinstance(self.student, EmbeddingStage):
            hidden, positions = self.student(inputs)
            with torch.no_grad():
                taught = self.teacher(inputs)[0] if self.training else hidden.detach()
            return hidden, positions, self._as_bytes(taught)
        if isinstance(self.student, HeadStage):
            return taught_head(self, inputs)
        hidden, positions, raw = inputs
        if isinstance(self.student, NormStage):
            with torch.no_grad():
                taught = self.teacher((self._as_floats(raw), positions)) if self.training else raw
            return self.student((hidden, positions)), taught
        if self.training:
            with torch.no_grad():
                raw = self._as_bytes(self.teacher((self._as_floats(raw), positions))[0])
        if self.recompute and self.training:
            hidden, _ = checkpoint(self.student, (hidden, positions), use_reentrant=False)
        else:
            hidden, _ = self.student((hidden, positions))
        return hidden, positions, raw

    def head_weights(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The student's and the teacher's rows of the head; of a tied one, the embedding's."""
        return head_weight(self.student), head_weight(self.teacher)

    def _as_bytes(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.contiguous().view(torch.uint8)

    def _as_floats(self, raw: torch.Tensor) -> torch.Tensor:
        return raw.view(self.dtype)


def head_weight(stage: nn.Module) -> nn.Parameter:
    """The weight that the loss makes logits with, of the stage that has it."""
    assert isinstance(stage, (EmbeddingStage, HeadStage))
    return stage.embedding.weight if isinstance(stage, EmbeddingStage) else stage.head.weight


def taught_head(stage: TaughtStage, outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """(hidden, the teacher's hidden), each [B, S, D] -> (hidden, weight, the teacher's hidden, the teacher's weight);
    in evaluation without the teacher's."""
    hidden, taught = outputs
    weight, teacher_weight = stage.head_weights()
    return (hidden, weight, taught, teacher_weight) if stage.training else (hidden, weight)
