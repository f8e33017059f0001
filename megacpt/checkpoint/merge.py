"""Sums of models: what an instruction-tuned model learned added to a new base, a point between two models, a mean.

Every merge is theta = sum_i w_i * theta_i, tensor by tensor, accumulated in fp32: differences of two bf16 models are
small beside the models, and bf16 would round them away. One tensor of one model is in memory at a time, beside the sum
and the file that is being written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from megacpt.checkpoint.export import write_safetensors
from megacpt.checkpoint.huggingface import SafetensorsWeights
from megacpt.data.tokenizer_fingerprint import hugging_face_fingerprint
from megacpt.errors import ModelError

MAX_FILE_BYTES = 10**9

_SHAPE_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)
_TIED_HEAD = "lm_head.weight"


def residual(cpt: Path, instruct: Path, base: Path, scale: float = 1.0) -> list[tuple[Path, float]]:
    """Terms of theta = theta_cpt + scale * (theta_instruct - theta_base): instruction tuning for a trained base.

    Jindal et al. 2024, "Balancing Continuous Pre-Training and Instruction Fine-Tuning", arXiv:2410.10739. The
    difference comes first, so that with theta_cpt = theta_base the result is theta_instruct itself.
    """
    return [(instruct, scale), (base, -scale), (cpt, 1.0)]


def lerp(base: Path, cpt: Path, share: float) -> list[tuple[Path, float]]:
    """Terms of theta = (1 - share) * theta_base + share * theta_cpt: a dial between keeping and learning.

    Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv:2109.01903.
    """
    return [(base, 1 - share), (cpt, share)]


def average(models: Sequence[Path], weights: Sequence[float] | None = None) -> list[tuple[Path, float]]:
    """Terms of a weighted mean, equal weights by default: checkpoints of a constant or slowly falling learning rate.

    Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima", arXiv:1803.05407.

    Raises:
        ModelError: not a weight for each model, or weights that sum to nothing.
    """
    weights = [1.0] * len(models) if weights is None else list(weights)
    total = sum(weights)
    if len(weights) != len(models) or not total:
        raise ModelError("a mean needs a weight for each model", found=f"{len(weights)} weights, {len(models)} models")
    return [(model, weight / total) for model, weight in zip(models, weights, strict=True)]


def merge(
    terms: Sequence[tuple[Path, float]],
    target: Path,
    *,
    files_from: Path,
    max_file_bytes: int = MAX_FILE_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a sum of models as a Hugging Face folder.

    Args:
        terms: Hugging Face folders and their factors; the sum is taken in this order.
        target: a new or empty folder.
        files_from: one of the folders; the config, the tokenizer and the dtypes are its.
        max_file_bytes: a safetensors file is closed before it grows beyond this; so much is held in memory.
        progress: called with (tensors done, tensors in all).

    Raises:
        ModelError: the models differ in shape, rope, tokenizer or tensors, or the target is not empty.
    """
    if target.is_dir() and any(target.iterdir()):
        raise ModelError("the folder to write to is not empty", where=str(target), hint="Name a new one.")
    folders = list(dict.fromkeys([files_from, *(folder for folder, _ in terms)]))
    for other in folders[1:]:
        _check_alike(files_from, other)
    weights = {folder: SafetensorsWeights(folder) for folder in folders}
    names = [name for name in weights[files_from].files if not (name == _TIED_HEAD and _is_tied(files_from))]
    for folder in folders[1:]:
        odd = {
            name for name in set(names) ^ set(weights[folder].files) if not (name == _TIED_HEAD and _is_tied(folder))
        }
        if odd:
            raise ModelError(
                "the models hold other tensors",
                where=str(folder),
                found=", ".join(sorted(odd)[:4]),
                expected="the same",
            )

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for done, name in enumerate(names, start=1):
            like = weights[files_from].read(name, None)
            total = torch.zeros(like.shape, dtype=torch.float32)
            for folder, factor in terms:
                part = weights[folder].read(name, None)
                if part.shape != like.shape:
                    raise ModelError(
                        f"'{name}' has another shape",
                        where=str(folder),
                        found=list(part.shape),
                        expected=list(like.shape),
                    )
                total.add_(part, alpha=factor)
            yield name, total.to(like.dtype)
            progress(done, len(names))

    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_safetensors(partial, tensors(), max_file_bytes)
    for file in files_from.iterdir():
        if (
            file.is_file()
            and not file.name.startswith("model")
            and file.suffix not in (".safetensors", ".bin", ".gguf")
        ):
            shutil.copy2(file, partial / file.name)
    if target.is_dir():
        target.rmdir()
    partial.rename(target)


def _check_alike(one: Path, other: Path) -> None:
    """Refuse models whose weights do not mean the same.

    Raises:
        ModelError: naming the first difference.
    """
    ours, theirs = _config(one), _config(other)
    for config in (ours, theirs):
        _complete(config)
    differences = [key for key in _SHAPE_KEYS if ours.get(key) != theirs.get(key)]
    if _rope(ours) != _rope(theirs):
        differences.append("rope")
    if differences:
        key = differences[0]
        found, expected = (_rope(theirs), _rope(ours)) if key == "rope" else (theirs.get(key), ours.get(key))
        raise ModelError(
            f"these models cannot be added: they differ in {', '.join(differences)}",
            where=str(other / "config.json"),
            found=f"{key} {found}",
            expected=f"{expected}, as {one}",
        )
    files = [folder / "tokenizer.json" for folder in (one, other)]
    if all(file.is_file() for file in files) and len({hugging_face_fingerprint(file) for file in files}) > 1:
        raise ModelError(
            "these models cannot be added: their tokenizers differ",
            where=str(files[1]),
            expected=f"that of {one}",
            hint="The same row of the embedding would mean another token.",
        )


def _config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ModelError("no config.json that can be read", where=str(folder), found=error) from None


def _complete(config: dict[str, Any]) -> None:
    """State what some versions of transformers leave out of a config and others write, where the model has no value of
    its own for it."""
    config["tie_word_embeddings"] = bool(config.get("tie_word_embeddings"))
    if num_heads := config.get("num_attention_heads"):
        config.setdefault("num_key_value_heads", num_heads)
        config["head_dim"] = config.get("head_dim") or config["hidden_size"] // num_heads


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding, as transformers 4 and 5 write it."""
    scaling = config.get("rope_scaling") or {}
    values = {"rope_theta": config.get("rope_theta")} | scaling | (config.get("rope_parameters") or {})
    values["rope_type"] = values.pop("type", None) or values.get("rope_type") or "default"
    return {key: value for key, value in values.items() if value is not None}


def _is_tied(folder: Path) -> bool:
    return bool(_config(folder).get("tie_word_embeddings"))
