"""The teacher's part of the loss, against PyTorch's own operations in double precision, whole and in slices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megacpt_kernels import Exchange, Teacher, fused_linear_replay_cross_entropy
from tests.kernels.slices import on_ranks

NUM_TOKENS, VOCAB_SIZE, PADDED, WIDTH, TEACHER_WIDTH = 37, 29, 32, 6, 9
VARIANTS: dict[str, dict[str, float]] = {
    "plain": {},
    "temperature": {"temperature": 2.0},
    "all": {"temperature": 0.7, "softcap": 6.0, "logit_scale": 1.5, "z_loss": 0.01},
}


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor, Teacher]:
    """hidden, head, labels, weights, teacher; some rows without a label, some without a divergence."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    labels = torch.randint(VOCAB_SIZE, (NUM_TOKENS,), generator=generator)
    labels[::5] = -100
    weights = torch.rand(NUM_TOKENS, generator=generator)
    divergence_weights = torch.rand(NUM_TOKENS, generator=generator).where(labels != -100, 0)
    divergence_weights[::3] = 0
    head, teacher_head = normal(PADDED, WIDTH), normal(PADDED, TEACHER_WIDTH)
    teacher = Teacher(normal(NUM_TOKENS, TEACHER_WIDTH), teacher_head, divergence_weights)
    return 2 * normal(NUM_TOKENS, WIDTH), head, labels, weights, teacher


def expected(dtype: torch.dtype, variant: dict[str, float]) -> list[Tensor]:
    """Loss, divergences, gradient of hidden, gradient of the head."""
    hidden, head, labels, weights, teacher = inputs()
    hidden, head = hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_()
    scale, cap = variant.get("logit_scale", 1.0), variant.get("softcap", 0.0)
    temperature = variant.get("temperature", 1.0)

    def logits(states: Tensor, rows: Tensor) -> Tensor:
        raw = states @ rows[:VOCAB_SIZE].T * scale
        return cap * torch.tanh(raw / cap) if cap else raw

    student = logits(hidden, head)
    target = logits(teacher.hidden_TD.to(dtype), teacher.head_VD.to(dtype))
    losses = F.cross_entropy(student, labels, reduction="none")
    losses = losses + variant.get("z_loss", 0.0) * student.logsumexp(1).square() * (labels != -100)
    divergences = F.kl_div(
        (student / temperature).log_softmax(1), (target / temperature).log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    loss = (losses * weights).sum() + temperature**2 * (divergences * teacher.weights_T).sum()
    divergences = divergences * (teacher.weights_T != 0)
    return [loss.detach(), divergences.detach(), *torch.autograd.grad(loss, (hidden, head))]


def computed(variant: dict[str, float], exchange: Exchange | None = None, **options: Any) -> list[Tensor]:
    hidden, head, labels, weights, teacher = inputs()
    rank, size = (0, 1) if exchange is None else (exchange.rank, exchange.size)
    hidden, head = hidden.requires_grad_(), head.chunk(size)[rank].clone().requires_grad_()
    teacher = teacher._replace(head_VD=teacher.head_VD.chunk(size)[rank], temperature=variant.get("temperature", 1.0))
    options |= {key: value for key, value in variant.items() if key != "temperature"}
    options |= {"vocab_size": VOCAB_SIZE, "vocab_start": rank * len(head), "chunk_tokens": 8, "kernel": "reference"}
    output = fused_linear_replay_cross_entropy(
        hidden, head, labels, weights, teacher=teacher, exchange=exchange, **options
    )
    assert output.divergence_T is not None
    return [output.loss.detach(), output.divergence_T, *torch.autograd.grad(output.loss, (hidden, head))]


def assert_as_accurate(results: list[Tensor], variant: dict[str, float]) -> None:
    """No further from double precision than a few times what PyTorch's operations are in single precision."""
    for result, plain, exact in zip(
        results, expected(torch.float32, variant), expected(torch.float64, variant), strict=True
    ):
        rounding = torch.finfo(torch.float32).eps * float(exact.norm())
        assert (result.double() - exact).norm() <= 4 * max(float((plain.double() - exact).norm()), rounding)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_loss_and_gradients(variant: dict[str, float]) -> None:
    assert_as_accurate(computed(variant), variant)
    assert_as_accurate(computed(variant, compact=False), variant)


@pytest.mark.parametrize("size", [2, 4])
def test_slices_of_the_vocabulary(size: int) -> None:
    variant = VARIANTS["all"]
    results = on_ranks(size, lambda exchange: computed(variant, exchange))
    hidden_gradient = torch.stack([hidden for _, _, hidden, _ in results]).sum(0)
    head_gradient = torch.cat([head for *_, head in results])
    for loss, divergences, *_ in results:
        assert_as_accurate([loss, divergences, hidden_gradient, head_gradient], variant)


def test_a_teacher_that_is_the_student_changes_nothing() -> None:
    hidden, head, labels, weights, _ = inputs()
    same = Teacher(hidden, head, torch.ones(NUM_TOKENS).where(labels != -100, 0))
    outputs = []
    for each in (same, same._replace(weights_T=torch.zeros(NUM_TOKENS))):
        leaves = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        loss = fused_linear_replay_cross_entropy(*leaves, labels, weights, teacher=each, vocab_size=VOCAB_SIZE).loss
        outputs.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    assert all(torch.equal(*pair) for pair in zip(*outputs, strict=True))


def test_a_teacher_of_another_vocabulary_is_refused() -> None:
    hidden, head, labels, weights, teacher = inputs()
    with pytest.raises(ValueError, match="32 rows of a head"):
        fused_linear_replay_cross_entropy(
            hidden, head, labels, weights, teacher=teacher._replace(head_VD=teacher.head_VD[:30])
        )
