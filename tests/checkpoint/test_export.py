"""Export: a folder that transformers loads, whatever the number of files; what is copied, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megacpt.checkpoint.export import MODEL_FILES, export
from megacpt.checkpoint.huggingface import INDEX, SINGLE
from megacpt.errors import CheckpointError
from tests.checkpoint.states import save_checkpoint
from tests.model.whole import small_config

CONFIG = small_config("qwen2", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16)


@pytest.fixture
def run(model: torch.nn.Module, tmp_path: Path) -> Path:
    """A run folder with a checkpoint; that any layout's can be read whole is shown elsewhere."""
    folder = tmp_path / "run"
    (folder / MODEL_FILES).mkdir(parents=True)
    CONFIG.save_pretrained(folder / MODEL_FILES)
    (folder / MODEL_FILES / "tokenizer.json").write_text("{}")
    save_checkpoint(folder, 3, dict(model.named_parameters()), dtype="bfloat16")
    return folder


@torch.no_grad()
@pytest.mark.parametrize("max_file_bytes", [5 * 10**9, 9_000])
def test_transformers_loads_it(max_file_bytes: int, model: torch.nn.Module, run: Path, tmp_path: Path) -> None:
    target = tmp_path / "export"
    assert export(run, target, max_file_bytes=max_file_bytes).name == "step_000003"
    loaded = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
    expected = dict(model.named_parameters())
    actual = dict(loaded.named_parameters())
    assert actual.keys() == expected.keys()
    for name, parameter in actual.items():
        assert parameter.dtype is torch.bfloat16
        assert torch.equal(parameter, expected[name]), name
    ids = torch.arange(3, 11)[None]
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_one_file_or_an_index(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "one")
    whole = load_file(tmp_path / "one" / SINGLE)
    assert whole["model.embed_tokens.weight"].shape[0] == CONFIG.vocab_size
    assert not (tmp_path / "one" / INDEX).exists()

    export(run, tmp_path / "many", max_file_bytes=9_000)
    index = json.loads((tmp_path / "many" / INDEX).read_text())
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2 and set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in whole.values())
    assert index["weight_map"].keys() == whole.keys()
    for file in files:
        tensors = load_file(tmp_path / "many" / file)
        assert file.endswith(f"-of-{len(files):05d}.safetensors")
        assert all(index["weight_map"][name] == file for name in tensors)
        assert sum(t.numel() * t.element_size() for t in tensors.values()) <= 9_000
        with safe_open(tmp_path / "many" / file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert {path.name for path in (tmp_path / "many").iterdir()} - set(files) == {
        INDEX, "config.json", "tokenizer.json",
    }  # fmt: skip


def test_progress_reaches_the_number_of_tensors(model: torch.nn.Module, run: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    export(run, tmp_path / "export", progress=lambda done, total: seen.append((done, total)))
    total = len(list(model.parameters()))
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_a_checkpoint_may_be_named(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "step_000003"
    assert export(checkpoint, tmp_path / "export") == checkpoint


def test_nothing_is_written_over(run: Path, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    export(run, tmp_path / "export")
    with pytest.raises(CheckpointError, match="the folder to export to is not empty"):
        export(run, tmp_path / "export")


def test_a_run_without_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no complete checkpoint here"):
        export(tmp_path, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_run_without_its_config(run: Path, tmp_path: Path) -> None:
    (run / MODEL_FILES / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"copy of the model's config is gone"):
        export(run, tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("file", ["tensors/master-00000.safetensors", "engine.json", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_not_exported(file: str, run: Path, tmp_path: Path) -> None:
    path = run / "checkpoints" / "step_000003" / file
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=file.rpartition("/")[2]):
        export(run, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_moments_are_not_looked_at(run: Path, tmp_path: Path) -> None:
    (run / "checkpoints" / "step_000003" / "tensors" / "exp_avg-00000.safetensors").unlink()
    export(run, tmp_path / "export")
