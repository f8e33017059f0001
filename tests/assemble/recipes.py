"""A small recipe on a number of processes; its shards are named and need not exist."""

from __future__ import annotations

from pathlib import Path

from megacpt.recipe import Resolved, load_recipe, resolve

TEXT = """\
name: small
model:
  init: random
  dtype: float32
  config:
    model_type: llama
    hidden_size: 32
    intermediate_size: 48
    num_hidden_layers: 6
    num_attention_heads: 4
    num_key_value_heads: 2
    vocab_size: 118
    max_position_embeddings: 64
data:
  sequence_length: 16
  domains:
    law: {role: new, shards: law, held_out: law-held-out, weight: 3}
    web: {role: replay, shards: web, weight: 1}
    exam: {role: anchor, held_out: exam}
batch: {global_rows: 8}
lr: {peak: 1e-3}
training: {tokens: 12800}
"""


def resolved(folder: Path, *overrides: str, world_size: int = 1) -> Resolved:
    """The recipe, written to `folder` and changed by "key=value"s, for `world_size` processes."""
    path = folder / "small.yaml"
    path.write_text(TEXT)
    return resolve(load_recipe(str(path), list(overrides)), world_size)
