"""Tiny models of every tested architecture, random batches of packed documents, and the plain transformers loop.

The oracle shares no code with megacpt: each document is run through transformers' own model alone, so that boundaries
and positions are right by construction; the loss is F.cross_entropy, the optimizer torch's AdamW.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from megacpt.data.batch import MicroBatch

WIDTHS: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    vocab_size=118, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    initializer_range=0.1,
)  # fmt: skip
SLIDING = dict(sliding_window=5, layer_types=["sliding_attention", "full_attention", "sliding_attention"])
ARCHITECTURES: dict[str, dict] = {
    "llama": dict(model_type="llama", tie_word_embeddings=False),
    "llama-tied": dict(model_type="llama", tie_word_embeddings=True),
    "mistral": dict(model_type="mistral", sliding_window=6, tie_word_embeddings=False),
    "qwen2": dict(
        model_type="qwen2", tie_word_embeddings=True, use_sliding_window=True, max_window_layers=1, sliding_window=5
    ),
    "qwen3": dict(model_type="qwen3", tie_word_embeddings=False),
    "olmo2": dict(model_type="olmo2", tie_word_embeddings=False),
    "gemma2": dict(model_type="gemma2", tie_word_embeddings=True, query_pre_attn_scalar=8, **SLIDING),
    "gemma3": dict(model_type="gemma3_text", tie_word_embeddings=True, query_pre_attn_scalar=8, **SLIDING),
    "phi3": dict(model_type="phi3", tie_word_embeddings=False),
}

SEQUENCE_LENGTH, GLOBAL_ROWS, NUM_STEPS, NUM_DOMAINS = 16, 8, 10, 2
LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIPPING = 2e-3, (0.9, 0.95), 0.1, 1.0
DOMAIN_WEIGHTS = (1.0, 0.4)


def tiny_config(architecture: str) -> PretrainedConfig:
    """The config of a tiny model of one of `ARCHITECTURES`."""
    settings = WIDTHS | ARCHITECTURES[architecture]
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def save_tiny_model(architecture: str, folder: Path) -> Path:
    """A random tiny model as a Hugging Face folder; norms and biases are moved off their neutral values."""
    torch.manual_seed(0)
    config = tiny_config(architecture)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Row:
    """One packed row: its tokens [S + 1], where its documents start, its domain."""

    tokens: torch.Tensor
    starts: tuple[int, ...]
    domain: int


def rows_of_step(step: int, num_rows: int = GLOBAL_ROWS) -> list[Row]:
    """The rows of a global batch, the same on every call: one to three documents each, domains mixed."""
    generator = torch.Generator().manual_seed(1000 + step)
    rows = []
    for index in range(num_rows):
        tokens = torch.randint(3, WIDTHS["vocab_size"], (SEQUENCE_LENGTH + 1,), generator=generator)
        cuts = torch.randint(1, SEQUENCE_LENGTH, (index % 3,), generator=generator).tolist()
        rows.append(Row(tokens, (0, *sorted(set(cuts))), domain=(index // 2 + step) % NUM_DOMAINS))
    return rows


def spans(row: Row) -> list[tuple[int, int]]:
    """First and last + 1 token of each document in a row, among its S + 1 tokens."""
    return list(zip(row.starts, (*row.starts[1:], SEQUENCE_LENGTH + 1), strict=True))


def total_weight(rows: list[Row]) -> float:
    """The sum of the weights of all labels of a global batch."""
    return sum(DOMAIN_WEIGHTS[row.domain] * sum(stop - start - 1 for start, stop in spans(row)) for row in rows)


def micro_batch(rows: list[Row], normaliser: float) -> MicroBatch:
    """Some rows as the trainer feeds them; weights divided by `normaliser`."""
    shape = (len(rows), SEQUENCE_LENGTH)
    positions = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    weights = torch.zeros(shape)
    domains = torch.tensor([row.domain for row in rows])[:, None].expand(shape).contiguous()
    for index, row in enumerate(rows):
        for start, stop in spans(row):
            end = min(stop, SEQUENCE_LENGTH)
            positions[index, start:end] = torch.arange(end - start)
            labels[index, start : stop - 1] = row.tokens[start + 1 : stop]
            weights[index, start : stop - 1] = DOMAIN_WEIGHTS[row.domain] / normaliser
    input_ids = torch.stack([row.tokens[:-1] for row in rows])
    return MicroBatch(input_ids=input_ids, positions=positions, labels=labels, weights=weights, domains=domains)


def document_losses(model: torch.nn.Module, row: Row) -> torch.Tensor:
    """The nll of every predicted token of a row, each document run alone through transformers."""
    losses = []
    for start, stop in spans(row):
        if stop - start < 2:
            continue
        ids = row.tokens[None, start:stop]
        logits = model(input_ids=ids[:, :-1]).logits.float()
        losses.append(F.cross_entropy(logits[0], ids[0, 1:], reduction="none"))
    return torch.cat(losses)


def plain_training(
    folder: Path, num_steps: int = NUM_STEPS, dtype: torch.dtype = torch.float32
) -> tuple[list[tuple[float, float]], torch.nn.Module]:
    """(loss, gradient norm) of each step of the plain single-process loop, and the trained model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    model.train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    undecayed = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [dict(params=decayed, weight_decay=WEIGHT_DECAY), dict(params=undecayed, weight_decay=0.0)],
        lr=LEARNING_RATE,
        betas=BETAS,
    )
    history = []
    for step in range(num_steps):
        rows = rows_of_step(step)
        losses = [DOMAIN_WEIGHTS[row.domain] * document_losses(model, row).sum() for row in rows]
        loss = torch.stack(losses).sum() / total_weight(rows)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        optimizer.step()
        optimizer.zero_grad()
        history.append((loss.item(), norm.item()))
    return history, model
