"""Sums of models: exact arithmetic, whole folders, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megacpt.checkpoint.export import write_safetensors
from megacpt.checkpoint.huggingface import INDEX, SafetensorsWeights
from megacpt.checkpoint.merge import average, lerp, merge, residual
from megacpt.errors import ModelError

CONFIG = {"model_type": "llama", "vocab_size": 7, "hidden_size": 4, "tie_word_embeddings": True, "rope_theta": 1e4}
SHAPES = {"model.embed_tokens.weight": (7, 4), "model.layers.0.mlp.up_proj.weight": (5, 4), "model.norm.weight": (4,)}
Make = Callable[..., Path]


@pytest.fixture
def model(tmp_path: Path) -> Make:
    """Write a Hugging Face folder of random bf16 weights."""

    def make(name: str, seed: int, tokenizer: str = "a", scale: float = 1.0, **config: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        random = torch.Generator().manual_seed(seed)
        save_file(
            {key: (scale * torch.randn(shape, generator=random)).bfloat16() for key, shape in SHAPES.items()},
            folder / "model.safetensors",
        )
        (folder / "config.json").write_text(json.dumps(CONFIG | config))
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokenizer}}))
        (folder / "chat_template.jinja").write_text(name)
        return folder

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_residual_on_the_base_itself_is_the_instruction_tuned_model(model: Make, tmp_path: Path) -> None:
    base, instruct = model("base", 0), model("instruct", 1)
    merge(residual(base, instruct, base), tmp_path / "out", files_from=instruct)
    merged, expected = weights(tmp_path / "out"), weights(instruct)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "instruct"


def test_a_small_residual_is_not_rounded_away(model: Make, tmp_path: Path) -> None:
    """The sum is that of fp64, rounded once; in bf16 the difference would lose its digits first."""
    cpt, instruct, base = model("cpt", 0), model("instruct", 1), model("base", 2)
    merge(residual(cpt, instruct, base, scale=0.3), tmp_path / "out", files_from=instruct)
    for name, tensor in weights(tmp_path / "out").items():
        c, i, b = (weights(folder)[name].double() for folder in (cpt, instruct, base))
        exact = c + 0.3 * (i - b)
        # Half a unit in the last of bf16's 8 bits, and what four roundings in fp32 add.
        assert (
            (tensor.double() - exact)
            .abs()
            .le(exact.abs() * 2.0**-8 + 4 * 2.0**-24 * (c.abs() + i.abs() + b.abs()))
            .all()
        )


def test_interpolation_and_means(model: Make, tmp_path: Path) -> None:
    one, other = model("one", 0), model("other", 1)
    for name, terms in {
        "base": lerp(one, other, 0.0),
        "middle": lerp(one, other, 0.5),
        "mean": average([one, other]),
        "weighted": average([one, other], [2, 2]),
    }.items():
        merge(terms, tmp_path / name, files_from=other)
    assert all(torch.equal(weights(tmp_path / "base")[name], tensor) for name, tensor in weights(one).items())
    for name, tensor in weights(tmp_path / "middle").items():
        expected = ((weights(one)[name].float() + weights(other)[name].float()) / 2).bfloat16()
        assert torch.equal(tensor, expected)
        assert torch.equal(tensor, weights(tmp_path / "mean")[name])
        assert torch.equal(tensor, weights(tmp_path / "weighted")[name])


def test_models_in_other_files_are_added_all_the_same(model: Make, tmp_path: Path) -> None:
    one, other = model("one", 0), model("other", 1)
    tensors = weights(other)
    (other / "model.safetensors").unlink()
    write_safetensors(other, iter(tensors.items()), max_file_bytes=50)
    merge(average([one, other]), tmp_path / "out", files_from=other, max_file_bytes=50)
    assert (tmp_path / "out" / INDEX).is_file()
    merged = SafetensorsWeights(tmp_path / "out")
    assert all(merged.read(name, None).shape == tensor.shape for name, tensor in tensors.items())
    assert not (tmp_path / "out.partial").exists()


def test_a_tied_head_that_was_saved_is_left_out(model: Make, tmp_path: Path) -> None:
    one, other = model("one", 0), model("other", 1)
    tensors = weights(other)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, other / "model.safetensors")
    merge(average([one, other]), tmp_path / "out", files_from=other)
    assert weights(tmp_path / "out").keys() == tensors.keys()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_theta": 5e5}, "they differ in rope"),
        ({"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "they differ in rope"),
        ({"vocab_size": 8}, "they differ in vocab_size"),
        ({"tokenizer": "b"}, "their tokenizers differ"),
    ],
)
def test_models_that_mean_other_things_are_refused(
    changes: dict[str, Any], said: str, model: Make, tmp_path: Path
) -> None:
    one, other = model("one", 0), model("other", 1, **changes)
    with pytest.raises(ModelError, match=said):
        merge(average([one, other]), tmp_path / "out", files_from=one)
    assert not (tmp_path / "out").exists()


def test_rope_is_the_same_in_either_spelling(model: Make, tmp_path: Path) -> None:
    new = {"rope_theta": None, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}
    merge(average([model("one", 0), model("other", 1, **new)]), tmp_path / "out", files_from=tmp_path / "one")


def test_what_a_config_leaves_out_is_its_default(model: Make, tmp_path: Path) -> None:
    """Llama-3-8B's config states no head_dim; one that transformers has saved does."""
    heads = {"num_attention_heads": 2, "tie_word_embeddings": False}
    stated = model("stated", 0, **heads, num_key_value_heads=2, head_dim=2)
    silent = model("silent", 1, num_attention_heads=2, head_dim=None, tie_word_embeddings=None)
    merge(average([stated, silent]), tmp_path / "out", files_from=silent)
    with pytest.raises(ModelError, match="they differ in head_dim"):
        merge(average([silent, model("other", 2, **heads, head_dim=4)]), tmp_path / "none", files_from=silent)


def test_other_tensors_and_full_folders_are_refused(model: Make, tmp_path: Path) -> None:
    one, other = model("one", 0), model("other", 1)
    with pytest.raises(ModelError, match="not empty"):
        merge(average([one]), other, files_from=one)
    save_file(
        {name: tensor for name, tensor in weights(other).items() if "norm" not in name}, other / "model.safetensors"
    )
    with pytest.raises(ModelError, match=r"other tensors \(found model\.norm\.weight"):
        merge(average([one, other]), tmp_path / "out", files_from=one)
    with pytest.raises(ModelError, match="a weight for each"):
        average([one, other], [1.0])
