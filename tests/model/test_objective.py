"""The objective: what reaches the loss, and what it is by plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from megacpt.model.objective import Distillation, Objective
from megacpt.parallel.group import TensorGroup

VOCAB_SIZE, PADDED, NUM_DOMAINS = 11, 16, 3
GENERATOR = torch.Generator().manual_seed(0)
HIDDEN = torch.randn(2, 5, 4, generator=GENERATOR)
HEAD = torch.randn(PADDED, 4, generator=GENERATOR)
LABELS = torch.tensor([[1, -100, 3, 10, 0], [4, 4, -100, 7, 2]])
WEIGHTS = torch.rand(2, 5, generator=GENERATOR) * (LABELS >= 0)
DOMAINS = torch.tensor([[0] * 5, [2] * 5])
TARGETS = (LABELS, WEIGHTS, DOMAINS)
Z_LOSS = 0.25


def objective(**settings: Any) -> Objective:
    return Objective(TensorGroup(), VOCAB_SIZE, NUM_DOMAINS, kernel="reference", **settings)


def logits(softcap: float = 0.0, logit_scale: float = 1.0) -> torch.Tensor:
    """[10, 11]: without the columns of the padding."""
    values = (HIDDEN.flatten(0, 1) @ HEAD.T)[:, :VOCAB_SIZE].double() * logit_scale
    return softcap * torch.tanh(values / softcap) if softcap else values


def weighted(nll: torch.Tensor) -> float:
    return float((WEIGHTS.flatten().double() * nll).sum())


def nll(**shape: float) -> torch.Tensor:
    return F.cross_entropy(logits(**shape), LABELS.flatten(), reduction="none", ignore_index=-100)


def squares() -> torch.Tensor:
    return Z_LOSS * logits().logsumexp(1) ** 2


def test_the_loss_is_the_weighted_sum() -> None:
    assert objective()((HIDDEN, HEAD), TARGETS).item() == pytest.approx(weighted(nll()), rel=1e-5)


@pytest.mark.parametrize("shape", [{"softcap": 2.0}, {"logit_scale": 0.3}, {"softcap": 2.0, "logit_scale": 0.3}])
def test_what_the_architecture_does_to_its_logits(shape: dict[str, float]) -> None:
    assert objective(**shape)((HIDDEN, HEAD), TARGETS).item() == pytest.approx(weighted(nll(**shape)), rel=1e-5)


@pytest.mark.parametrize("factor", ["loss_factor", "weight_factor"])
def test_a_factor_is_on_loss_and_gradient_alone(factor: str) -> None:
    measured = objective(z_loss=Z_LOSS)
    hidden = HIDDEN.clone().requires_grad_()
    loss = measured((hidden, HEAD), TARGETS)
    (gradient,) = torch.autograd.grad(loss, hidden)
    sums = measured.domain_sums
    setattr(measured, factor, 8.0)
    scaled = measured((hidden, HEAD), TARGETS)
    assert loss.item() == pytest.approx(weighted(nll() + squares()), rel=1e-5)
    assert scaled.item() == pytest.approx(8 * loss.item(), rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(scaled, hidden)[0], 8 * gradient)
    assert torch.equal(measured.domain_sums, sums)


def test_evaluation_is_the_plain_nll() -> None:
    measured = objective(z_loss=Z_LOSS)
    measured.loss_factor, measured.weight_factor = 8.0, 2.0
    with measured.evaluation():
        assert measured((HIDDEN, HEAD), TARGETS).item() == pytest.approx(weighted(nll()), rel=1e-5)
    assert (measured.loss_factor, measured.weight_factor, measured.z_loss) == (8.0, 2.0, Z_LOSS)


def test_evaluation_ends_where_it_fails() -> None:
    measured = objective(z_loss=Z_LOSS)
    with pytest.raises(RuntimeError), measured.evaluation():
        raise RuntimeError
    assert (measured.loss_factor, measured.weight_factor, measured.z_loss) == (1.0, 1.0, Z_LOSS)


@pytest.mark.parametrize("distillation", [None, Distillation(0.5, 2.0, (0,))], ids=["alone", "taught"])
def test_a_given_buffer_collects_the_heads_gradient(distillation: Distillation | None) -> None:
    """With the weights' factor, which gradients are averaged over, and without the loss's, which is taken back."""
    hidden, head = HIDDEN.clone().requires_grad_(), HEAD.clone().requires_grad_()
    teacher = () if distillation is None else (HIDDEN.flip(0), HEAD.flip(0))
    plain = objective(distillation=distillation)((hidden, head, *teacher), TARGETS)
    expected = torch.autograd.grad(plain, (hidden, head))
    measured = objective(distillation=distillation)
    measured.loss_factor, measured.weight_factor = 4.0, 2.0
    measured.grad_head_VD = torch.ones_like(HEAD)
    for _ in range(2):
        (measured((hidden, head, *teacher), TARGETS) / measured.loss_factor).backward()
    assert head.grad is None and hidden.grad is not None
    torch.testing.assert_close(hidden.grad, 4 * expected[0])
    torch.testing.assert_close(measured.grad_head_VD, 1 + 4 * expected[1])


def test_a_head_that_is_trained_alone_has_its_gradient_from_autograd() -> None:
    """Nothing else would require one, and a loss without a gradient cannot be differentiated."""
    into_buffer, head = objective(), HEAD.clone().requires_grad_()
    into_buffer.grad_head_VD = torch.zeros_like(HEAD)
    into_buffer((HIDDEN, head), TARGETS).backward()
    expected = HEAD.clone().requires_grad_()
    objective()((HIDDEN, expected), TARGETS).backward()
    assert expected.grad is not None and torch.equal(head.grad, expected.grad)  # type: ignore[arg-type]
    assert not into_buffer.grad_head_VD.any()


def test_domain_sums() -> None:
    measured = objective(distillation=Distillation(0.5, 2.0, (2,)))
    measured.weight_factor = 4.0
    measured((HIDDEN, HEAD, HIDDEN.flip(0), HEAD), TARGETS)
    by_row = nll().view(2, 5)
    teacher, student = ((states @ HEAD.T)[..., :VOCAB_SIZE].double() / 2.0 for states in (HIDDEN.flip(0), HIDDEN))
    divergences = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    expected = torch.zeros(NUM_DOMAINS, 4, dtype=torch.float64)
    for row, domain in enumerate((0, 2)):
        counted = LABELS[row] >= 0
        divergence = divergences[row][counted].sum() if domain == 2 else torch.zeros(())
        expected[domain] = torch.stack(
            [(WEIGHTS[row] * by_row[row]).sum(), by_row[row].sum(), counted.sum(), divergence]
        )
    torch.testing.assert_close(measured.domain_sums.double(), expected, rtol=1e-5, atol=1e-6)
    assert not measured.domain_sums.requires_grad


def test_the_plain_cross_entropy_has_no_teacher() -> None:
    measured = objective(z_loss=Z_LOSS, distillation=Distillation(0.5, 2.0, (0, 2)))
    with measured.cross_entropy():
        loss = measured((HIDDEN, HEAD, HIDDEN.flip(0), HEAD), TARGETS)
    assert loss.item() == pytest.approx(weighted(nll()), rel=1e-5)
    assert measured.distillation is not None and measured.z_loss == Z_LOSS
