"""What would train without an error, and wrongly, is found before the first step."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megacpt.assemble import preflight
from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.huggingface import SafetensorsWeights
from megacpt.data.corpus import Corpus
from megacpt.data.special_tokens import SpecialTokens
from megacpt.data.tokenizer_fingerprint import hugging_face_fingerprint
from megacpt.errors import CheckpointError, DataError, LaunchError, ModelError
from megacpt.model.blueprint import Blueprint
from megacpt.recipe import Architecture
from tests.assemble.recipes import resolved
from tests.data.memory_corpus import MemoryCorpus
from tests.data.test_manifest import tokenizer_record, write_folder
from tests.model.whole import small_config

KNOWN = SpecialTokens(bos_id=1, eos_id=2, adds_bos=True, end_ids=frozenset({2, 9}))
AS_KNOWN = {"bos_id": 1, "adds_bos": True, "eos_id": 2}


def parts(**changes: object) -> dict[str, dict[str, Corpus]]:
    corpus = cast(Any, MemoryCorpus([20]))
    corpus.tokenizer = tokenizer_record(**{**AS_KNOWN, **changes})
    return {"held_out": {"law": corpus}}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"adds_bos": False}, r"law\.held_out: .*do not begin .*found no BOS, expected BOS 1\)"),
        ({"bos_id": 5}, r"found BOS 5, expected BOS 1\)"),
        ({"eos_id": 3}, r"law\.held_out: .*no EOS of the model \(found 3, expected 2 or 9\)"),
    ],
)
def test_documents_that_begin_or_end_otherwise_are_refused_unless_told(
    changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    recipe = resolved(tmp_path).recipe
    preflight.check_special_tokens(recipe, parts(), KNOWN)
    preflight.check_special_tokens(recipe, parts(eos_id=9), KNOWN)
    preflight.check_special_tokens(recipe, parts(**changes), None)
    with pytest.raises(DataError, match=said):
        preflight.check_special_tokens(recipe, parts(**changes), KNOWN)
    as_built = resolved(tmp_path, "data.special_tokens=as_built").recipe
    preflight.check_special_tokens(as_built, parts(**changes), KNOWN)


def test_documents_with_a_bos_that_the_model_does_not_know(tmp_path: Path) -> None:
    known = SpecialTokens(bos_id=1, eos_id=2, adds_bos=False, end_ids=frozenset())
    with pytest.raises(DataError, match=r"found BOS 1, expected no BOS\)"):
        preflight.check_special_tokens(resolved(tmp_path).recipe, parts(), known)


def test_documents_without_an_end_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preflight.check_special_tokens(resolved(tmp_path).recipe, parts(adds_eos=False), KNOWN)
    assert "law.held_out: no token ends a document" in capsys.readouterr().err


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied model of 6 layers with a tokenizer that adds no BOS."""
    folder = tmp_path_factory.mktemp("base")
    config = small_config("llama", num_hidden_layers=6, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture
def base(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "base"))


def edit_head(folder: Path, head: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors if head is None else tensors | {"lm_head.weight": head}, folder / "model.safetensors")


def check_head(folder: Path, tied: bool, **changes: int) -> None:
    config = small_config("llama", num_hidden_layers=6, tie_word_embeddings=tied, **changes)
    plan = Blueprint(config, torch.float32)
    preflight.check_head(plan, SafetensorsWeights(folder))


def test_a_head_that_tie_word_embeddings_contradicts_is_refused(base: Path) -> None:
    check_head(base, tied=False)
    with pytest.raises(ModelError, match=r"'lm_head\.weight' that differs from 'model\.embed_tokens\.weight'"):
        check_head(base, tied=True)
    edit_head(base, load_file(base / "model.safetensors")["model.embed_tokens.weight"].clone())
    check_head(base, tied=True)
    edit_head(base, None)
    check_head(base, tied=True)
    with pytest.raises(ModelError, match=r"but there are none \(found no tensor 'lm_head\.weight'\)"):
        check_head(base, tied=False)


@pytest.mark.parametrize("vocab_size", [110, 126])
def test_weights_of_another_vocabulary_are_refused(base: Path, vocab_size: int) -> None:
    with pytest.raises(
        ModelError, match=rf"at 'model\.embed_tokens\.weight' \(found 118 rows, expected {vocab_size}, the config's"
    ):
        check_head(base, tied=False, vocab_size=vocab_size)
    edit_head(base, torch.zeros(vocab_size, 32))
    with pytest.raises(ModelError, match=rf"at 'lm_head\.weight' \(found {vocab_size} rows, expected 118"):
        check_head(base, tied=False)


def test_a_disk_without_room_is_warned_of_and_refused_where_not_one_checkpoint_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = resolved(tmp_path)
    architecture = Architecture.from_config(run.recipe.model.config)
    needed_bytes = 3 * 12 * architecture.num_parameters  # two are kept while a third is written
    usage = shutil.disk_usage(tmp_path)
    present = tmp_path / "run" / "checkpoints" / "step" / "weights"
    present.parent.mkdir(parents=True)
    present.write_bytes(b"1234")

    def check(free_bytes: int, *changes: str) -> str:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free_bytes))
        preflight.check_disk(resolved(tmp_path, *changes), architecture, tmp_path / "run", Channel())
        return capsys.readouterr().err

    assert "make room" not in check(needed_bytes - 4)
    assert "make room" in check(needed_bytes - 5)
    assert "make room" in check(needed_bytes // 3)
    with pytest.raises(CheckpointError, match="no room for one checkpoint"):
        check(needed_bytes // 3 - 1)
    check(0, "checkpoint.every=null", "checkpoint.at_end=false")


def test_a_run_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    preflight.check_writable(tmp_path / "runs" / "new")
    assert list(tmp_path.iterdir()) == [], "nothing is made for a run that may yet be refused"
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(LaunchError, match=r"runs/new: the run folder cannot be written \(found Not a directory, on "):
        preflight.check_writable(tmp_path / "runs" / "new")


def test_wandb_that_is_asked_for_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    preflight.check_wandb(resolved(tmp_path).recipe)
    with pytest.raises(LaunchError, match=r"^--set: logging\.wandb: .*pip install 'megacpt\[wandb\]'"):
        preflight.check_wandb(resolved(tmp_path, "logging.wandb={project: p}").recipe)


def findings(folder: Path, base: Path, *changes: str) -> dict[str, tuple[str, str]]:
    run = resolved(folder, "model.init=pretrained", f"model.path={base}", "model.config={}", *changes)
    return {finding.name: (finding.verdict, finding.text) for finding in preflight.examine(run)}


def test_everything_is_looked_at_and_what_needs_a_broken_thing_is_not(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fingerprint = hugging_face_fingerprint(base / "tokenizer.json")
    for name in ("law", "law-held-out", "web", "exam"):
        write_folder(tmp_path / name, [[[1] * 400] * 5], fingerprint=fingerprint, eos_id=2)
    found = findings(tmp_path, base)
    assert list(found) == list(preflight.CHECKS)
    assert {verdict for verdict, _ in found.values()} == {"ok", "warning"}
    assert found["epochs"] == ("warning", found["epochs"][1]) and "domain law is read 4." in found["epochs"][1]
    assert found["documents"][1] == "no BOS, EOS 2"
    assert found["head"][1] == "weights of its own"
    assert found["insertions"] == ("ok", "none")
    assert found["mixture"] == ("ok", "static")
    agent = ("data.domains.web.held_out=web", "mixture={controller: agent, agent: nowhere}")
    verdict, text = findings(tmp_path, base, *agent)["mixture"]
    assert verdict == "error" and "nowhere: this is no agent" in text

    canaries = tmp_path / "canaries.jsonl"
    canaries.write_text('{"name": "a", "tokens": [5, 6], "at": [3, 4000]}')
    assert findings(tmp_path, base, f"data.insertions={canaries}")["insertions"] == ("ok", "in 2 places of 2 steps")
    canaries.write_text('{"name": "a", "tokens": [5, 6], "at": [3, 4]}')
    assert "in each other's way" in findings(tmp_path, base, f"data.insertions={canaries}")["insertions"][1]

    write_folder(tmp_path / "exam", [[[1] * 400]], fingerprint=fingerprint, eos_id=2, adds_bos=True, bos_id=1)
    assert findings(tmp_path, base)["documents"][0] == "error"
    shutil.rmtree(tmp_path / "web")
    found = findings(tmp_path, base)
    assert found["shards"][0] == "error" and "data.domains.web.shards" in found["shards"][1]
    assert [found[name][0] for name in ("head", "tokenizer", "epochs", "disk")] == ["ok", *["not checked"] * 2, "ok"]
