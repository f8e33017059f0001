"""Parallel layers against the unsplit computation: outputs, and the gradients of inputs and of every weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from megacpt.engine.processes import make_tensor_group
from megacpt.parallel.collectives import copy_to_group, gather_sequence
from megacpt.parallel.grid import Grid
from megacpt.parallel.group import TensorGroup
from megacpt.parallel.layers import ColumnParallelLinear, RowParallelLinear, VocabularyParallelEmbedding
from megacpt.parallel.slices import Slice, join
from tests.distributed import run_ranks

WORLD_SIZE = 4
SIZES = (2, 4)
DTYPES = (torch.float64, torch.float32)
ROWS, SEQUENCE, WIDTH, INNER = 2, 8, 12, 16
VOCAB_SIZE, PADDED, PADDING_ID, SCALE = 21, 32, 5, 3.5
Tensors = dict[str, torch.Tensor]


def random_tensor(name: str, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


WHOLE = {
    "x": random_tensor("x", ROWS, SEQUENCE, WIDTH),
    "up.weight": random_tensor("up.weight", INNER, WIDTH),
    "up.bias": random_tensor("up.bias", INNER),
    "down.weight": random_tensor("down.weight", WIDTH, INNER),
    "down.bias": random_tensor("down.bias", WIDTH),
    "embedding.weight": random_tensor("embedding.weight", VOCAB_SIZE, WIDTH),
    "gradient": random_tensor("gradient", ROWS, SEQUENCE, WIDTH),
}
IDS = torch.randint(VOCAB_SIZE, (ROWS, SEQUENCE), generator=torch.Generator().manual_seed(0))
IDS[0, :3] = torch.tensor([PADDING_ID, 0, VOCAB_SIZE - 1])


Layer = TypeVar("Layer", ColumnParallelLinear, RowParallelLinear, VocabularyParallelEmbedding)


def filled(layer: Layer, name: str, dtype: torch.dtype) -> Layer:
    """`layer` with its share of the whole tensors."""
    slices: dict[str, Slice] = layer.parameter_slices
    for leaf, _ in list(layer.named_parameters()):
        piece = slices.get(leaf)
        whole = WHOLE[f"{name}.{leaf}"].to(dtype)
        setattr(layer, leaf, nn.Parameter(whole if piece is None else piece.cut(whole)))
    return layer


def my_sequence(tensor: torch.Tensor, group: TensorGroup) -> torch.Tensor:
    return tensor.chunk(group.size, 1)[group.rank]


def gradients(**layers: nn.Module) -> Tensors:
    return {
        f"{name}.{leaf}": parameter.grad
        for name, layer in layers.items()
        for leaf, parameter in layer.named_parameters()
        if parameter.grad is not None
    }


def linears(group: TensorGroup, dtype: torch.dtype, *, whole_inside: bool, sequence_parallel: bool = False) -> Tensors:
    """up, gelu, down; with `whole_inside` the activation between them is whole on every rank."""
    with torch.device("meta"):
        up_linear, down_linear = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
    up = filled(ColumnParallelLinear(up_linear, group, gather_output=whole_inside), "up", dtype)
    down = filled(
        RowParallelLinear(down_linear, group, split_input=whole_inside, sequence_parallel=sequence_parallel),
        "down",
        dtype,
    )
    enter = gather_sequence if sequence_parallel else copy_to_group
    x, gradient = WHOLE["x"].to(dtype), WHOLE["gradient"].to(dtype)
    if sequence_parallel:
        x, gradient = my_sequence(x, group), my_sequence(gradient, group)
    x = x.clone().requires_grad_()
    inner = F.gelu(up(enter(x, group)))
    assert inner.shape[-1] == (INNER if whole_inside else INNER // group.size)
    output = down(inner)
    output.backward(gradient)
    assert x.grad is not None
    return {"output": output.detach(), "x": x.grad, **gradients(up=up, down=down)}


def embedding(group: TensorGroup, dtype: torch.dtype, *, sequence_parallel: bool = False) -> Tensors:
    """Scaled embeddings of ids with a padding id."""
    with torch.device("meta"):
        whole = nn.Embedding(VOCAB_SIZE, WIDTH, padding_idx=PADDING_ID)
    layer = VocabularyParallelEmbedding(
        whole, group, padded_size=PADDED, scale=SCALE, sequence_parallel=sequence_parallel
    )
    filled(layer, "embedding", dtype)
    output = layer(IDS)
    gradient = WHOLE["gradient"].to(dtype)
    output.backward(my_sequence(gradient, group) if sequence_parallel else gradient)
    return {"output": output.detach(), **gradients(embedding=layer)}


CASES: dict[str, Callable[[TensorGroup, torch.dtype], Tensors]] = {
    "column, row": lambda group, dtype: linears(group, dtype, whole_inside=False),
    "column, row, sequence parallel": lambda group, dtype: linears(
        group, dtype, whole_inside=False, sequence_parallel=True
    ),
    "column gathered, row splitting": lambda group, dtype: linears(group, dtype, whole_inside=True),
    "embedding": embedding,
    "embedding, sequence parallel": lambda group, dtype: embedding(group, dtype, sequence_parallel=True),
}

Results = list[dict[tuple[str, int, torch.dtype], Tensors]]


def run_cases(rank: int) -> dict[tuple[str, int, torch.dtype], Tensors]:
    """The body of a rank: every case in groups of every size, in both dtypes."""
    results = {}
    for size in SIZES:
        group = make_tensor_group(Grid(pipeline=1, data=WORLD_SIZE // size, tensor=size), rank)
        for name, case in CASES.items():
            for dtype in DTYPES:
                results[name, size, dtype] = case(group, dtype)
    return results


@pytest.fixture(scope="module")
def results() -> Results:
    return run_ranks(WORLD_SIZE, run_cases)


def unsplit(name: str) -> Tensors:
    """The same computation by plain torch in float64."""
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in WHOLE.items() if key != "gradient"}
    if name.startswith("embedding"):
        output = SCALE * F.embedding(IDS, leaves["embedding.weight"], padding_idx=PADDING_ID)
    else:
        inner = F.gelu(F.linear(leaves["x"], leaves["up.weight"], leaves["up.bias"]))
        output = F.linear(inner, leaves["down.weight"], leaves["down.bias"])
    output.backward(WHOLE["gradient"])
    return {"output": output.detach()} | {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}


SPLIT_DIMS = {"up.weight": 0, "up.bias": 0, "down.weight": 1, "embedding.weight": 0}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_split_layers_compute_the_whole(name: str, size: int, dtype: torch.dtype, results: Results) -> None:
    expected = unsplit(name)
    tolerance = 1e-12 if dtype is torch.float64 else 1e-5

    def assert_same(actual: torch.Tensor, whole: torch.Tensor) -> None:
        torch.testing.assert_close(actual.double(), whole, rtol=tolerance, atol=tolerance)

    for first in range(0, WORLD_SIZE, size):
        ranks = [results[rank][name, size, dtype] for rank in range(first, first + size)]
        assert all(tensors.keys() == expected.keys() for tensors in ranks)
        for key, whole in expected.items():
            held = [tensors[key] for tensors in ranks]
            assert all(part.dtype is dtype for part in held)
            if key in SPLIT_DIMS:
                joined = join(held, SPLIT_DIMS[key], VOCAB_SIZE if key == "embedding.weight" else None)
                assert_same(joined, whole)
            elif "sequence parallel" not in name:
                for part in held:
                    assert_same(part, whole)
            elif key == "down.bias":  # each rank adds it to its tokens alone
                assert_same(torch.stack(held).sum(0), whole)
            else:
                assert_same(torch.cat(held, 1), whole)


@pytest.mark.parametrize("size", SIZES)
def test_padding_rows_are_never_read(size: int, results: Results) -> None:
    for first in range(0, WORLD_SIZE, size):
        held = [
            results[rank]["embedding", size, torch.float64]["embedding.weight"] for rank in range(first, first + size)
        ]
        whole = join(held, 0)
        assert whole.shape[0] == PADDED
        assert whole[VOCAB_SIZE:].count_nonzero() == 0
        assert whole[PADDING_ID].count_nonzero() == 0


def test_the_scale_is_rounded_as_transformers_rounds_it() -> None:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    theirs = Gemma3TextScaledWordEmbedding(VOCAB_SIZE, WIDTH, PADDING_ID, embed_scale=5376**0.5).to(torch.bfloat16)
    ours = VocabularyParallelEmbedding(theirs, TensorGroup(), padded_size=PADDED, scale=theirs.scalar_embed_scale)
    ours.weight = nn.Parameter(ours.parameter_slices["weight"].cut(theirs.weight.detach()))
    assert torch.equal(ours(IDS), theirs(IDS))


def test_parameters_are_made_without_memory() -> None:
    with torch.device("meta"):
        linear = nn.Linear(WIDTH, INNER, dtype=torch.bfloat16)
    group = TensorGroup(rank=1, size=2)
    column, row = ColumnParallelLinear(linear, group), RowParallelLinear(linear, group)
    assert {parameter.device.type for layer in (column, row) for parameter in layer.parameters()} == {"meta"}
    assert column.weight.shape == (INNER // 2, WIDTH) and row.weight.shape == (INNER, WIDTH // 2)
    assert column.weight.dtype is row.weight.dtype is torch.bfloat16
