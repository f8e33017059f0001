"""Each collective on two and on four ranks: what its forward gives, and what its backward does to the gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from megacpt.engine.processes import make_tensor_group
from megacpt.parallel import collectives
from megacpt.parallel.grid import Grid
from megacpt.parallel.group import TensorGroup
from tests.distributed import run_ranks

WORLD_SIZE = 4
SIZES = (2, 4)
ROWS, SEQUENCE, WIDTH = 2, 8, 12
Tensors = list[torch.Tensor]


def total(tensors: Tensors) -> Tensors:
    """Everybody holds the sum."""
    return [torch.stack(tensors).sum(0)] * len(tensors)


def joined(tensors: Tensors, dim: int) -> Tensors:
    return [torch.cat(tensors, dim)] * len(tensors)


def parts(tensors: Tensors, dim: int) -> Tensors:
    """Everybody keeps its own part of what it holds."""
    return [tensor.chunk(len(tensors), dim)[rank] for rank, tensor in enumerate(tensors)]


FORWARD_AND_BACKWARD: dict[str, tuple[Callable[[Tensors], Tensors], Callable[[Tensors], Tensors]]] = {
    "copy_to_group": (lambda x: x, total),
    "reduce_from_group": (total, lambda g: g),
    "gather_sequence": (lambda x: joined(x, 1), lambda g: parts(total(g), 1)),
    "scatter_sum_sequence": (lambda x: parts(total(x), 1), lambda g: joined(g, 1)),
    "gather_features": (lambda x: joined(x, 2), lambda g: parts(g, 2)),
    "split_features": (lambda x: parts(x, 2), lambda g: joined(g, 2)),
    "split_sequence": (lambda x: parts(x, 1), lambda g: joined(g, 1)),
}


@dataclass(frozen=True)
class Trace:
    """A collective's way there and back on one rank; `given` and `received` as they are afterwards."""

    given: torch.Tensor
    output: torch.Tensor
    received: torch.Tensor
    gradient: torch.Tensor


def random_tensor(*key: Any, like: torch.Size) -> torch.Tensor:
    """Integers, so that sums are exact in any order."""
    generator = torch.Generator().manual_seed(sum(map(ord, repr(key))))
    return torch.randint(-99, 100, like, generator=generator, dtype=torch.float64)


def trace_all(rank: int) -> dict[tuple[str, int], Trace]:
    """The body of a rank: every collective in groups of every size."""
    traces = {}
    for size in SIZES:
        group = make_tensor_group(Grid(pipeline=1, data=WORLD_SIZE // size, tensor=size), rank)
        for name in FORWARD_AND_BACKWARD:
            x = random_tensor(name, rank, like=torch.Size((ROWS, SEQUENCE, WIDTH))).requires_grad_()
            value = x * 1.0
            output = getattr(collectives, name)(value, group)
            gradient = random_tensor("gradient", name, rank, like=output.shape)
            output.backward(gradient)
            assert x.grad is not None
            traces[name, size] = Trace(value.detach(), output.detach(), gradient, x.grad)
    return traces


@pytest.fixture(scope="module")
def traces() -> list[dict[tuple[str, int], Trace]]:
    return run_ranks(WORLD_SIZE, trace_all)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FORWARD_AND_BACKWARD)
def test_collective(name: str, size: int, traces: list[dict[tuple[str, int], Trace]]) -> None:
    forward, backward = FORWARD_AND_BACKWARD[name]
    for first in range(0, WORLD_SIZE, size):
        ranks = range(first, first + size)
        mine = [traces[rank][name, size] for rank in ranks]
        given = [random_tensor(name, rank, like=torch.Size((ROWS, SEQUENCE, WIDTH))) for rank in ranks]
        outputs = forward(given)
        received = [random_tensor("gradient", name, rank, like=outputs[0].shape) for rank in ranks]
        gradients = backward(received)
        for trace, output, gradient in zip(mine, outputs, gradients, strict=True):
            assert torch.equal(trace.output, output)
            assert torch.equal(trace.gradient, gradient)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FORWARD_AND_BACKWARD)
def test_what_comes_in_is_left_alone(name: str, size: int, traces: list[dict[tuple[str, int], Trace]]) -> None:
    """Others may hold it: autograd hands the same gradient to every branch of a sum."""
    for rank in range(WORLD_SIZE):
        trace = traces[rank][name, size]
        assert torch.equal(trace.given, random_tensor(name, rank, like=trace.given.shape))
        assert torch.equal(trace.received, random_tensor("gradient", name, rank, like=trace.received.shape))


@pytest.mark.parametrize("name", FORWARD_AND_BACKWARD)
def test_a_group_of_one_does_nothing(name: str) -> None:
    x = torch.ones(1, 2, 4)
    assert getattr(collectives, name)(x, TensorGroup()) is x
