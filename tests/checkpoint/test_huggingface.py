"""Hugging Face folders: every layout of files that transformers writes, slices, and folders that are not understood."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from megacpt.checkpoint.huggingface import INDEX, SINGLE, SafetensorsWeights, find_folder, read_config
from megacpt.errors import ModelError
from megacpt.parallel.slices import Slice
from tests.model.whole import small_config

CONFIG = small_config("llama", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16)


def save(model: PreTrainedModel, folder: Path, layout: str) -> Path:
    """The model as a folder: in one file, in indexed ones, or the decoder alone."""
    if layout == "decoder alone":
        model.base_model.save_pretrained(folder)
    else:
        model.save_pretrained(folder, max_shard_size=20_000 if layout == "indexed" else "1GB")
    assert (folder / INDEX).exists() == (layout == "indexed")
    return folder


@pytest.mark.parametrize("layout", ["one file", "indexed", "decoder alone"])
def test_every_tensor_is_found(layout: str, model: PreTrainedModel, tmp_path: Path) -> None:
    weights = SafetensorsWeights(save(model, tmp_path, layout))
    for name, expected in model.named_parameters():
        if layout == "decoder alone" and name == "lm_head.weight":
            continue
        tensor = weights.read(name, None)
        assert tensor.dtype is torch.bfloat16
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("layout", ["one file", "indexed"])
@pytest.mark.parametrize("dim, count, padded", [(0, 2, None), (1, 4, None), (0, 4, 128), (0, 4, 256)])
def test_a_slice_read_is_the_whole_cut(
    layout: str, dim: int, count: int, padded: int | None, model: PreTrainedModel, tmp_path: Path
) -> None:
    weights = SafetensorsWeights(save(model, tmp_path, layout))
    name = "model.embed_tokens.weight"
    whole = model.get_parameter(name).detach()
    for index in range(count):
        piece = Slice(dim, index, count, padded)
        assert torch.equal(weights.read(name, piece), piece.cut(whole))


def test_other_names_of_the_decoder(tmp_path: Path) -> None:
    save_file({"norm.weight": torch.ones(3)}, tmp_path / SINGLE)
    assert SafetensorsWeights(tmp_path, "transformer").read("transformer.norm.weight", None).tolist() == [1.0] * 3
    with pytest.raises(ModelError, match=r"no tensor 'model\.norm\.weight'"):
        SafetensorsWeights(tmp_path, "transformer").read("model.norm.weight", None)


def test_a_missing_tensor_is_named(model: PreTrainedModel, tmp_path: Path) -> None:
    weights = SafetensorsWeights(save(model, tmp_path, "one file"))
    with pytest.raises(
        ModelError, match=r"has no tensor 'model\.layers\.9\.mlp\.up_proj\.weight'\. The weights are inc"
    ):
        weights.read("model.layers.9.mlp.up_proj.weight", None)


def test_a_missing_file_of_the_index_is_named(model: PreTrainedModel, tmp_path: Path) -> None:
    folder = save(model, tmp_path, "indexed")
    missing = sorted(folder.glob("*.safetensors"))[1]
    missing.unlink()
    with pytest.raises(ModelError, match=f"{missing.name}: a weights file named by the index is missing"):
        SafetensorsWeights(folder)


@pytest.mark.parametrize("layout", ["one file", "indexed"])
def test_a_truncated_file_is_named(layout: str, model: PreTrainedModel, tmp_path: Path) -> None:
    folder = save(model, tmp_path, layout)
    broken = min(folder.glob("*.safetensors"))
    broken.write_bytes(broken.read_bytes()[:-100])
    name = files_with_names(folder)[broken.name][0]
    with pytest.raises(ModelError, match=rf"{broken.name}: a weights file cannot be read .*Fetch it again"):
        SafetensorsWeights(folder).read(name, None)


def files_with_names(folder: Path) -> dict[str, list[str]]:
    """File -> some tensors in it."""
    if not (folder / INDEX).exists():
        return {SINGLE: ["model.norm.weight"]}
    names: dict[str, list[str]] = {}
    for name, file in json.loads((folder / INDEX).read_text())["weight_map"].items():
        names.setdefault(file, []).append(name)
    return names


def test_older_formats_are_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save({"model.norm.weight": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no safetensors .*expected model\.safetensors or .*save_pretrained"):
        SafetensorsWeights(tmp_path)


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert find_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["nobody/no-such-model", "/no/such/folder", "a name with spaces"])
def test_what_is_neither_folder_nor_on_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=rf"model\.path: this is no folder.*\(found {name}\)\. Check the spelling"
    ) as error:
        find_folder(name)
    assert "\n" not in str(error.value)


def test_the_hub_is_asked_for_what_training_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, object] = {}

    def download(name: str, **settings: object) -> str:
        asked.update(settings, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_folder("org/model", "v1") == tmp_path
    assert (asked["name"], asked["revision"]) == ("org/model", "v1")
    assert not any(str(pattern).endswith((".bin", ".pt", ".py")) for pattern in asked["allow_patterns"])  # type: ignore[attr-defined]


def test_offline_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **settings: object) -> str:
        raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder.\nMore lines.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ModelError, match=r"found org/model.*Cannot find an appropriate cached snapshot folder\.$"):
        find_folder("org/model")


def test_configs(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        read_config(tmp_path)
    CONFIG.save_pretrained(tmp_path)
    assert read_config(tmp_path).hidden_size == CONFIG.hidden_size
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llamma"}))
    with pytest.raises(ModelError, match=r"config\.json: config\.json is not understood .*llamma"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match=r"config\.json: config\.json is not understood"):
        read_config(tmp_path)


def test_code_of_a_model_folder_is_not_run(tmp_path: Path) -> None:
    values = {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "code.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    with pytest.raises(ModelError):
        read_config(tmp_path)
    assert not (tmp_path / "ran").exists()
