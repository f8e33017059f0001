from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from megacpt_kernels import LossOutput, replay_cross_entropy, replay_cross_entropy_
from megacpt_kernels.replay_cross_entropy.op import Kernel
from tests.kernels.conftest import TILE_COLUMNS
from tests.kernels.oracle import OPTIONS, Expected, Options
from tests.kernels.slices import ThreadExchange, on_ranks

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

Op = Callable[..., tuple[LossOutput, Tensor]]

IGNORED = -100
EXTREME = 80.0


def batch(num_rows: int, vocab_size: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels (some ignored) and weights (one of them 0)."""
    random = torch.Generator().manual_seed(seed)
    logits_TV = 3 * torch.randn(num_rows, vocab_size, generator=random)
    labels_T = torch.randint(vocab_size, (num_rows,), generator=random)
    labels_T[1::4] = IGNORED
    weights_T = torch.rand(num_rows, generator=random) + 0.1
    weights_T[2::5] = 0
    return logits_TV.to(device), labels_T.to(device), weights_T.to(device)


def strict(logits_TV: Tensor, labels_T: Tensor, weights_T: Tensor | None, **keywords: Any) -> tuple[LossOutput, Tensor]:
    """The output and the gradient of the logits, by the differentiable op."""
    leaf_TV = logits_TV.detach().clone().requires_grad_()
    output = replay_cross_entropy(leaf_TV, labels_T, weights_T, **keywords)
    output.loss.backward()
    assert leaf_TV.grad is not None
    return output, leaf_TV.grad


def factored(
    logits_TV: Tensor, labels_T: Tensor, weights_T: Tensor | None, **keywords: Any
) -> tuple[LossOutput, Tensor]:
    """The same by the op in place, its two factors multiplied."""
    written_TV = logits_TV.detach().clone()
    output, scale_T = replay_cross_entropy_(written_TV, labels_T, weights_T, **keywords)
    return output, (written_TV.to(scale_T.dtype) * scale_T[:, None]).to(logits_TV.dtype)


def both(options: Options) -> list[Op]:
    """The ops that know these options."""
    return [strict] if "label_smoothing" in options else [strict, factored]


def check(
    logits_TV: Tensor, labels_T: Tensor, weights_T: Tensor, options: Options, kernel: Kernel, slack: float = 2.0
) -> None:
    """Loss and gradient by both ops."""
    expected = Expected.of(logits_TV, labels_T, weights_T, options)
    for op in both(options):
        output, gradient_TV = op(logits_TV, labels_T, weights_T, kernel=kernel, **options)
        assert gradient_TV.dtype == logits_TV.dtype
        expected.check(output.loss, gradient_TV, slack=slack)
        assert (gradient_TV[(labels_T == IGNORED) | (weights_T == 0)] == 0).all()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_matches_double_precision(options: Options, kernel: Kernel, device: str) -> None:
    check(*batch(9, 3 * TILE_COLUMNS + 8, device), options, kernel)


@pytest.mark.parametrize("vocab_size", [1, 2, TILE_COLUMNS - 1, TILE_COLUMNS, TILE_COLUMNS + 1, 2 * TILE_COLUMNS])
@pytest.mark.parametrize("num_rows", [1, 5])
def test_any_shape(num_rows: int, vocab_size: int, kernel: Kernel, device: str) -> None:
    check(*batch(num_rows, vocab_size, device), {"z_loss": 0.01}, kernel)


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["all"]], ids=["plain", "all"])
def test_bfloat16(options: Options, kernel: Kernel, device: str, is_interpreted: bool) -> None:
    logits_TV, labels_T, weights_T = batch(9, 3 * TILE_COLUMNS + 8, device)
    slack = 4.0 if is_interpreted else 2.0
    check(logits_TV.bfloat16(), labels_T, weights_T, options, kernel, slack)


def test_float16(kernel: Kernel, device: str) -> None:
    logits_TV, labels_T, weights_T = batch(9, 3 * TILE_COLUMNS + 8, device)
    expected = Expected.of(logits_TV.half(), labels_T, weights_T, {})
    output, gradient_TV = strict(logits_TV.half(), labels_T, weights_T, kernel=kernel)
    expected.check(output.loss, gradient_TV)


def adversarial_rows() -> dict[str, Tensor]:
    """Rows of several tiles that a shortcut would get wrong."""
    columns = torch.arange(5 * TILE_COLUMNS + 3)
    tile = columns // TILE_COLUMNS
    noise = torch.randn(len(columns), generator=torch.Generator().manual_seed(1))
    return {
        "one huge": torch.where(columns == 150, 1e4, noise),
        "all equal": torch.full_like(noise, -7.0),
        "some -inf": noise.masked_fill(columns % 3 == 1, -torch.inf),
        "first tile -inf": noise.masked_fill(tile == 0, -torch.inf),
        "first tile at the smallest float": noise.masked_fill(tile == 0, torch.finfo(torch.float32).min),
        "all far below zero": noise - 500,
        "extremes in turn": EXTREME * (1 - 2.0 * (columns % 2)),
        "first tile far below": torch.where(tile == 0, -EXTREME, EXTREME) + noise,
        "first tile far above": torch.where(tile == 0, EXTREME, -EXTREME) + noise,
        "last tile far above": torch.where(tile == 5, EXTREME, -EXTREME) + noise,
        "each tile far above the one before": 30.0 * tile + noise,
        "each tile above the one before": 20.0 * tile + noise,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("row", adversarial_rows().values(), ids=adversarial_rows())
def test_adversarial_rows(row: Tensor, dtype: torch.dtype, kernel: Kernel, device: str, is_interpreted: bool) -> None:
    logits_TV = row[None].to(device, dtype).expand(2, -1).contiguous()
    labels_T = torch.stack([row.argmax(), row.masked_fill(row < -1e6, torch.inf).argmin()]).to(device)
    weights_T = torch.tensor([0.5, 2.0], device=device)
    slack = 4.0 if is_interpreted and dtype == torch.bfloat16 else 2.0
    for name in ("plain", "all_but_smoothed", "all" if row.min() > -1e6 else "z_loss"):
        check(logits_TV, labels_T, weights_T, OPTIONS[name], kernel, slack)


@pytest.mark.parametrize("num_ignored", [0, 4])
def test_nothing_to_learn_from(num_ignored: int, kernel: Kernel, device: str) -> None:
    logits_TV = torch.full((4, 100), -torch.inf, device=device)
    labels_T = torch.full((4,), 5, device=device)
    labels_T[:num_ignored] = IGNORED
    weights_T = torch.zeros(4, device=device)
    for op in (strict, factored):
        output, gradient_TV = op(logits_TV, labels_T, weights_T, kernel=kernel)
        assert output.loss == 0
        assert (gradient_TV == 0).all()
        assert (output.nll_T[:num_ignored] == 0).all()


def test_a_broken_row_without_weight_does_no_harm(kernel: Kernel, device: str) -> None:
    logits_TV, labels_T, _ = batch(3, 100, device)
    labels_T[:] = 7
    broken_TV = logits_TV.clone()
    broken_TV[1, 50] = torch.inf
    weights_T = torch.tensor([1.0, 0.0, 1.0], device=device)
    for op in (strict, factored):
        output, gradient_TV = op(broken_TV, labels_T, weights_T, kernel=kernel)
        expected, expected_TV = op(logits_TV, labels_T, weights_T, kernel=kernel)
        assert torch.equal(output.loss, expected.loss)
        assert torch.equal(gradient_TV, expected_TV)


def test_no_rows(kernel: Kernel, device: str) -> None:
    logits_TV = torch.empty(0, 100, device=device, requires_grad=True)
    labels_T = torch.empty(0, dtype=torch.int64, device=device)
    output = replay_cross_entropy(logits_TV, labels_T, None, domains_T=labels_T, num_domains=2, kernel=kernel)
    output.loss.backward()
    assert output.loss == 0 and output.domain_sums.tolist() == [[0, 0, 0]] * 2


def test_every_output_is_written(kernel: Kernel, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory that holds NaN shows what a kernel leaves out."""
    logits_TV, labels_T, weights_T = batch(6, 150, device)
    labels_T = labels_T.clamp(max=139)
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: torch.full(size, torch.nan, **kind))
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **kind: empty_like(tensor, **kind).fill_(torch.nan))
    for op in (strict, factored):
        output, gradient_TV = op(logits_TV, labels_T, weights_T, vocab_size=140, kernel=kernel)
        for written in (output.loss, output.nll_T, gradient_TV):
            assert written.isfinite().all()


@pytest.mark.parametrize("op", [strict, factored])
def test_same_bits_every_time(op: Op, kernel: Kernel, device: str) -> None:
    logits_TV, labels_T, weights_T = batch(6, 200, device)
    (first, first_TV), (again, again_TV) = (op(logits_TV, labels_T, weights_T, kernel=kernel) for _ in range(2))
    assert torch.equal(first.loss, again.loss) and torch.equal(first.nll_T, again.nll_T)
    assert torch.equal(first_TV, again_TV)


@pytest.mark.parametrize("op", [strict, factored])
def test_weights_of_one_change_no_bit(op: Op, kernel: Kernel, device: str) -> None:
    logits_TV, labels_T, _ = batch(6, 200, device)
    weighted, weighted_TV = op(logits_TV, labels_T, torch.ones(6, device=device), kernel=kernel)
    unweighted, unweighted_TV = op(logits_TV, labels_T, None, kernel=kernel)
    assert torch.equal(weighted.loss, unweighted.loss) and torch.equal(weighted.loss, weighted.nll_T.sum())
    assert torch.equal(weighted_TV, unweighted_TV)


def test_weights_only_scale_rows(kernel: Kernel, device: str) -> None:
    """Powers of two scale exactly: the weighted result is the unweighted one, row by row."""
    logits_TV, labels_T, _ = batch(6, 200, device)
    weights_T = 2.0 ** torch.arange(-3, 3, device=device)
    weighted_TV, unweighted_TV = logits_TV.clone(), logits_TV.clone()
    weighted, weighted_scale_T = replay_cross_entropy_(weighted_TV, labels_T, weights_T, kernel=kernel)
    unweighted, scale_T = replay_cross_entropy_(unweighted_TV, labels_T, None, kernel=kernel)
    assert torch.equal(weighted_TV, unweighted_TV)
    assert torch.equal(weighted_scale_T, scale_T * weights_T)
    assert torch.equal(weighted.nll_T, unweighted.nll_T)


def test_loss_may_be_scaled_afterwards(kernel: Kernel, device: str) -> None:
    logits_TV, labels_T, weights_T = batch(6, 200, device)
    _, gradient_TV = strict(logits_TV, labels_T, weights_T, kernel=kernel)
    leaf_TV = logits_TV.requires_grad_()
    (replay_cross_entropy(leaf_TV, labels_T, weights_T, kernel=kernel).loss * 4).backward()
    assert leaf_TV.grad is not None
    assert torch.equal(leaf_TV.grad, 4 * gradient_TV)


def test_gradient_may_overwrite_the_logits(kernel: Kernel, device: str) -> None:
    logits_TV, labels_T, weights_T = batch(6, 200, device)
    _, gradient_TV = strict(logits_TV, labels_T, weights_T, kernel=kernel)
    leaf_TV = logits_TV.requires_grad_()
    replay_cross_entropy(leaf_TV, labels_T, weights_T, kernel=kernel, inplace_backward=True).loss.backward()
    assert torch.equal(leaf_TV.detach(), gradient_TV)


@pytest.mark.parametrize("overwrites", ["forward", "backward"])
def test_autograd_knows_that_logits_are_overwritten(overwrites: str, kernel: Kernel, device: str) -> None:
    logits_TV, labels_T, weights_T = batch(6, 200, device)
    leaf_TV = logits_TV.requires_grad_()
    capped_TV = leaf_TV.tanh()  # its backward needs its result
    if overwrites == "forward":
        loss = capped_TV.sum()
        replay_cross_entropy_(capped_TV, labels_T, weights_T, kernel=kernel)
    else:
        loss = replay_cross_entropy(leaf_TV, labels_T, weights_T, kernel=kernel, inplace_backward=True).loss
        loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["all"]], ids=["plain", "all"])
def test_padding_columns_take_no_part(options: Options, kernel: Kernel, device: str) -> None:
    logits_TV, labels_T, weights_T = batch(6, 140, device)
    padded_TV = torch.cat([logits_TV, torch.full((6, 60), torch.nan, device=device)], 1)
    for op in both(options):
        narrow, narrow_TV = op(logits_TV, labels_T, weights_T, kernel=kernel, **options)
        padded, gradient_TV = op(padded_TV, labels_T, weights_T, vocab_size=140, kernel=kernel, **options)
        torch.testing.assert_close(padded.loss, narrow.loss)
        torch.testing.assert_close(gradient_TV[:, :140], narrow_TV)
        assert (gradient_TV[:, 140:] == 0).all()


def test_rows_may_lie_apart(kernel: Kernel, device: str) -> None:
    logits_TV, labels_T, weights_T = batch(5, 100, device)
    apart_TV = torch.zeros(5, 128, device=device)[:, :100].copy_(logits_TV)
    expected = replay_cross_entropy(logits_TV, labels_T, weights_T, kernel=kernel)
    assert torch.equal(replay_cross_entropy(apart_TV, labels_T, weights_T, kernel=kernel).loss, expected.loss)


def test_labels_and_weights_may_be_views(kernel: Kernel, device: str) -> None:
    logits_TV, labels_T, _ = batch(5, 100, device)
    labels_of_two_T2 = torch.stack([labels_T, labels_T * 0], 1)
    weights_T = torch.tensor(0.5, device=device).expand(5)
    expected = replay_cross_entropy(logits_TV, labels_T, weights_T.contiguous(), kernel=kernel)
    output = replay_cross_entropy(logits_TV, labels_of_two_T2[:, 0], weights_T, kernel=kernel)
    assert torch.equal(output.loss, expected.loss)


def test_rows_beyond_two_to_the_31(kernel: Kernel, device: str) -> None:
    """Offsets are counted in 64 bits. Only the pages of the two rows are ever touched."""
    memory = torch.empty(2**31 + 100, dtype=torch.bfloat16, device=device)
    logits_TV = memory.as_strided((2, 100), (2**31, 1)).copy_(batch(2, 100, device)[0])
    labels_T = torch.tensor([3, 4], device=device)
    expected_T = torch.nn.functional.cross_entropy(logits_TV.float(), labels_T, reduction="none")
    output, _ = replay_cross_entropy_(logits_TV, labels_T, None, kernel=kernel)
    torch.testing.assert_close(output.nll_T, expected_T)


class TestDomains:
    def test_sums(self, kernel: Kernel, device: str) -> None:
        logits_TV, labels_T, weights_T = batch(20, 50, device)
        domains_T = torch.tensor([0, 2, 2, 0, -1] * 4, device=device)
        output = replay_cross_entropy(
            logits_TV, labels_T, weights_T, z_loss=0.1, domains_T=domains_T, num_domains=3, kernel=kernel
        )
        for domain in range(3):
            rows = (domains_T == domain) & (labels_T != IGNORED)
            nll_T = torch.nn.functional.cross_entropy(logits_TV[rows], labels_T[rows], reduction="none")
            expected = torch.stack([(weights_T[rows] * nll_T).sum(), nll_T.sum(), rows.sum()])
            torch.testing.assert_close(output.domain_sums[domain], expected)

    def test_a_weight_of_zero_is_counted(self, kernel: Kernel, device: str) -> None:
        logits_TV, labels_T = torch.zeros(2, 8, device=device), torch.zeros(2, dtype=torch.int64, device=device)
        output = replay_cross_entropy(
            logits_TV, labels_T, torch.zeros(2, device=device), domains_T=labels_T, num_domains=1, kernel=kernel
        )
        torch.testing.assert_close(output.domain_sums.cpu(), torch.tensor([[0.0, 2 * torch.log(torch.tensor(8.0)), 2]]))

    def test_a_broken_row_stays_in_its_domain(self, kernel: Kernel, device: str) -> None:
        logits_TV, labels_T = torch.zeros(2, 8, device=device), torch.zeros(2, dtype=torch.int64, device=device)
        logits_TV[1] = torch.nan
        output = replay_cross_entropy(
            logits_TV, labels_T, None, domains_T=torch.arange(2, device=device), num_domains=2, kernel=kernel
        )
        assert output.domain_sums[0].isfinite().all() and output.domain_sums[1].isnan().any()


def sliced(
    op: Op, logits_TV: Tensor, labels_T: Tensor, weights_T: Tensor, size: int, **keywords: Any
) -> tuple[list[LossOutput], Tensor]:
    """The outputs of the ranks, and the gradient joined from their slices."""
    slices = logits_TV.chunk(size, 1)

    def body(exchange: ThreadExchange) -> tuple[LossOutput, Tensor]:
        start = exchange.rank * slices[0].shape[1]
        own_TV = slices[exchange.rank].contiguous()
        return op(own_TV, labels_T, weights_T, vocab_start=start, exchange=exchange, **keywords)

    outputs, gradients = zip(*on_ranks(size, body), strict=True)
    return list(outputs), torch.cat(gradients, 1)


class TestVocabularyParallel:
    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    def test_two_slices_match_double_precision(self, options: Options, kernel: Kernel, device: str) -> None:
        logits_TV, labels_T, weights_T = batch(7, 180, device)
        expected = Expected.of(logits_TV, labels_T, weights_T, options)
        for op in both(options):
            outputs, gradient_TV = sliced(op, logits_TV, labels_T, weights_T, 2, kernel=kernel, **options)
            assert torch.equal(outputs[0].loss, outputs[1].loss) and torch.equal(outputs[0].nll_T, outputs[1].nll_T)
            expected.check(outputs[0].loss, gradient_TV)

    @pytest.mark.parametrize("op", [strict, factored])
    def test_three_slices_with_padding(self, op: Op, kernel: Kernel, device: str) -> None:
        """70 real columns in slices of 40: the second is cut, the third is all padding."""
        logits_TV, labels_T, weights_T = batch(7, 70, device)
        expected = Expected.of(logits_TV, labels_T, weights_T, {})
        padded_TV = torch.cat([logits_TV, torch.full((7, 50), torch.nan, device=device)], 1)
        outputs, gradient_TV = sliced(op, padded_TV, labels_T, weights_T, 3, vocab_size=70, kernel=kernel)
        for output in outputs:
            expected.check(output.loss, gradient_TV[:, :70])
        assert (gradient_TV[:, 70:] == 0).all()

    @pytest.mark.parametrize("op", [strict, factored])
    @pytest.mark.parametrize("label", [0, 350])
    def test_a_slice_that_hardly_counts(self, label: int, op: Op, kernel: Kernel, device: str) -> None:
        """160 nats between the slices, the label in either: what one slice writes must not overflow by its anchor."""
        noise_TV, _, weights_T = batch(2, 400, device)
        logits_TV = noise_TV + torch.where(torch.arange(400, device=device) < 200, -EXTREME, EXTREME)
        labels_T = torch.full((2,), label, device=device)
        expected = Expected.of(logits_TV, labels_T, weights_T, {})
        outputs, gradient_TV = sliced(op, logits_TV, labels_T, weights_T, 2, kernel=kernel)
        expected.check(outputs[1].loss, gradient_TV)

    @pytest.mark.parametrize("op", [strict, factored])
    def test_a_slice_of_nothing_but_minus_infinity(self, op: Op, kernel: Kernel, device: str) -> None:
        logits_TV, _, weights_T = batch(3, 200, device)
        logits_TV[:, :100] = -torch.inf
        labels_T = torch.tensor([100, 150, 199], device=device)
        expected = Expected.of(logits_TV, labels_T, weights_T, {})
        outputs, gradient_TV = sliced(op, logits_TV, labels_T, weights_T, 2, kernel=kernel)
        expected.check(outputs[0].loss, gradient_TV)


def test_gradient_by_differences() -> None:
    logits_TV, labels_T, weights_T = batch(4, 12, "cpu")
    options: Options = {"z_loss": 0.01, "softcap": 8.0, "logit_scale": 1.5, "label_smoothing": 0.1}
    wide_TV = logits_TV.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda logits_TV: replay_cross_entropy(logits_TV, labels_T, weights_T, **options).loss, wide_TV
    )


class TestBadInput:
    def test_label_outside_the_vocabulary(self) -> None:
        with pytest.raises(ValueError, match="label 12 is outside the vocabulary of 10"):
            replay_cross_entropy(torch.zeros(2, 10), torch.tensor([3, 12]), None)

    def test_incomplete_vocabulary(self) -> None:
        with pytest.raises(ValueError, match="without an exchange they must hold all of it"):
            replay_cross_entropy(torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64), None, vocab_size=20)

    @pytest.mark.parametrize("options", [{"softcap": -1.0}, {"logit_scale": 0.0}, {"label_smoothing": 1.0}])
    def test_number_outside_its_range(self, options: Options) -> None:
        with pytest.raises(ValueError, match="softcap must be at least 0"):
            replay_cross_entropy(torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64), None, **options)

    def test_shapes(self) -> None:
        labels_T = torch.zeros(2, dtype=torch.int64)
        with pytest.raises(ValueError, match=r"labels_T must have one entry per row of \[3, 10\]"):
            replay_cross_entropy(torch.zeros(3, 10), labels_T, None)
        with pytest.raises(ValueError, match=r"weights_T must have one entry per row of \[2, 10\]"):
            replay_cross_entropy(torch.zeros(2, 10), labels_T, torch.ones(3))
        with pytest.raises(ValueError, match="expected a float matrix"):
            replay_cross_entropy(torch.zeros(2, 2, 10), labels_T, None)
        with pytest.raises(ValueError, match="domains_T must have one entry per row"):
            replay_cross_entropy(torch.zeros(2, 10), labels_T, None, domains_T=torch.zeros(3), num_domains=1)
        with pytest.raises(ValueError, match="domains_T is missing"):
            replay_cross_entropy(torch.zeros(2, 10), labels_T, None, num_domains=1)

    def test_label_type(self) -> None:
        with pytest.raises(ValueError, match="labels_T must be int64"):
            replay_cross_entropy(torch.zeros(2, 10), torch.zeros(2, dtype=torch.int32), None)

    def test_kernel(self) -> None:
        with pytest.raises(ValueError, match='unknown kernel "cuda"'):
            replay_cross_entropy(
                torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64), None, kernel="cuda"  # type: ignore[arg-type]
            )  # fmt: skip

    def test_triton_without_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(ValueError, match=r'"triton" takes float32 and less on a GPU, got torch\.float32 on cpu'):
            replay_cross_entropy(torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64), None, kernel="triton")

    def test_triton_in_double_precision(self) -> None:
        with pytest.raises(ValueError, match=r"takes float32 and less on a GPU, got torch\.float64"):
            replay_cross_entropy(torch.zeros(2, 10).double(), torch.zeros(2, dtype=torch.int64), None, kernel="triton")

    @pytest.mark.usefixtures("small_tiles")
    def test_triton_on_columns(self, device: str) -> None:
        with pytest.raises(ValueError, match=r"must lie side by side, got strides \(1, 2\)"):
            logits_TV = torch.zeros(10, 2, device=device).T
            replay_cross_entropy(logits_TV, torch.zeros(2, dtype=torch.int64, device=device), None, kernel="triton")

    def test_float16_in_place(self) -> None:
        with pytest.raises(ValueError, match="does not take float16"):
            replay_cross_entropy_(torch.zeros(2, 10).half(), torch.zeros(2, dtype=torch.int64), None)
