"""What a model has learned by heart: probes for text that was put into the stream, or that should not come out of it.

Two measures. Verbatim recall: given the first tokens of a text, does the model write the rest? Exposure: how much
likelier is a planted canary than its siblings that were never planted? Exposure needs only losses, so it also sees what
the model would not yet write.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def recalled_tokens(continuation: Sequence[int], text: Sequence[int]) -> int:
    """How many tokens of `text` a greedy continuation repeats before it first departs from it.

    Carlini et al. 2022, "Quantifying Memorization Across Neural Language Models", arXiv:2202.07646, call a text
    memorised if all 50 of its next tokens are repeated.
    """
    for count, (written, wanted) in enumerate(zip(continuation, text, strict=False)):
        if written != wanted:
            return count
    return min(len(continuation), len(text))


def exposure(canary_loss: float, sibling_losses: Sequence[float]) -> float:
    """log2 of the number of candidates over the canary's rank among them by loss, in bits: log2(n) for the likeliest.

    Carlini et al. 2019, "The Secret Sharer", arXiv:1802.08232, definition 4. A model that never saw the canary gives 1
    bit in the median.

    Args:
        canary_loss: the nll of the canary.
        sibling_losses: of random texts of the same form that are in no training data.
    """
    rank = 1 + sum(loss < canary_loss for loss in sibling_losses)
    return math.log2((1 + len(sibling_losses)) / rank)
