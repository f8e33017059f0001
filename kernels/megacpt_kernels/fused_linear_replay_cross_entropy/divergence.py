"""The divergence of a student's predictions from a teacher's, and its gradient, beside the cross-entropy of a chunk.

Both logits of a chunk exist at the same time, none of any other. The ranks that share the vocabulary exchange five
numbers a token. Plain PyTorch: a few elementwise passes over each chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from megacpt_kernels.replay_cross_entropy.objective import Objective
from megacpt_kernels.replay_cross_entropy.reference import scaled_logits

CPU_BLOCK_ELEMENTS = 1 << 20
"""Logits taken at a time, so that the temporaries stay in the cache."""
BLOCK_ELEMENTS = 1 << 26
"""On a GPU, so that a temporary takes no more than 256 MiB."""


class Teacher(NamedTuple):
    """What the student shall not move away from: another model's predictions for the same tokens.

    With the teacher's distribution q and the student's p, both of logits over `temperature`, a row adds

        weight * temperature^2 * KL(q || p),    KL(q || p) = sum_j q_j (log q_j - log p_j)

    to the loss (Hinton et al. 2015, arXiv:1503.02531; the square keeps gradients of one size). The teacher is as given:
    it gets no gradient.
    """

    hidden_TD: Tensor
    """The teacher's last hidden states, of any width."""
    head_VD: Tensor
    """This rank's rows of the teacher's head: the same slice of the same vocabulary as the student's."""
    weights_T: Tensor
    """Factor of each row's divergence; a row whose label is ignored must have 0."""
    temperature: float = 1.0


class Predictions(NamedTuple):
    """What is known of each row once the ranks have met; all [T, 1] but the first."""

    divergence_T: Tensor
    """KL(q || p)."""
    student_lse: Tensor
    teacher_lse: Tensor
    """Of logits over temperature."""


def statistics(student_TV: Tensor, teacher_TV: Tensor, objective: Objective, temperature: float) -> Tensor:
    """This rank's share, [T, 5]: of student and teacher each the largest logit and the sum of exponentials against it,
    and the sum over columns of the teacher's exponentials times the difference of the logits."""
    columns = objective.num_columns
    stats_T5 = student_TV.new_zeros(len(student_TV), 5, dtype=torch.promote_types(student_TV.dtype, torch.float32))
    if not columns:
        stats_T5[:, 0] = stats_T5[:, 2] = torch.finfo(stats_T5.dtype).min
        return stats_T5
    for rows in _blocks(student_TV):
        student = scaled_logits(student_TV[rows, :columns], objective)[0].div_(temperature)
        teacher = scaled_logits(teacher_TV[rows, :columns], objective)[0].div_(temperature)
        difference = teacher - student
        stats_T5[rows, 0], stats_T5[rows, 2] = student.amax(1), teacher.amax(1)
        stats_T5[rows, 1] = student.sub_(stats_T5[rows, 0:1]).exp_().sum(1)
        exponentials = teacher.sub_(stats_T5[rows, 2:3]).exp_()
        stats_T5[rows, 3] = exponentials.sum(1)
        stats_T5[rows, 4] = exponentials.mul_(difference).sum(1)
    return stats_T5


def combine(stats_RT5: Tensor) -> Predictions:
    """Join the shares of all ranks."""
    student_anchor, teacher_anchor = stats_RT5[..., 0].amax(0), stats_RT5[..., 2].amax(0)
    student_sum = (stats_RT5[..., 1] * (stats_RT5[..., 0] - student_anchor).exp()).sum(0)
    shift_RT = (stats_RT5[..., 2] - teacher_anchor).exp()
    teacher_sum = (stats_RT5[..., 3] * shift_RT).sum(0)
    mean_difference = (stats_RT5[..., 4] * shift_RT).sum(0) / teacher_sum
    student_lse, teacher_lse = student_anchor + student_sum.log(), teacher_anchor + teacher_sum.log()
    divergence = mean_difference + (student_lse - teacher_lse)
    return Predictions(divergence, student_lse[:, None], teacher_lse[:, None])


def differentiate(
    student_TV: Tensor,
    teacher_TV: Tensor,
    factors_T: Tensor,
    rows: Predictions,
    objective: Objective,
    temperature: float,
) -> None:
    """Overwrite `teacher_TV` by factor * d(temperature^2 * divergence) / d(student's raw logits)."""
    columns = objective.num_columns
    teacher_TV[:, columns:] = 0
    factors_T1 = (factors_T * temperature * objective.logit_scale)[:, None]
    for block in _blocks(student_TV) if columns else ():
        student, slope = scaled_logits(student_TV[block, :columns], objective)
        teacher = scaled_logits(teacher_TV[block, :columns], objective)[0]
        gradient = student.div_(temperature).sub_(rows.student_lse[block]).exp_()
        gradient -= teacher.div_(temperature).sub_(rows.teacher_lse[block]).exp_()
        gradient *= factors_T1[block]
        if slope is not None:
            gradient *= slope
        teacher_TV[block, :columns] = gradient


def _blocks(logits_TV: Tensor) -> Iterator[slice]:
    elements = CPU_BLOCK_ELEMENTS if logits_TV.device.type == "cpu" else BLOCK_ELEMENTS
    step = max(1, elements // logits_TV.shape[1])
    return (slice(start, start + step) for start in range(0, len(logits_TV), step))
