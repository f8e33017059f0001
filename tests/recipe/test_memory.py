"""Memory: against figures known for Llama-3-8B, and against what must hold for any layout."""

from __future__ import annotations

import pytest

from megacpt.recipe import Resolved, load_recipe, resolve
from megacpt.recipe.memory import RankMemory, checkpoint_bytes, equal_time_layers, estimate_memory

GIB = 2**30


def plan(*overrides: str) -> Resolved:
    return resolve(load_recipe("llama3-8b-medical", overrides), world_size=16)


def memory(*overrides: str) -> list[RankMemory]:
    resolved = plan(*overrides)
    assert resolved.architecture is not None
    layers = equal_time_layers(resolved.architecture, resolved.pipeline, resolved.sequence_length)
    return estimate_memory(resolved, resolved.architecture, layers)


def test_activations_of_a_layer_are_34_bytes_per_channel() -> None:
    whole = memory("parallel.pipeline=1")[0].activations_bytes
    assert whole / (32 * 8192 * 4096) == pytest.approx(34.08, rel=0.003), "34.08 were measured by saved-tensor hooks"


def test_states_follow_the_zero_stage() -> None:
    parameters = 8_030_261_248
    for stage, per_parameter in {1: 2 + 4 + 12 / 16, 2: 2 + 4 / 16 + 12 / 16, 3: 18 / 16}.items():
        rank = memory("parallel.pipeline=1", f"parallel.zero_stage={stage}")[0]
        states = rank.weights_bytes + rank.gradients_bytes + rank.optimizer_bytes
        assert states == pytest.approx(per_parameter * parameters, rel=1e-3)


def test_what_is_kept_of_earlier_weights_takes_their_size() -> None:
    keys = [
        "optimizer.decay_to=initial",
        "optimizer.average_decay=0.99",
        "optimizer.reptile={every_steps: 9, step_size: 1}",
    ]
    plain, with_copies = memory("parallel.pipeline=1")[0], memory("parallel.pipeline=1", *keys)[0]
    more_bytes = with_copies.optimizer_bytes - plain.optimizer_bytes
    assert more_bytes == pytest.approx(3 * 4 / 16 * 8_030_261_248, rel=1e-3)


def test_a_teacher_takes_weights_and_no_states() -> None:
    plain, taught = (
        memory("parallel.pipeline=1")[0],
        memory("parallel.pipeline=1", "loss.distillation={weight: 0.2}")[0],
    )
    assert taught.weights_bytes == 2 * plain.weights_bytes
    assert taught.optimizer_bytes + taught.gradients_bytes == plain.optimizer_bytes + plain.gradients_bytes


def test_the_recipe_fits_its_cards() -> None:
    first, last = memory()
    assert 60 * GIB < first.total_bytes < 70 * GIB, "80 GB are 74.5 GiB, and CUDA wants about 2"
    assert last.total_bytes < first.total_bytes
    assert (first.head_bytes, last.head_bytes > 0) == (0, True)


def test_what_saves_memory_does() -> None:
    plain = memory("parallel.pipeline=1", "parallel.tensor=2")[0]
    split = memory("parallel.pipeline=1", "parallel.tensor=2", "parallel.sequence_parallel=true")[0]
    recomputed = memory("parallel.pipeline=1", "parallel.tensor=2", "parallel.activation_checkpointing=full")[0]
    assert recomputed.activations_bytes < split.activations_bytes < plain.activations_bytes
    assert split.weights_bytes == plain.weights_bytes == recomputed.weights_bytes


def test_stages_share_all_parameters_once() -> None:
    parameters = sum(rank.weights_bytes / 2 for rank in memory("parallel.pipeline=4", "batch.global_rows=512"))
    assert parameters == pytest.approx(8_030_261_248, rel=1e-3)


def test_a_head_counts_as_layers_in_the_cut() -> None:
    architecture = plan().architecture
    assert architecture is not None
    first, last = equal_time_layers(architecture, 2, 8192)
    assert first + last == pytest.approx(32)
    assert first - last == pytest.approx(2.1, abs=0.02)
    assert equal_time_layers(architecture, 32, 8192)[-1] == 1.0, "the last stage keeps a layer"


def test_a_checkpoint_is_twelve_bytes_per_parameter() -> None:
    resolved = plan()
    assert resolved.architecture is not None
    assert checkpoint_bytes(resolved.architecture) == 12 * 8_030_261_248
