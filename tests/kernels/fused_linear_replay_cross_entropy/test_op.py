from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, partialmethod
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from megacpt_kernels import LossOutput, fused_linear_replay_cross_entropy, replay_cross_entropy
from megacpt_kernels.replay_cross_entropy.op import Kernel
from tests.allocations import Allocations
from tests.kernels.oracle import OPTIONS, Options, assert_as_accurate, plain_loss
from tests.kernels.slices import ThreadExchange, on_ranks

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

IGNORED = -100
NUM_ROWS, WIDTH, VOCAB_SIZE = 23, 24, 150


class Batch(NamedTuple):
    """Leaves and targets of one call; every third row is ignored, and one has weight 0."""

    hidden_TD: Tensor
    head_VD: Tensor
    labels_T: Tensor
    weights_T: Tensor

    def leaves(self, dtype: torch.dtype) -> Batch:
        """The same with fresh leaves of another type."""
        hidden_TD = self.hidden_TD.detach().to(dtype).requires_grad_()
        return self._replace(hidden_TD=hidden_TD, head_VD=self.head_VD.detach().to(dtype).requires_grad_())

    def gradients(self) -> tuple[Tensor, Tensor]:
        assert self.hidden_TD.grad is not None and self.head_VD.grad is not None
        return self.hidden_TD.grad, self.head_VD.grad


@pytest.fixture
def batch(device: str) -> Batch:
    random = torch.Generator().manual_seed(0)
    hidden_TD = torch.randn(NUM_ROWS, WIDTH, generator=random)
    head_VD = torch.randn(VOCAB_SIZE, WIDTH, generator=random) / 2
    labels_T = torch.randint(VOCAB_SIZE, (NUM_ROWS,), generator=random)
    labels_T[1::3] = IGNORED
    weights_T = torch.rand(NUM_ROWS, generator=random) / NUM_ROWS
    weights_T[5] = 0
    return Batch(hidden_TD.to(device), head_VD.to(device), labels_T.to(device), weights_T.to(device))


def plain(batch: Batch, options: Options, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients by PyTorch's operations: products in `dtype`, the loss in single precision at least."""
    leaves = batch.leaves(dtype)
    logits_TV = F.linear(leaves.hidden_TD, leaves.head_VD)
    logits_TV = logits_TV.to(torch.promote_types(dtype, torch.float32))
    loss = plain_loss(logits_TV, leaves.labels_T, leaves.weights_T, options)
    loss.backward()
    return loss.detach(), *leaves.gradients()


def fused(batch: Batch, dtype: torch.dtype = torch.float32, **keywords: Any) -> tuple[LossOutput, Tensor, Tensor]:
    """The output of the op, and the gradients."""
    leaves = batch.leaves(dtype)
    output = fused_linear_replay_cross_entropy(*leaves, **{"chunk_tokens": 8, **keywords})
    output.loss.backward()
    return output, *leaves.gradients()


def rounded(batch: Batch, dtype: torch.dtype) -> Batch:
    """Inputs that `dtype` holds exactly, in double precision."""
    return batch._replace(hidden_TD=batch.hidden_TD.to(dtype).double(), head_VD=batch.head_VD.to(dtype).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_as_accurate_as_plain_products(batch: Batch, options: Options, dtype: torch.dtype, kernel: Kernel) -> None:
    """The head's gradient is granted one rounding more in low precision, that of weighted hidden states."""
    batch = rounded(batch, dtype)
    exact_loss, exact_hidden_TD, exact_head_VD = plain(batch, options, torch.float64)
    loss, hidden_TD, head_VD = plain(batch, options, dtype)
    output, grad_hidden_TD, grad_head_VD = fused(batch, dtype, kernel=kernel, **options)
    assert grad_hidden_TD.dtype == grad_head_VD.dtype == dtype
    assert_as_accurate(output.loss, loss, exact_loss)
    assert_as_accurate(grad_hidden_TD, hidden_TD, exact_hidden_TD)
    assert_as_accurate(grad_head_VD, head_VD, exact_head_VD)


def test_double_precision(batch: Batch) -> None:
    loss, hidden_TD, head_VD = plain(batch, OPTIONS["all"], torch.float64)
    output, grad_hidden_TD, grad_head_VD = fused(batch, torch.float64, kernel="reference", **OPTIONS["all"])
    torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(grad_hidden_TD, hidden_TD)
    torch.testing.assert_close(grad_head_VD, head_VD)


@pytest.mark.parametrize("chunk_tokens", [1, 5, 16, 100])
def test_chunks_do_not_matter(batch: Batch, chunk_tokens: int, kernel: Kernel) -> None:
    whole, hidden_TD, head_VD = fused(batch, kernel=kernel, chunk_tokens=NUM_ROWS)
    output, grad_hidden_TD, grad_head_VD = fused(batch, kernel=kernel, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(output.nll_T, whole.nll_T)
    torch.testing.assert_close(grad_hidden_TD, hidden_TD)
    torch.testing.assert_close(grad_head_VD, head_VD)


@pytest.mark.parametrize("compact", [False, True])
def test_ignored_rows_leave_no_trace(batch: Batch, compact: bool, kernel: Kernel) -> None:
    output, grad_hidden_TD, grad_head_VD = fused(batch, kernel=kernel, compact=compact)
    kept = batch.labels_T != IGNORED
    alone = batch._replace(
        hidden_TD=batch.hidden_TD[kept], labels_T=batch.labels_T[kept], weights_T=batch.weights_T[kept]
    )
    expected, hidden_TD, head_VD = fused(alone, kernel=kernel)
    torch.testing.assert_close(output.nll_T[kept], expected.nll_T)
    torch.testing.assert_close(grad_hidden_TD[kept], hidden_TD)
    torch.testing.assert_close(grad_head_VD, head_VD)
    assert (output.nll_T[~kept] == 0).all() and (grad_hidden_TD[~kept] == 0).all()


@pytest.mark.parametrize("compact", [False, True])
def test_all_ignored(batch: Batch, compact: bool, kernel: Kernel) -> None:
    nothing = batch._replace(labels_T=torch.full_like(batch.labels_T, IGNORED))
    output, grad_hidden_TD, grad_head_VD = fused(nothing, kernel=kernel, compact=compact)
    assert output.loss == 0
    assert (grad_hidden_TD == 0).all() and (grad_head_VD == 0).all()


def test_a_weight_of_zero_is_measured_but_not_learned(batch: Batch, kernel: Kernel) -> None:
    output, grad_hidden_TD, _ = fused(
        batch, kernel=kernel, domains_T=torch.arange(NUM_ROWS, device=batch.labels_T.device), num_domains=NUM_ROWS
    )
    expected = F.cross_entropy(batch.hidden_TD[5] @ batch.head_VD.T, batch.labels_T[5])
    torch.testing.assert_close(output.nll_T[5], expected)
    torch.testing.assert_close(output.domain_sums[5].cpu(), torch.tensor([0.0, float(expected), 1.0]))
    assert (grad_hidden_TD[5] == 0).all()


def test_padding_rows_of_the_head(batch: Batch, kernel: Kernel) -> None:
    padded = batch._replace(head_VD=torch.cat([batch.head_VD, torch.ones_like(batch.head_VD[:42])]))
    expected, hidden_TD, head_VD = fused(batch, kernel=kernel)
    output, grad_hidden_TD, grad_head_VD = fused(padded, kernel=kernel, vocab_size=VOCAB_SIZE)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(grad_hidden_TD, hidden_TD)
    torch.testing.assert_close(grad_head_VD[:VOCAB_SIZE], head_VD)
    assert (grad_head_VD[VOCAB_SIZE:] == 0).all()


def test_every_output_is_written(batch: Batch, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory that holds NaN shows what is left out."""
    expected, *gradients = fused(batch, kernel=kernel)

    def spoilt(make: Callable[..., Tensor], *arguments: Any, **keywords: Any) -> Tensor:
        tensor = make(*arguments, **keywords)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(Tensor, "new_empty", partialmethod(partial(spoilt, Tensor.new_empty)))
    monkeypatch.setattr(torch, "empty", partial(spoilt, torch.empty))
    monkeypatch.setattr(torch, "empty_like", partial(spoilt, torch.empty_like))
    output, *nan_gradients = fused(batch, kernel=kernel)
    assert torch.equal(output.nll_T, expected.nll_T)
    assert all(torch.equal(one, other) for one, other in zip(gradients, nan_gradients, strict=True))


def test_any_number_may_mean_no_label(batch: Batch, kernel: Kernel) -> None:
    expected, *gradients = fused(batch, kernel=kernel)
    labels_T = batch.labels_T.where(batch.labels_T != IGNORED, VOCAB_SIZE)
    output, *other_gradients = fused(batch._replace(labels_T=labels_T), kernel=kernel, ignore_index=VOCAB_SIZE)
    assert torch.equal(output.loss, expected.loss)
    assert all(torch.equal(one, other) for one, other in zip(gradients, other_gradients, strict=True))


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["all"]], ids=["plain", "all"])
def test_nothing_waits_for_the_device(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, which knows no autocast, tensors have no values: whoever asks for one raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    hidden_TD = torch.empty(NUM_ROWS, WIDTH, device="meta", requires_grad=True)
    head_VD = torch.empty(VOCAB_SIZE, WIDTH, device="meta", requires_grad=True)
    labels_T = torch.empty(NUM_ROWS, dtype=torch.int64, device="meta")
    weights_T = torch.empty(NUM_ROWS, device="meta")
    keywords: dict[str, Any] = {"domains_T": labels_T, "num_domains": 3, "kernel": "reference", **options}
    fused_linear_replay_cross_entropy(hidden_TD, head_VD, labels_T, weights_T, **keywords).loss.backward()
    replay_cross_entropy(hidden_TD @ head_VD.T, labels_T, weights_T, **keywords).loss.backward()
    with pytest.raises((RuntimeError, NotImplementedError)):
        labels_T.nonzero()


@pytest.mark.gpu
def test_no_kernel_waits_for_the_device(batch: Batch) -> None:
    leaves = batch.leaves(torch.bfloat16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fused_linear_replay_cross_entropy(*leaves, domains_T=batch.labels_T, num_domains=3).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_same_bits_every_time(batch: Batch, kernel: Kernel) -> None:
    (first, *first_gradients), (again, *gradients) = (fused(batch, kernel=kernel) for _ in range(2))
    assert torch.equal(first.loss, again.loss) and torch.equal(first.nll_T, again.nll_T)
    assert all(torch.equal(one, other) for one, other in zip(first_gradients, gradients, strict=True))


def test_weights_of_one_change_no_bit(batch: Batch, kernel: Kernel) -> None:
    weighted, *weighted_gradients = fused(batch._replace(weights_T=torch.ones_like(batch.weights_T)), kernel=kernel)
    unweighted, *gradients = fused(batch._replace(weights_T=None), kernel=kernel)  # type: ignore[arg-type]
    assert torch.equal(weighted.loss, unweighted.loss)
    assert all(torch.equal(one, other) for one, other in zip(weighted_gradients, gradients, strict=True))


def test_agrees_with_the_loss_of_given_logits(batch: Batch, kernel: Kernel) -> None:
    domains_T = torch.arange(NUM_ROWS, device=batch.labels_T.device) % 3
    keywords: dict[str, Any] = {"domains_T": domains_T, "num_domains": 3, "kernel": kernel}
    output, *_ = fused(batch, **keywords)
    expected = replay_cross_entropy(batch.hidden_TD @ batch.head_VD.T, batch.labels_T, batch.weights_T, **keywords)
    torch.testing.assert_close(output, expected)


def test_tied_embedding(batch: Batch, kernel: Kernel) -> None:
    """Where the head is the embedding, its gradient has both parts."""
    token_ids_T = batch.labels_T.clamp(min=0)

    def gradient(fuses: bool) -> Tensor:
        table_VD = batch.head_VD.clone().requires_grad_()
        hidden_TD = torch.tanh(F.embedding(token_ids_T, table_VD))
        if fuses:
            loss = fused_linear_replay_cross_entropy(
                hidden_TD, table_VD, batch.labels_T, batch.weights_T, kernel=kernel
            ).loss
        else:
            loss = plain_loss(hidden_TD @ table_VD.T, batch.labels_T, batch.weights_T, {})
        return torch.autograd.grad(loss, table_VD)[0]

    torch.testing.assert_close(gradient(True), gradient(False))


def test_loss_may_be_scaled_afterwards(batch: Batch, kernel: Kernel) -> None:
    _, hidden_TD, head_VD = fused(batch, kernel=kernel)
    leaves = batch.leaves(torch.float32)
    (fused_linear_replay_cross_entropy(*leaves, chunk_tokens=8, kernel=kernel).loss * 4).backward()
    for gradient, once in zip(leaves.gradients(), (hidden_TD, head_VD), strict=True):
        assert torch.equal(gradient, 4 * once)


class TestGivenGradientBuffer:
    def test_is_added_to_in_the_forward(self, batch: Batch, kernel: Kernel) -> None:
        _, hidden_TD, head_VD = fused(batch, kernel=kernel)
        leaves = batch.leaves(torch.float32)
        buffer_VD = torch.ones_like(batch.head_VD)
        output = fused_linear_replay_cross_entropy(*leaves, kernel=kernel, chunk_tokens=8, grad_head_VD=buffer_VD)
        torch.testing.assert_close(buffer_VD - 1, head_VD, atol=1e-6, rtol=1e-6)
        output.loss.backward()
        assert leaves.head_VD.grad is None
        assert leaves.hidden_TD.grad is not None and torch.equal(leaves.hidden_TD.grad, hidden_TD)

    def test_collects_low_precision_in_single(self, batch: Batch, kernel: Kernel) -> None:
        """Many small gradients add up where a bfloat16 sum would stand still."""
        batch = rounded(batch, torch.bfloat16)
        _, _, head_VD = fused(batch, torch.float32, kernel=kernel)
        leaves = batch.leaves(torch.bfloat16)
        buffer_VD = torch.zeros_like(head_VD)
        for _ in range(300):
            fused_linear_replay_cross_entropy(*leaves, kernel="reference", grad_head_VD=buffer_VD)
        assert float((buffer_VD - 300 * head_VD).norm() / (300 * head_VD).norm()) < 0.01

    def test_nothing_else_of_the_heads_size_is_made(self, batch: Batch, kernel: Kernel) -> None:
        leaves = batch.leaves(torch.float32)
        with Allocations(leaves.head_VD.shape) as allocations:
            fused_linear_replay_cross_entropy(
                *leaves, kernel=kernel, chunk_tokens=8, grad_head_VD=torch.zeros_like(batch.head_VD)
            ).loss.backward()
        assert allocations.names == ["aten::zeros_like"]

    def test_is_left_alone_without_gradients(self, batch: Batch, kernel: Kernel) -> None:
        buffer_VD = torch.zeros_like(batch.head_VD)
        with torch.no_grad():
            fused_linear_replay_cross_entropy(*batch.leaves(torch.float32), kernel=kernel, grad_head_VD=buffer_VD)
        assert (buffer_VD == 0).all()


class TestCost:
    """In units of one product of all counted rows with the head."""

    def products(self, batch: Batch, *, needs: str = "hidden head", **keywords: Any) -> float:
        leaves = batch.leaves(torch.float32)
        leaves.hidden_TD.requires_grad_("hidden" in needs)
        leaves.head_VD.requires_grad_("head" in needs)
        with FlopCounterMode(display=False) as counter:
            loss = fused_linear_replay_cross_entropy(*leaves, kernel="reference", **keywords).loss
            if loss.requires_grad:
                loss.backward()
        num_rows = int((batch.labels_T != IGNORED).sum())
        return counter.get_total_flops() / (2 * num_rows * WIDTH * VOCAB_SIZE)

    def test_three_products_and_nothing_for_ignored_rows(self, batch: Batch) -> None:
        assert self.products(batch, chunk_tokens=4, compact=True) == 3

    def test_ignored_rows_cost_where_they_stay(self, batch: Batch) -> None:
        kept = batch.labels_T != IGNORED
        assert self.products(batch, compact=False) == pytest.approx(3 * NUM_ROWS / int(kept.sum()))

    def test_only_wanted_gradients(self, batch: Batch) -> None:
        assert self.products(batch, needs="hidden", compact=True) == 2
        assert self.products(batch, needs="head", compact=True) == 2
        assert self.products(batch, needs="", compact=True) == 1

    def test_one_product_in_evaluation(self, batch: Batch) -> None:
        with torch.no_grad():
            assert self.products(batch, compact=True) == 1

    def test_evaluation_gives_the_same_losses(self, batch: Batch, kernel: Kernel) -> None:
        output, *_ = fused(batch, kernel=kernel)
        with torch.no_grad():
            evaluated = fused_linear_replay_cross_entropy(*batch.leaves(torch.float32), chunk_tokens=8, kernel=kernel)
        torch.testing.assert_close(evaluated, output)


class TestVocabularyParallel:
    @pytest.mark.parametrize("size", [2, 3])
    @pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["all"]], ids=["plain", "all"])
    def test_slices(self, batch: Batch, size: int, options: Options, kernel: Kernel) -> None:
        """The ranks' shares of hidden's gradient add up; the head's slices join; padding rows close the last slice."""
        expected_loss, expected_hidden_TD, expected_head_VD = plain(batch, options, torch.float64)
        plain_loss, plain_hidden_TD, plain_head_VD = plain(batch, options, torch.float32)
        padded_VD = torch.cat([batch.head_VD, torch.ones_like(batch.head_VD[:6])])
        slices = padded_VD.chunk(size)

        def body(exchange: ThreadExchange) -> tuple[LossOutput, Tensor, Tensor]:
            result = fused(
                batch._replace(head_VD=slices[exchange.rank]),
                vocab_start=exchange.rank * len(slices[0]),
                vocab_size=VOCAB_SIZE,
                exchange=exchange,
                kernel=kernel,
                **options,
            )
            num_kept = int((batch.labels_T != IGNORED).sum())
            assert exchange.num_gathers == -(-num_kept // 8) or batch.labels_T.is_cuda
            return result

        outputs, shares, head_slices = zip(*on_ranks(size, body), strict=True)
        for output in outputs:
            assert torch.equal(output.loss, outputs[0].loss)
        assert_as_accurate(outputs[0].loss, plain_loss, expected_loss)
        assert_as_accurate(sum(shares), plain_hidden_TD, expected_hidden_TD)
        head_VD = torch.cat(head_slices)
        assert_as_accurate(head_VD[:VOCAB_SIZE], plain_head_VD, expected_head_VD)
        assert (head_VD[VOCAB_SIZE:] == 0).all()

    def test_all_ignored(self, batch: Batch, kernel: Kernel) -> None:
        """All ranks see the same labels, so all agree on whether there is anything to gather."""
        nothing = batch._replace(labels_T=torch.full_like(batch.labels_T, IGNORED))
        slices = batch.head_VD.chunk(2)

        def body(exchange: ThreadExchange) -> float:
            part = nothing._replace(head_VD=slices[exchange.rank])
            output, *_ = fused(part, vocab_start=75 * exchange.rank, exchange=exchange, kernel=kernel)
            return float(output.loss.detach())

        assert on_ranks(2, body) == [0, 0]


def test_training_follows_plain_torch(batch: Batch) -> None:
    """Ten steps of AdamW on a tied model: losses and gradient norms to 1e-5."""
    token_ids_T, labels_T = batch.labels_T.clamp(min=0), batch.labels_T

    def run(fuses: bool) -> list[float]:
        table_VD = torch.nn.Parameter(batch.head_VD.clone())
        mixer_DD = torch.nn.Parameter(torch.eye(WIDTH, device=table_VD.device))
        optimizer = torch.optim.AdamW([table_VD, mixer_DD], lr=0.01)
        history = []
        for _ in range(10):
            hidden_TD = torch.tanh(F.embedding(token_ids_T, table_VD) @ mixer_DD)
            num_labels = (labels_T != IGNORED).sum()
            if fuses:
                weights_T = (1 / num_labels).expand(NUM_ROWS)
                loss = fused_linear_replay_cross_entropy(hidden_TD, table_VD, labels_T, weights_T).loss
            else:
                loss = F.cross_entropy(hidden_TD @ table_VD.T, labels_T)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_([table_VD, mixer_DD], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            history += [float(loss.detach()), float(norm)]
        return history

    assert run(True) == pytest.approx(run(False), rel=1e-5)


def test_autocast_does_not_reach_inside(batch: Batch) -> None:
    expected, hidden_TD, head_VD = fused(batch)
    with torch.autocast(batch.hidden_TD.device.type, torch.bfloat16):
        output, grad_hidden_TD, grad_head_VD = fused(batch)
    assert torch.equal(output.loss, expected.loss)
    assert torch.equal(grad_hidden_TD, hidden_TD) and torch.equal(grad_head_VD, head_VD)


class TestBadInput:
    def test_second_backward(self, batch: Batch) -> None:
        loss = fused_linear_replay_cross_entropy(*batch.leaves(torch.float32)).loss
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="an earlier backward has taken them"):
            loss.backward()

    def test_shapes_and_types(self, batch: Batch) -> None:
        with pytest.raises(ValueError, match="must be matrices of one width and type"):
            fused_linear_replay_cross_entropy(batch.hidden_TD[:, 1:], *batch[1:])
        with pytest.raises(ValueError, match=r"torch.bfloat16 and head_VD \[150, 24\] torch.float32"):
            fused_linear_replay_cross_entropy(batch.hidden_TD.bfloat16(), *batch[1:])
        with pytest.raises(ValueError, match="grad_head_VD must be float32"):
            fused_linear_replay_cross_entropy(*batch, grad_head_VD=batch.head_VD.bfloat16())
        with pytest.raises(ValueError, match="chunk_tokens must be at least 1, got 0"):
            fused_linear_replay_cross_entropy(*batch, chunk_tokens=0)
