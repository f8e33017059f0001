"""The state on disk: what is read back is what was held, and what cannot be is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.state import Snapshot, StoredState
from megacpt.errors import CheckpointError
from megacpt.parallel.fragments import Fragment, Held
from megacpt.parallel.slices import Slice
from tests.checkpoint.states import KINDS, held_of, random_tensors, save_checkpoint


def edit_index(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((checkpoint / "engine.json").read_text())
    change(index)
    (checkpoint / "engine.json").write_text(json.dumps(index))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, 3)


TENSORS = random_tensors(seed=3)


def test_what_was_held_is_read_back(checkpoint: Path) -> None:
    stored = StoredState(checkpoint)
    assert list(stored) == ["a", "b"] and stored.kinds == KINDS
    assert stored.counters == {"optimizer_updates": 3}
    for factor, kind in enumerate(KINDS, start=1):
        for name, tensor in TENSORS.items():
            assert torch.equal(stored.whole(name, kind), tensor * factor)


def test_a_slice_reads_its_part_and_zeroes_its_padding(checkpoint: Path) -> None:
    piece = Slice(0, 1, 2, padded=120)  # rows 60 ... 119 of 100
    values = torch.full((600,), 9.0)
    StoredState(checkpoint).fill(Fragment("a", (100, 10), piece, 0, 600), "master", values)
    assert torch.equal(values.view(60, 10), piece.cut(TENSORS["a"]))


def test_replicas_are_not_saved(tmp_path: Path) -> None:
    held = held_of(TENSORS)
    replica = Held(held[0].fragment, {kind: values + 1 for kind, values in held[0].values.items()}, copy=2)
    assert [fragment.name for fragment in Snapshot([replica, *held]).fragments] == ["a", "b"]


def test_the_snapshot_is_a_copy() -> None:
    held = held_of(TENSORS)
    snapshot = Snapshot(held)
    held[0].values["master"].zero_()
    assert torch.equal(snapshot.values["master"]["a"].view(100, 10), TENSORS["a"])


def test_a_loaded_state_is_checked(checkpoint: Path) -> None:
    stored, channel = StoredState(checkpoint), Channel()
    stored.check(held_of(TENSORS), channel)
    stored.check([*held_of(TENSORS), *(Held(part.fragment, part.values, 1) for part in held_of(TENSORS))], channel)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copy", [0, 4])
def test_a_changed_element_is_found(kind: str, copy: int, checkpoint: Path) -> None:
    held = held_of(TENSORS)
    changed = Held(held[0].fragment, {k: v.clone() for k, v in held[0].values.items()}, copy)
    changed.values[kind][5] += 1e-3
    others = held[1:] if copy == 0 else held
    with pytest.raises(CheckpointError, match=r"not the one that was saved .*another digest of a"):
        StoredState(checkpoint).check([changed, *others], Channel())


def test_what_else_was_loaded_is_checked_where_a_kind_was_left_behind(checkpoint: Path) -> None:
    held = [
        Held(part.fragment, {kind: part.values[kind].clone() for kind in ("master", "exp_avg")})
        for part in held_of(TENSORS)
    ]
    StoredState(checkpoint).check(held, Channel())
    held[1].values["exp_avg"][3] += 1e-3
    with pytest.raises(CheckpointError, match="another digest of b"):
        StoredState(checkpoint).check(held, Channel())


def test_a_tensor_that_is_no_longer_frozen_has_no_digest_to_compare(checkpoint: Path) -> None:
    """In bf16 it was stored rounded; its average, if the others have one, begins now."""

    def freeze(index: dict[str, Any]) -> None:
        index["tensors"]["b"]["digests"] = {"master": "0123456789abcdef"}

    edit_index(checkpoint, freeze)
    StoredState(checkpoint).check(held_of(TENSORS), Channel())
    with pytest.raises(CheckpointError, match="another digest of b"):
        StoredState(checkpoint).check(held_of({"a": TENSORS["a"]}), Channel())


def test_a_tensor_that_nobody_loaded_is_found(checkpoint: Path) -> None:
    """A parameter group that is passed over keeps its initial values without any error elsewhere."""
    with pytest.raises(CheckpointError, match="another digest of b"):
        StoredState(checkpoint).check(held_of({"a": TENSORS["a"]}), Channel())


@pytest.mark.parametrize(
    "fragment, said",
    [
        (Fragment("c", (3,), None, 0, 3), "has no tensor 'c'"),
        (Fragment("b", (8,), None, 0, 8), r"'b' has another shape in the checkpoint \(found \[7\], expected \[8\]\)"),
    ],
)
def test_another_model_is_refused(fragment: Fragment, said: str, checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        StoredState(checkpoint).fill(fragment, "master", torch.empty(fragment.stop))


def test_a_missing_part_is_refused(checkpoint: Path) -> None:
    def shorten(index: dict[str, Any]) -> None:
        index["tensors"]["b"]["fragments"][0]["stop"] = 5

    edit_index(checkpoint, shorten)
    with pytest.raises(CheckpointError, match=r"has not all of 'b' \(found 5 elements, expected 7\)"):
        StoredState(checkpoint).whole("b")


def test_a_kind_that_was_not_saved_starts_at_zero(checkpoint: Path) -> None:
    """A weight that was frozen has no moments."""

    def freeze(index: dict[str, Any]) -> None:
        del index["tensors"]["b"]["digests"]["exp_avg"]

    edit_index(checkpoint, freeze)
    assert torch.equal(StoredState(checkpoint).whole("b", "exp_avg"), torch.zeros(7))


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"x" * 40)], ids=["gone", "garbage"])
def test_an_unreadable_file_is_named(spoil: Callable[[Path], object], checkpoint: Path) -> None:
    spoil(checkpoint / "tensors" / "exp_avg-00000.safetensors")
    with pytest.raises(CheckpointError, match=r"exp_avg-00000\.safetensors: a file of the checkpoint cannot be read"):
        StoredState(checkpoint).whole("a", "exp_avg")
