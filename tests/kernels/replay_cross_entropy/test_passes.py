"""The passes themselves: what they read and write, and what their results say of labels that do not exist."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from megacpt_kernels import replay_cross_entropy, replay_cross_entropy_
from megacpt_kernels.replay_cross_entropy import reference
from megacpt_kernels.replay_cross_entropy.objective import Objective, Passes
from megacpt_kernels.replay_cross_entropy.op import Kernel

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def passes(kernel: Kernel) -> Passes:
    if kernel == "reference":
        return reference
    module: Any = import_module("megacpt_kernels.replay_cross_entropy.kernel")
    passes: Passes = module
    return passes


def objective(width: int, **options: Any) -> Objective:
    numbers = {"z_loss": 0.0, "softcap": 0.0, "logit_scale": 1.0, "label_smoothing": 0.0} | options
    return Objective.of_slice(width, 1, vocab_start=0, vocab_size=None, ignore_index=-100, **numbers)


def test_no_number_for_a_label_that_does_not_exist(passes: Passes, device: str) -> None:
    """Nobody may look at labels on a GPU without waiting for it; the loss says it."""
    logits_TV, weights_T = torch.zeros(4, 10, device=device), torch.ones(4, device=device)
    labels_T = torch.tensor([3, 10, -1, -100], device=device)
    stats_TK = passes.scan(logits_TV, labels_T, weights_T, objective(10), write=False)
    rows = passes.combine(stats_TK[None], 0, labels_T, weights_T, objective(10), None)
    assert rows.nll.isnan().tolist() == [False, True, True, False]
    assert rows.loss.isnan().tolist() == [False, True, True, False]


class Traffic:
    """Counts the elements of bfloat16 tensors, here the logits alone, that interpreted kernels load and store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_loaded = self.num_stored = 0
        import triton.language as tl
        from triton.runtime.interpreter import InterpreterBuilder

        load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

        def counted_load(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
            if pointers.get_element_ty() == tl.bfloat16:
                self.num_loaded += int(mask.data.sum())
            return load(builder, pointers, mask, *rest)

        def counted_store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            if pointers.get_element_ty() == tl.bfloat16:
                self.num_stored += int(mask.data.sum())
            return store(builder, pointers, value, mask, *rest)

        monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted_load)
        monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted_store)

    def taken(self) -> tuple[int, int]:
        """Loaded and stored since last asked."""
        counts = self.num_loaded, self.num_stored
        self.num_loaded = self.num_stored = 0
        return counts


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("width", [40, 128, 200])
def test_one_read_and_one_write(width: int, is_interpreted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each logit is read once and written once; besides, each row reads and writes its label's logit alone."""
    if not is_interpreted:
        pytest.skip("counted by Triton's interpreter")
    from megacpt_kernels.replay_cross_entropy import kernel

    num_rows = 3
    logits_TV = torch.randn(num_rows, width, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels_T = torch.tensor([3, 7, 5])
    weights_T = torch.ones(num_rows)
    numbers = objective(width, z_loss=0.01)
    traffic = Traffic(monkeypatch)

    stats_TK = kernel.scan(logits_TV, labels_T, weights_T, numbers, write=False)
    assert traffic.taken() == (num_rows * (width + 1), 0)

    rows = kernel.combine(stats_TK[None], 0, labels_T, weights_T, numbers, None)
    assert traffic.taken() == (0, 0)

    kernel.differentiate(logits_TV, labels_T, weights_T, rows, numbers, torch.empty_like(logits_TV))
    assert traffic.taken() == (num_rows * width, num_rows * width)

    stats_TK = kernel.scan(logits_TV, labels_T, weights_T, numbers, write=True)
    assert traffic.taken() == (num_rows * (width + 1), num_rows * width)

    kernel.combine(stats_TK[None], 0, labels_T, weights_T, numbers, logits_TV)
    assert traffic.taken() == (0, num_rows)


@pytest.mark.usefixtures("small_tiles")
def test_passes_of_the_ops(is_interpreted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place: one read, one write. Under autograd: two reads, one write. Besides, the label's logit of each row."""
    if not is_interpreted:
        pytest.skip("counted by Triton's interpreter")
    num_rows, width = 3, 200
    logits_TV = torch.randn(num_rows, width, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    labels_T, weights_T = torch.tensor([3, 7, 5]), torch.ones(num_rows)
    traffic = Traffic(monkeypatch)
    replay_cross_entropy(logits_TV, labels_T, weights_T, kernel="triton").loss.backward()
    assert traffic.taken() == (num_rows * (2 * width + 1), num_rows * width)
    replay_cross_entropy_(logits_TV.detach(), labels_T, weights_T, kernel="triton")
    assert traffic.taken() == (num_rows * (width + 1), num_rows * (width + 1))


@pytest.mark.usefixtures("small_tiles")
def test_an_ignored_row_is_not_read(is_interpreted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_interpreted:
        pytest.skip("counted by Triton's interpreter")
    from megacpt_kernels.replay_cross_entropy import kernel

    logits_TV = torch.full((1, 100), torch.nan).bfloat16()
    ignored_T, weights_T = torch.tensor([-100]), torch.ones(1)
    traffic = Traffic(monkeypatch)
    kernel.scan(logits_TV, ignored_T, weights_T, objective(100), write=True)
    assert traffic.taken() == (0, 100)
    assert (logits_TV == 0).all()


def test_rows_are_taken_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference gives the same bits whether it takes one row at a time or all."""

    def results() -> list[Tensor]:
        logits_TV = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
        labels_T, weights_T = torch.arange(7), torch.ones(7)
        stats_TK = reference.scan(logits_TV, labels_T, weights_T, objective(50), write=True)
        return [stats_TK, logits_TV]

    at_once = results()
    monkeypatch.setattr(reference, "BLOCK_ELEMENTS", 60)
    assert all(torch.equal(one, other) for one, other in zip(at_once, results(), strict=True))
