"""A small complete recipe, and a folder of their own for the recipes that a test writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

MINIMAL = """\
model:
  init: random
  config:
    model_type: llama
    hidden_size: 64
    num_hidden_layers: 4
    num_attention_heads: 8
    num_key_value_heads: 4
    intermediate_size: 96
    vocab_size: 500
    max_position_embeddings: 128
data:
  sequence_length: 64
  domains:
    law: {role: new, shards: shards/law, held_out: shards/law-held-out, weight: 3}
    web: {role: replay, shards: [shards/a, shards/b], weight: 1}
batch: {global_rows: 16}
lr: {peak: 1e-4}
training: {tokens: 1M}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a file into the current directory, which is the test's own; without text, the minimal recipe."""
    monkeypatch.chdir(tmp_path)

    def write_file(name: str = "run.yaml", text: str = MINIMAL) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file
