"""What was learned by heart."""

from __future__ import annotations

from megacpt.continual.recall import exposure, recalled_tokens


def test_recall_ends_at_the_first_departure() -> None:
    assert recalled_tokens([5, 6, 9, 8], [5, 6, 7, 8]) == 2
    assert recalled_tokens([5, 6], [5, 6, 7]) == 2
    assert recalled_tokens([4], [5]) == 0


def test_exposure_is_in_bits_of_rank() -> None:
    siblings = [2.0, 3.0, 4.0]
    assert [exposure(loss, siblings) for loss in (1.0, 2.5, 5.0)] == [2.0, 1.0, 0.0]
