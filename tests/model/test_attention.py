"""Attention inside documents: every backend against a plain softmax in float64, one document and query at a time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from megacpt.errors import ModelError
from megacpt.model import attention
from megacpt.model.attention import BACKENDS, Documents, Mask, choose_attention
from tests.model.whole import WholeModel, small_config, stage_factory

LENGTH, WIDTH, SCALING = 12, 8, 0.3
PACKED = ([0, 5, 6], [0], [0, 3])
"""Where the documents of three rows start."""
WHOLE_ROWS = ([0], [0])


@dataclass(frozen=True)
class Case:
    starts: tuple[list[int], ...] = PACKED
    window: int | None = None
    num_heads: int = 4
    num_kv_heads: int = 4
    softcap: float | None = None


CASES = {
    "documents": Case(),
    "one document a row": Case(starts=WHOLE_ROWS),
    "window": Case(window=3),
    "window in whole rows": Case(starts=WHOLE_ROWS, window=4),
    "window longer than the row": Case(starts=WHOLE_ROWS, window=LENGTH),
    "grouped queries": Case(num_kv_heads=2),
    "softcap": Case(softcap=1.5),
    "all of it": Case(window=2, num_kv_heads=1, softcap=1.5),
}


def positions_of(starts: tuple[list[int], ...], length: int = LENGTH) -> torch.Tensor:
    rows = [torch.cat([torch.arange(stop - start) for start, stop in pairwise([*row, length])]) for row in starts]
    return torch.stack(rows)


def plain_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, case: Case) -> torch.Tensor:
    """Softmax attention of every query by itself over the keys that it may see: [B, N, S, H] -> [B, S, N, H]."""
    output = torch.zeros(len(case.starts), query.shape[2], case.num_heads, query.shape[3], dtype=torch.float64)
    for row, starts in enumerate(case.starts):
        for position in range(query.shape[2]):
            first = max(start for start in starts if start <= position)
            if case.window is not None:
                first = max(first, position - case.window + 1)
            seen = slice(first, position + 1)
            for head in range(case.num_heads):
                shared = head * case.num_kv_heads // case.num_heads
                scores = key[row, shared, seen].double() @ query[row, head, position].double() * SCALING
                if case.softcap is not None:
                    scores = case.softcap * torch.tanh(scores / case.softcap)
                output[row, position, head] = scores.softmax(0) @ value[row, shared, seen].double()
    return output


def heads(
    case: Case, dtype: torch.dtype, width: int = WIDTH, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random query, key and value."""
    generator = torch.Generator().manual_seed(0)

    def draw(num_heads: int) -> torch.Tensor:
        values = torch.randn(len(case.starts), num_heads, LENGTH, width, generator=generator)
        return values.to(device, dtype).requires_grad_()

    return draw(case.num_heads), draw(case.num_kv_heads), draw(case.num_kv_heads)


def attend(
    backend: str, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], case: Case
) -> tuple[torch.Tensor, ...]:
    """The output, and the gradients of query, key and value under a fixed one."""
    mask = Mask(Documents(positions_of(case.starts).to(inputs[0].device)), case.window)
    output, _ = BACKENDS[backend](torch.nn.Module(), *inputs, mask, scaling=SCALING, softcap=case.softcap)
    return output, *gradients(output, inputs)


def gradients(output: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.device)
    return torch.autograd.grad((output * gradient).sum(), inputs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_backends_are_plain_attention(backend: str, name: str) -> None:
    case = CASES[name]
    inputs = heads(case, torch.float32)
    expected = plain_attention(*inputs, case)
    actual = attend(backend, inputs, case)
    assert actual[0].shape == (len(case.starts), LENGTH, case.num_heads, WIDTH)
    for ours, theirs in zip(actual, (expected, *gradients(expected, inputs)), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("has_bf16_units", [True, False])
def test_sdpa_in_bf16(has_bf16_units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "is_slow", lambda tensor: not has_bf16_units)
    case = CASES["grouped queries"]
    inputs = heads(case, torch.bfloat16)
    output = attend("sdpa", inputs, case)[0]
    assert output.dtype is torch.bfloat16
    torch.testing.assert_close(output.double(), plain_attention(*inputs, case), rtol=2e-2, atol=2e-2)


def test_cumulative_lengths_are_of_all_rows_end_to_end() -> None:
    cu_seqlens = Documents(positions_of(PACKED)).cu_seqlens
    assert cu_seqlens.dtype is torch.int32
    assert cu_seqlens.tolist() == [0, 5, 6, 12, 24, 27, 36]


def test_plain_causality_needs_no_mask() -> None:
    whole = Documents(positions_of(WHOLE_ROWS))
    assert whole.dense(None) is None and whole.dense(LENGTH) is None
    assert whole.dense(LENGTH - 1) is not None
    assert Documents(positions_of(PACKED)).dense(None) is not None


MODELS = {
    "llama": small_config("llama"),
    "mistral": small_config("mistral", sliding_window=4),
    "gemma2": small_config("gemma2", query_pre_attn_scalar=8, sliding_window=4),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", MODELS)
@torch.no_grad()
def test_a_document_knows_nothing_of_its_neighbours(model_type: str, attention: str) -> None:
    """Bit for bit: other text before a document, or behind it, changes none of its logits."""
    model = WholeModel(stage_factory(MODELS[model_type], attention))
    positions = positions_of(([0, 5, 9], [0, 7]))
    ids = torch.randint(3, 100, positions.shape, generator=torch.Generator().manual_seed(0))
    perturbed = ids.clone()
    perturbed[0, 2] += 1
    perturbed[0, 10] += 1
    before, after = model(ids, positions), model(perturbed, positions)
    assert torch.equal(before[0, 5:9], after[0, 5:9])
    assert torch.equal(before[1], after[1])
    # What was changed is seen by the token itself and by those after it, and by no other.
    assert (before[0] != after[0]).any(-1).tolist() == [position in (2, 3, 4, 10, 11) for position in range(LENGTH)]


@torch.no_grad()
def test_a_packed_document_is_the_document_alone() -> None:
    model = WholeModel(stage_factory(small_config("qwen3")))
    positions = positions_of(([0, 5],))
    ids = torch.randint(3, 100, positions.shape, generator=torch.Generator().manual_seed(0))
    alone = model(ids[:, 5:], positions[:, 5:].clone())
    torch.testing.assert_close(model(ids, positions)[:, 5:], alone, rtol=1e-5, atol=1e-5)


def test_auto_is_the_fastest_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_varlen_parameters", lambda: {"window_size"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_attention("auto", "cpu", torch.bfloat16) == "sdpa"
    assert choose_attention("auto", "cuda", torch.float32) == "sdpa"
    assert choose_attention("auto", "cuda", torch.bfloat16) == "varlen"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "flash_attn" or None)
    assert choose_attention("auto", "cuda", torch.bfloat16) == "flash_attention_2"
    assert choose_attention("auto", "cuda", torch.float32) == "sdpa"
    assert choose_attention("eager", "cuda", torch.bfloat16) == "eager"


def test_an_unknown_backend() -> None:
    with pytest.raises(ModelError, match=r"model\.attention: unknown attention backend \(found flash, expected auto, "):
        choose_attention("flash", "cpu", torch.float32)


@pytest.mark.parametrize("backend", ["flash_attention_2", "varlen"])
def test_a_backend_that_cannot_run_here(backend: str) -> None:
    with pytest.raises(ModelError, match=rf"attention '{backend}' cannot run here \(found cpu, torch.float32\)"):
        choose_attention(backend, "cpu", torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["sdpa", "varlen", "flash_attention_2"])
def test_gpu_backends_are_plain_attention(backend: str, name: str) -> None:
    if backend == "flash_attention_2":
        pytest.importorskip("flash_attn")
    case = CASES[name]
    inputs = heads(case, torch.bfloat16, width=64, device="cuda")
    copies = heads(case, torch.bfloat16, width=64)
    expected = plain_attention(*copies, case)
    actual = attend(backend, inputs, case)
    for ours, theirs in zip(actual, (expected, *gradients(expected, copies)), strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs.double(), rtol=3e-2, atol=3e-2)
