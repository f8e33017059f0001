"""Bad input is answered with one clear line that names the place and says what to do; nothing is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megacpt.data.corpus import open_corpus
from megacpt_tools.cli import main as megacpt
from tests.parity import tiny
from tests.parity.runs import refusal, write_recipe


@pytest.mark.parametrize(
    "change, said",
    [
        (["lr.peek=1"], "peak"),
        (["batch.global_rows=many"], "batch.global_rows"),
        (["batch.global_rows=7", "batch.micro_rows=2"], "6 or 8"),
        (["parallel.tensor=3"], "parallel.tensor"),
        (["data.domains.new.shards=/nowhere"], "/nowhere"),
        (["model.config.num_hidden_layers=two"], "num_hidden_layers"),
    ],
)
def test_recipe_mistakes(change: list[str], said: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    assert said in refusal(recipe, *(part for key in change for part in ("--set", key)))
    assert not (tmp_path / "runs").exists()


def test_a_world_that_does_not_fit(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, parallel={"pipeline": 2})
    text = refusal(recipe, world_size=3)
    assert "3" in text and "pipeline" in text


def test_a_truncated_shard(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    shard = tmp_path / "new.bin"
    os.truncate(shard, shard.stat().st_size - 10)
    text = refusal(recipe)
    assert str(shard) in text and "data.domains.new.shards" in text


def built_shards(folder: Path, tokenizer: Path, name: str) -> Path:
    """Shards of a few documents, made by the command."""
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": "a sentence of words " * 20}) + "\n" for _ in range(9)))
    output = folder / name
    command = ["shards", "build", "--input", str(text), "--tokenizer", str(tokenizer), "--output", str(output)]
    assert megacpt([*command, "--eos-token", "</s>", "--workers", "1"]) == 0
    return output


def word_tokenizer(path: Path, words: list[str]) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", "</s>", *words])}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


def test_shards_of_another_tokenizer(tmp_path: Path) -> None:
    first = built_shards(tmp_path, word_tokenizer(tmp_path / "a.json", ["a", "sentence", "of"]), "first")
    second = built_shards(tmp_path, word_tokenizer(tmp_path / "b.json", ["words", "of", "a"]), "second")
    domains = {"new": first, "old": second}
    changes = [part for name, path in domains.items() for part in ("--set", f"data.domains.{name}.shards={path}")]
    text = refusal(write_recipe(tmp_path), *changes)
    assert "another tokenizer" in text and "data.domains.old.shards" in text


def test_a_vocabulary_larger_than_the_models(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(200)]
    shards = built_shards(tmp_path, word_tokenizer(tmp_path / "big.json", words), "big")
    assert open_corpus(shards).tokenizer is not None
    assert "larger vocabulary" in refusal(write_recipe(tmp_path), "--set", f"data.domains.new.shards={shards}")


def test_a_weights_folder_without_a_tensor(tmp_path: Path) -> None:
    base = tiny.save_tiny_model("llama", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    recipe = write_recipe(tmp_path, model={"init": "pretrained", "path": str(base), "config": {}})
    assert "model.layers.1.mlp.up_proj.weight" in refusal(recipe)


def test_weights_of_another_shape(tmp_path: Path) -> None:
    base = tiny.save_tiny_model("llama", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(5)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    recipe = write_recipe(tmp_path, model={"init": "pretrained", "path": str(base), "config": {}})
    assert "model.norm.weight" in refusal(recipe)


def test_a_model_that_is_not_what_the_recipe_promises(tmp_path: Path) -> None:
    base = tiny.save_tiny_model("llama", tmp_path / "base")
    recipe = write_recipe(tmp_path, model={"init": "pretrained", "path": str(base), "config": {"rope_theta": 500000.0}})
    text = refusal(recipe)
    assert "rope_theta" in text and "10000" in text


def test_a_domain_read_too_often(tmp_path: Path) -> None:
    text = refusal(write_recipe(tmp_path), "--set", "training.tokens=65536")
    assert "data.domains.new.max_epochs" in text and "39.4 times" in text


@pytest.mark.parametrize(
    "content, said",
    [("", "no document"), ('{"text": "fine"}\n{"text": broken}\n', ":2"), ('{"body": "no text"}\n', ":1")],
)
def test_broken_jsonl(content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(content)
    tokenizer = word_tokenizer(tmp_path / "a.json", ["fine"])
    command = ["shards", "build", "--input", str(text), "--tokenizer", str(tokenizer), "--output", str(tmp_path / "o")]
    assert megacpt([*command, "--eos-token", "</s>", "--workers", "1"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert not (tmp_path / "o" / "manifest.json").exists()
