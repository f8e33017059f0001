"""What the layers of a stage share: how exact it is, whose it is, and how long it lives."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from megacpt.model.context import StageContext
from megacpt.model.stages import DecoderStage
from tests.model.whole import WholeModel, small_config, stage_factory

LENGTH = 4096


def test_frequencies_stay_fp32_when_the_stage_is_cast() -> None:
    """bf16 frequencies would turn the last of 4,096 positions by whole radians."""
    factory = stage_factory(small_config("llama", max_position_embeddings=LENGTH))
    stage = DecoderStage(factory, 0)
    positions = torch.arange(LENGTH)[None]
    cos, sin = stage.context.of(positions).rotary(torch.zeros(1, dtype=torch.float32), positions, "full_attention")
    stage.to(torch.bfloat16)
    later = positions.clone()
    cast_cos, cast_sin = stage.context.of(later).rotary(torch.zeros(1, dtype=torch.float32), later, "full_attention")
    assert torch.equal(cast_cos, cos) and torch.equal(cast_sin, sin)
    angles = (LENGTH - 1) * 10_000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    torch.testing.assert_close(cos[0, -1, :4].double(), angles.cos(), rtol=0, atol=5e-4)


def test_frequencies_are_fp32_in_a_bf16_model() -> None:
    tables = []
    for dtype in (torch.float32, torch.bfloat16):
        factory = stage_factory(small_config("llama", max_position_embeddings=LENGTH), dtype=dtype)
        positions = torch.arange(LENGTH)[None]
        tables.append(factory.context.of(positions).rotary(torch.zeros(1), positions, "full_attention")[0])
    assert torch.equal(tables[0], tables[1])


def test_layers_of_a_micro_batch_share_its_tables() -> None:
    context = stage_factory(small_config("llama")).context
    first, second = torch.arange(8)[None], torch.arange(8)[None]
    hidden = torch.zeros(1)
    assert context.of(first) is context.of(first)
    assert context.of(first) is not context.of(second)
    table = context.of(first).rotary(hidden, first, "full_attention")
    assert context.of(first).rotary(hidden, first, "full_attention") is table
    assert context.of(first).mask(3).documents is context.of(first).mask(None).documents


def test_a_document_has_the_frequencies_of_its_own_length() -> None:
    """LongRoPE's depend on whether a text is long; those of its neighbours must not matter."""
    rope = dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[2.0, 3.0, 4.0, 5.0])
    config = small_config("phi3", rope_parameters=rope | {"rope_theta": 10_000.0}, original_max_position_embeddings=6)
    context = stage_factory(config).context

    def table(lengths: list[int]) -> list[torch.Tensor]:
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        return list(context.of(positions).rotary(torch.zeros(1), positions, "full_attention"))

    lengths = [6, 1, 7, 3]
    alone = [table([length]) for length in lengths]
    for packed, *each in zip(table(lengths), *alone, strict=True):
        assert torch.equal(packed, torch.cat(each, 1))
    assert not torch.equal(alone[0][0], alone[2][0][:, :6])


def test_layer_types_have_their_own_tables() -> None:
    config = small_config(
        "gemma3_text", sliding_window=4, layer_types=["sliding_attention", "full_attention", "full_attention"]
    )
    context = stage_factory(config).context
    positions = torch.arange(8)[None]
    tables = {
        kind: context.of(positions).rotary(torch.zeros(1), positions, kind)[0]
        for kind in ("sliding_attention", "full_attention")
    }
    assert not torch.equal(tables["sliding_attention"], tables["full_attention"])


@pytest.mark.parametrize("trains", [True, False])
def test_tables_live_as_long_as_the_positions(trains: bool) -> None:
    model = WholeModel(stage_factory(small_config("llama")))
    context: StageContext = model.decoder[0].context
    ids, positions = torch.arange(3, 11)[None], torch.arange(8)[None]
    with torch.set_grad_enabled(trains):
        logits = model(ids, positions)
    if trains:
        logits.sum().backward()
    shared = weakref.ref(context.of(positions))
    gc.disable()  # no cycle may keep them until the collector comes
    try:
        del logits
        assert shared() is not None
        del positions
        assert shared() is None
    finally:
        gc.enable()
