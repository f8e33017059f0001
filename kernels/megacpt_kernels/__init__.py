"""Losses for training language models, usable alone: PyTorch, and Triton where there is a GPU.

The package knows no process group and no trainer. Vocabulary-parallel callers hand in an `Exchange`.
"""

from megacpt_kernels.exchange import Exchange
from megacpt_kernels.fused_linear_replay_cross_entropy.divergence import Teacher
from megacpt_kernels.fused_linear_replay_cross_entropy.op import fused_linear_replay_cross_entropy
from megacpt_kernels.replay_cross_entropy.op import LossOutput, replay_cross_entropy, replay_cross_entropy_

__all__ = [
    "Exchange",
    "LossOutput",
    "Teacher",
    "fused_linear_replay_cross_entropy",
    "replay_cross_entropy",
    "replay_cross_entropy_",
]
