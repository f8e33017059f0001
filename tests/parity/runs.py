"""Small real runs through the training command: recipe, shards and model in a folder, ranks forked by the test pool."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from megacpt.data.shard import ShardWriter
from tests.distributed import run_ranks

VOCAB_SIZE = 118
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip


def write_shard(prefix: Path, num_documents: int = 60, seed: int = 0) -> Path:
    """A Megatron shard of random documents of 3 to 40 tokens."""
    random = np.random.default_rng(seed)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with ShardWriter(prefix, np.dtype(np.uint16)) as writer:
        for _ in range(num_documents):
            writer.add_document(random.integers(3, VOCAB_SIZE, random.integers(3, 41)).astype(np.uint16))
    return prefix


def write_recipe(folder: Path, **changes: Any) -> Path:
    """A recipe of 8 steps on two domains of random tokens; `changes` are merged over it, section by section."""
    recipe: dict[str, Any] = {
        "name": "small",
        "model": {"init": "random", "config": LLAMA, "dtype": "float32", "vocab_multiple": 8},
        "data": {
            "sequence_length": 16,
            "domains": {
                "new": {
                    "role": "new",
                    "shards": str(write_shard(folder / "new", seed=1)),
                    "held_out": str(write_shard(folder / "new-held-out", num_documents=9, seed=2)),
                    "weight": 3,
                    "target_weight": 6,
                },
                "old": {
                    "role": "replay",
                    "shards": str(write_shard(folder / "old", seed=3)),
                    "held_out": str(write_shard(folder / "old-held-out", num_documents=7, seed=4)),
                    "weight": 1,
                    "target_weight": 1,
                },
            },
        },
        "batch": {"global_rows": 8},
        "lr": {"schedule": "cosine", "peak": 2e-3, "warmup": "20%"},
        "training": {"tokens": 8 * 8 * 16},
        "evaluation": {"every": "50%", "dense_start": False, "tokens_per_domain": None},
        "checkpoint": {"every": "25%"},
        "logging": {"folder": str(folder / "runs"), "tensorboard": False},
    }
    for section, values in changes.items():
        recipe[section] = {**recipe.get(section, {}), **values} if isinstance(values, dict) else values
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def train(rank: int, arguments: list[str], kill_after_steps: int | None = None, metrics: Path | None = None) -> int:
    """The body of a rank: the training command; its exit code. With `kill_after_steps`, rank 0 dies by SIGKILL then."""
    from megacpt.cli import main

    if kill_after_steps is not None and rank == 0:
        threading.Thread(target=_kill_when, args=(metrics, kill_after_steps), daemon=True).start()
    return main(arguments)


def _kill_when(metrics: Path, num_lines: int) -> None:
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < num_lines:
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)


def run_command(world_size: int, recipe: Path, *arguments: str, **body: Any) -> list[int]:
    """The training command on `world_size` ranks; the exit code of each."""
    return run_ranks(world_size, train, ["--recipe", str(recipe), *arguments], **body)


def refusal(recipe: Path | str, *arguments: str, world_size: int = 1) -> str:
    """The one line that the training command refuses with, on rank 0."""
    outcomes = run_ranks(world_size, _refuse, ["--recipe", str(recipe), *arguments])
    assert [code for code, _ in outcomes] == [2] * world_size, outcomes
    lines = outcomes[0][1].strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def _refuse(rank: int, arguments: list[str]) -> tuple[int, str]:
    """The body of a rank: the training command; its exit code and what it said on stderr."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = train(rank, arguments)
    return code, said.getvalue()


def metrics_of(recipe: Path, name: str = "small") -> list[dict[str, Any]]:
    """metrics.jsonl of a run, without what depends on the clock."""
    lines = (recipe.parent / "runs" / name / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        del record["tokens_per_second"], record["data_wait_seconds"]
    return records


def evaluations_of(recipe: Path, name: str = "small") -> list[dict[str, Any]]:
    """evaluations.jsonl of a run."""
    return [json.loads(line) for line in (recipe.parent / "runs" / name / "evaluations.jsonl").read_text().splitlines()]
