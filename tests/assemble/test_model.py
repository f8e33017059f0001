"""The model of a recipe: which config and weights, what the run folder keeps of it, and which engine trains it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megacpt.assemble import model
from megacpt.checkpoint.huggingface import SafetensorsWeights
from megacpt.data.tokenizer_fingerprint import hugging_face_fingerprint
from megacpt.errors import ModelError, RecipeError
from megacpt.model.fill import RandomWeights
from tests.assemble.recipes import resolved
from tests.model.whole import small_config

CPU = torch.device("cpu")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model's folder with a tokenizer."""
    folder = tmp_path / "base"
    config = small_config("llama", num_hidden_layers=6, rope_parameters={"rope_type": "default", "rope_theta": 5e4})
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')
    (folder / "generation_config.json").write_text("{}")
    (folder / "notes.txt").write_text("not a part of the model")
    return folder


def pretrained(base: Path, *changes: str) -> list[str]:
    return ["model.init=pretrained", f"model.path={base}", *changes]


def test_random_weights_need_no_folder(tmp_path: Path) -> None:
    recipe = resolved(tmp_path, "seed=4").recipe
    assert model.model_folder(recipe) is None
    config = model.hf_config(recipe, None)
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("llama", 32, 6)
    source = model.weights(recipe, model.blueprint(recipe, config, CPU), None)
    assert isinstance(source, RandomWeights) and source.seed == 4
    assert "model_type" in recipe.model.config


def test_pretrained_weights_come_from_the_folder(base: Path, tmp_path: Path) -> None:
    recipe = resolved(tmp_path, *pretrained(base)).recipe
    assert model.model_folder(recipe) == base
    config = model.hf_config(recipe, base)
    plan = model.blueprint(recipe, config, CPU)
    source = model.weights(recipe, plan, base)
    assert isinstance(source, SafetensorsWeights) and source.folder == base
    assert plan.dtype is torch.float32 and plan.attention == "sdpa"


def test_what_the_recipe_promises_of_a_model_from_the_hub_is_checked(base: Path, tmp_path: Path) -> None:
    """Its config comes only with its weights."""
    kept, broken = (
        resolved(tmp_path, *pretrained(Path("nobody/model"), f"model.config.rope_theta={theta}")).recipe
        for theta in (50_000.0, 10_000.0)
    )
    assert model.hf_config(kept, base).model_type == "llama"
    with pytest.raises(RecipeError, match=r"rope_theta: the model is not the one .*found 50000\.0 in .*config\.json"):
        model.hf_config(broken, base)


def test_triton_without_a_gpu_is_refused_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = resolved(tmp_path, "loss.kernel=triton").recipe
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RecipeError, match=r"loss\.kernel: the Triton kernels need a GPU \(found triton on a cpu"):
        model.blueprint(recipe, model.hf_config(recipe, None), CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert model.blueprint(recipe, model.hf_config(recipe, None), CPU).vocab_size


def test_an_architecture_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    recipe = resolved(tmp_path, "model.config.model_type=gpt_neox").recipe
    with pytest.raises(ModelError, match="'gpt_neox' is not understood"):
        model.blueprint(recipe, model.hf_config(recipe, None), CPU)


def test_a_backend_that_cannot_run_here_is_refused(tmp_path: Path) -> None:
    recipe = resolved(tmp_path, "model.attention=flash_attention_2", "model.dtype=bfloat16").recipe
    with pytest.raises(ModelError, match="'flash_attention_2' cannot run here"):
        model.blueprint(recipe, model.hf_config(recipe, None), CPU)


def test_the_run_folder_keeps_a_config_that_transformers_loads(tmp_path: Path) -> None:
    recipe = resolved(tmp_path, "model.dtype=bfloat16").recipe
    plan = model.blueprint(recipe, model.hf_config(recipe, None), CPU)
    model.keep_model_files(recipe, plan, None, tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["config.json"]
    kept = AutoConfig.from_pretrained(tmp_path / "kept")
    assert kept.architectures == ["LlamaForCausalLM"] and kept.dtype is torch.bfloat16
    assert (kept.vocab_size, kept.num_hidden_layers) == (118, 6)
    assert "megacpt" not in (tmp_path / "kept" / "config.json").read_text()


def test_the_run_folder_keeps_the_base_models_own_files(base: Path, tmp_path: Path) -> None:
    values = json.loads((base / "config.json").read_text()) | {"torch_dtype": "float16", "our_own_key": 1}
    (base / "config.json").write_text(json.dumps(values))
    recipe = resolved(tmp_path, *pretrained(base)).recipe
    plan = model.blueprint(recipe, model.hf_config(recipe, base), CPU)
    model.keep_model_files(recipe, plan, base, tmp_path / "kept")
    kept = json.loads((tmp_path / "kept" / "config.json").read_text())
    assert kept == {key: value for key, value in values.items() if key != "torch_dtype"} | {"dtype": "float32"}
    names = {path.name for path in (tmp_path / "kept").iterdir()}
    assert names == {"config.json", "tokenizer.json", "generation_config.json"}
    assert (tmp_path / "kept" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_the_tokenizer_may_lie_elsewhere(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"b": 0}, "merges": []}}')
    own, named = (
        resolved(tmp_path, *pretrained(base, *changes)).recipe for changes in ([], [f"model.tokenizer={other}"])
    )
    assert model.tokenizer_fingerprint(own, base) == hugging_face_fingerprint(base / "tokenizer.json")
    assert model.tokenizer_fingerprint(named, base) == hugging_face_fingerprint(other / "tokenizer.json")
    assert model.tokenizer_fingerprint(own, base) != model.tokenizer_fingerprint(named, base)
    (base / "tokenizer.json").unlink()
    assert model.tokenizer_fingerprint(own, base) is None
    assert model.tokenizer_fingerprint(resolved(tmp_path).recipe, None) is None


def test_the_plan_in_words(tmp_path: Path) -> None:
    run = resolved(tmp_path, "parallel.pipeline=3", world_size=6)
    plan = model.blueprint(run.recipe, model.hf_config(run.recipe, None), CPU)
    words = model.describe(run, plan, [0, 4, 6, 8], CPU)
    assert words["model"].startswith("random (llama), ")
    assert f"{plan.num_parameters():,} parameters" in words["model"]
    assert words["compute"] == "float32 on 6 x cpu, attention sdpa, fused ops off"
    assert words["layout"] == "pipeline 3 x data 2 x tensor 1, layers 3 + 2 + 1"
    assert words["step"] == "8 rows x 16 = 128 tokens, 4 micro-batches of 1 a rank"
    assert words["run"] == "100 steps, 12,800 tokens"
