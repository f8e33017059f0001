"""bf16 products made in fp32: the results of bf16 units, forward and backward, in bf16 memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from megacpt.parallel import products
from megacpt.parallel.products import Linear, linear, use_fast_products


@pytest.fixture
def without_bf16_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "cpu_has_bf16", lambda: False)


def random_inputs(has_bias: bool) -> tuple[torch.Tensor, ...]:
    """x, weight and bias as leaves."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 7), (3, 7), *([(3,)] if has_bias else [])]
    return tuple(torch.randn(shape, generator=generator).to(torch.bfloat16).requires_grad_() for shape in shapes)


@pytest.mark.usefixtures("without_bf16_units")
@pytest.mark.parametrize("has_bias", [True, False])
def test_results_are_the_exact_ones_rounded_once(has_bias: bool) -> None:
    inputs = random_inputs(has_bias)
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in inputs)
    gradient = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    output, expected = linear(*inputs), F.linear(*exact)
    pairs = [(output, expected)]
    pairs += zip(
        torch.autograd.grad(output, inputs, gradient),
        torch.autograd.grad(expected, exact, gradient.double()),
        strict=True,
    )
    for ours, theirs in pairs:
        assert ours.dtype is torch.bfloat16 and ours.shape == theirs.shape
        torch.testing.assert_close(ours.double(), theirs, rtol=2**-8, atol=1e-6)


@pytest.mark.usefixtures("without_bf16_units")
def test_a_frozen_weight_gets_no_gradient() -> None:
    x, weight = random_inputs(has_bias=False)
    linear(x, weight.requires_grad_(False)).sum().backward()
    assert x.grad is not None and weight.grad is None


@pytest.mark.parametrize("has_bf16", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_bf16_without_units_is_slow(has_bf16: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "cpu_has_bf16", lambda: has_bf16)
    assert products.is_slow(torch.zeros(1, dtype=dtype)) == (dtype is torch.bfloat16 and not has_bf16)
    assert not products.is_slow(torch.zeros(1, dtype=dtype, device="meta"))


@pytest.mark.usefixtures("without_bf16_units")
def test_plain_linears_are_exchanged_and_nothing_else() -> None:
    class Special(nn.Linear):
        pass

    first = nn.Linear(7, 3)
    module = nn.ModuleDict({"inner": nn.Sequential(first), "special": Special(7, 3), "norm": nn.LayerNorm(7)})
    before = dict(module.named_parameters())
    use_fast_products(module)
    assert [type(module.get_submodule(name)) for name in ("inner.0", "special", "norm")] == [
        Linear, Special, nn.LayerNorm,
    ]  # fmt: skip
    after = dict(module.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    x, *_ = random_inputs(has_bias=False)
    module.to(torch.bfloat16)
    assert torch.equal(first(x), linear(x, first.weight, first.bias))
