"""From a checkpoint to a Hugging Face folder, one tensor at a time, on any machine.

Weights are the masters rounded to the training dtype, as training itself rounds them; a tied head is left out, as
transformers does. The config and the tokenizer are those that the run started from, copied from the run folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from megacpt.checkpoint.folder import damage, find_checkpoint, read_state
from megacpt.checkpoint.huggingface import INDEX, SINGLE
from megacpt.checkpoint.state import TENSORS, StoredState
from megacpt.errors import CheckpointError
from megacpt.parallel.fragments import MASTER

MODEL_FILES = "model"
"""The run folder's copy of the config and tokenizer files."""


def export(
    source: Path,
    target: Path,
    *,
    kind: str = MASTER,
    max_file_bytes: int = 5 * 10**9,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write the weights of a run or checkpoint as a Hugging Face folder that transformers loads.

    Args:
        source: a run folder (its newest checkpoint is taken) or a checkpoint.
        target: a new or empty folder.
        kind: which weights: the masters, or another kind that the checkpoint has, as `average`. What was frozen has
            masters only, and these are taken.
        max_file_bytes: a safetensors file is closed before it grows beyond this.
        progress: called with (tensors done, tensors in all).

    Returns:
        The checkpoint that was exported.

    Raises:
        CheckpointError: there is no complete checkpoint, it is damaged or has no such kind, or the target is not empty.
    """
    checkpoint = find_checkpoint(source)
    state = read_state(checkpoint)
    if found := damage(
        checkpoint,
        wanted=lambda file: not file.startswith(f"{TENSORS}/") or any(f"/{each}-" in file for each in (MASTER, kind)),
    ):
        raise CheckpointError("the checkpoint is damaged", where=str(checkpoint), found=found[0])
    model_files = checkpoint.parent.parent / MODEL_FILES
    if not (model_files / "config.json").is_file():
        raise CheckpointError(
            "the run folder's copy of the model's config is gone", where=str(model_files), expected="config.json"
        )
    if target.is_dir() and any(target.iterdir()):
        raise CheckpointError("the folder to export to is not empty", where=str(target), hint="Name a new one.")
    stored = StoredState(checkpoint)
    if kind not in stored.kinds:
        raise CheckpointError(
            f"the checkpoint holds no {kind}",
            where=str(checkpoint),
            found=", ".join(stored.kinds),
            hint="A run keeps an average with optimizer.average_decay.",
        )
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    names = list(stored)
    dtype = getattr(torch, state["dtype"])

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for done, name in enumerate(names, start=1):
            yield name, stored.whole(name, kind).to(dtype)
            progress(done, len(names))

    write_safetensors(partial, tensors(), max_file_bytes)
    for file in model_files.iterdir():
        shutil.copy2(file, partial / file.name)
    if target.is_dir():
        target.rmdir()
    partial.rename(target)
    return checkpoint


def write_safetensors(target: Path, tensors: Iterator[tuple[str, torch.Tensor]], max_file_bytes: int) -> None:
    """Write tensors to one model.safetensors, or to numbered shards with an index, holding one shard at a time."""
    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    pending_bytes = total_bytes = 0

    def flush() -> None:
        nonlocal pending, pending_bytes
        save_file(pending, target / f"shard-{len(shards):05d}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending, pending_bytes = {}, 0

    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if pending and pending_bytes + size > max_file_bytes:
            flush()
        pending[name] = tensor
        pending_bytes += size
        total_bytes += size
    flush()
    if len(shards) == 1:
        (target / "shard-00000").rename(target / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (target / f"shard-{number:05d}").rename(target / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (target / INDEX).write_text(json.dumps(index, indent=2) + "\n")
