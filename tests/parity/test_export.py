"""What is exported is the trained model, on any layout; with no step trained it is the base."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from megacpt.checkpoint.export import export
from megacpt.data.corpus import open_corpus
from tests.parity import tiny
from tests.parity.runs import evaluations_of, run_command, write_recipe

LAYOUTS = [(1, {}), (8, {"pipeline": 2, "tensor": 2}), (2, {"zero_stage": 3})]


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(3, 35).view(2, 16)
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("architecture", ["llama-tied", "qwen3", "gemma2", "phi3"])
def test_a_run_of_no_steps_exports_the_base(architecture: str, tmp_path: Path) -> None:
    base = tiny.save_tiny_model(architecture, tmp_path / "base")
    recipe = write_recipe(
        tmp_path,
        model={"init": "pretrained", "path": str(base), "config": {}},
        parallel={"pipeline": 2, "tensor": 2},
    )
    assert run_command(4, recipe, "--set", "training.stop_at_step=0") == [0] * 4
    export(tmp_path / "runs" / "small", tmp_path / "export")
    torch.testing.assert_close(logits(tmp_path / "export"), logits(base), rtol=0, atol=0)


@pytest.mark.parametrize("world_size, parallel", LAYOUTS, ids=str)
def test_the_export_has_the_loss_that_the_run_measured(world_size: int, parallel: dict, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, parallel=parallel)
    assert run_command(world_size, recipe) == [0] * world_size
    export(tmp_path / "runs" / "small", tmp_path / "export", max_file_bytes=20_000)
    assert len(list((tmp_path / "export").glob("*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)
    measured = evaluations_of(recipe)[-1]["domains"]
    assert measured["new"]["loss"] == pytest.approx(plain_loss(model, tmp_path / "new-held-out"), rel=1e-5)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_step_0_loss_is_that_of_transformers(architecture: str, tmp_path: Path) -> None:
    base = tiny.save_tiny_model(architecture, tmp_path / "base")
    recipe = write_recipe(tmp_path, model={"init": "pretrained", "path": str(base), "config": {}})
    assert run_command(2, recipe, "--set", "training.stop_at_step=0") == [0, 0]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    measured = evaluations_of(recipe)[0]["domains"]
    for domain in ("new", "old"):
        expected = plain_loss(model, tmp_path / f"{domain}-held-out")
        assert measured[domain]["loss"] == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def plain_loss(model: torch.nn.Module, shard: Path, row_tokens: int = 16) -> float:
    """Mean nll of held-out text by transformers: each stretch of a document inside a row run alone."""
    corpus = open_corpus(shard)
    starts = {*corpus.document_starts(0, corpus.num_tokens).tolist(), *range(0, corpus.num_tokens, row_tokens)}
    total, count = 0.0, 0
    bounds = [*sorted(starts), corpus.num_tokens]
    document_starts = set(corpus.document_starts(0, corpus.num_tokens).tolist())
    for start, stop in pairwise(bounds):
        # The first token of the next row is predicted, and read again as the next row's first input.
        end = stop if stop in document_starts or stop == corpus.num_tokens else stop + 1
        ids = torch.from_numpy(corpus.read(start, end - start))
        if len(ids) > 1:
            values = F.cross_entropy(model(input_ids=ids[None, :-1]).logits[0].float(), ids[1:], reduction="sum")
            total, count = total + values.item(), count + len(ids) - 1
    return total / count
