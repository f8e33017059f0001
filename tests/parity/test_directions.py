"""Each method does what it is for: a small model knows one random language, and learns another without replay.

The languages are Markov chains that share a third of their contexts. The margins asserted are less than half of what
was measured (docs/steering_weights.md). Real text: experiments/.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from megacpt.optim.adamw import NOTHING, Additions, ContinualAdamW, Reptile
from megacpt.optim.groups import parameter_groups
from megacpt_kernels import Teacher, fused_linear_replay_cross_entropy

VOCAB_SIZE, LENGTH, ROWS = 32, 32, 16
SHAPE: dict[str, Any] = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
    vocab_size=VOCAB_SIZE, max_position_embeddings=64, tie_word_embeddings=False,
)  # fmt: skip


def language(seed: int) -> torch.Tensor:
    """The probabilities of the next token after each."""
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(3 * torch.randn(VOCAB_SIZE, VOCAB_SIZE, generator=generator), -1)


def text(chain: torch.Tensor, generator: torch.Generator, num_rows: int = ROWS) -> torch.Tensor:
    tokens = [torch.randint(VOCAB_SIZE, (num_rows,), generator=generator)]
    for _ in range(LENGTH):
        tokens.append(torch.multinomial(chain[tokens[-1]], 1, generator=generator)[:, 0])
    return torch.stack(tokens, 1)


def train(
    model: Any,
    chain: torch.Tensor,
    steps: int,
    rate: float,
    *,
    additions: Additions = NOTHING,
    weight_decay: float = 0.1,
    teacher: Any = None,
    replayed: torch.Tensor | None = None,
    noise: Callable[[float], float] | None = None,
    end: float = 0.0,
) -> None:
    """Train on rows of `chain`, a quarter of them of `replayed`, at a rate that falls linearly to a share `end` of it.

    `noise` is the chance that a token is replaced by any other one, when a share `done` of the run is over.
    """
    groups = parameter_groups(model.named_parameters(), weight_decay)
    optimizer = ContinualAdamW(groups, (0.9, 0.95), 1e-8, additions)
    generator = torch.Generator().manual_seed(steps)
    for step in range(steps):
        tokens = text(chain, generator)
        if replayed is not None:
            tokens[: ROWS // 4] = text(replayed, generator, ROWS // 4)
        if noise is not None:
            is_noise = torch.rand(tokens.shape, generator=generator) < noise(step / steps)
            tokens = torch.where(is_noise, torch.randint(VOCAB_SIZE, tokens.shape, generator=generator), tokens)
        hidden = model.model(tokens[:, :-1]).last_hidden_state.flatten(0, 1)
        weights = torch.full((len(hidden),), 1 / len(hidden))
        taught = None
        if teacher is not None:
            with torch.no_grad():
                states = teacher.model(tokens[:, :-1]).last_hidden_state.flatten(0, 1)
            taught = Teacher(states, teacher.lm_head.weight, 0.5 * weights)
        labels = tokens[:, 1:].flatten()
        loss = fused_linear_replay_cross_entropy(hidden, model.lm_head.weight, labels, weights, teacher=taught).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.set_rate(rate * (1 - (1 - end) * step / steps))
        optimizer.step()


@torch.no_grad()
def held_out_loss(model: Any, chain: torch.Tensor) -> float:
    tokens = text(chain, torch.Generator().manual_seed(-1), 128)
    return float(F.cross_entropy(model(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten()))


@pytest.fixture(scope="module")
def after() -> Any:
    """A function: how the new language is learned -> losses of the old and of the new one."""
    torch.manual_seed(0)
    old, other = language(0), language(1)
    kept = torch.rand(VOCAB_SIZE, generator=torch.Generator().manual_seed(2)) < 0.33
    new = torch.where(kept[:, None], old, other)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE))
    train(base, old, 150, 5e-3)

    def learn(taught: bool = False, replay: bool = False, **how: Any) -> tuple[float, float]:
        model = copy.deepcopy(base)
        train(model, new, 80, 3e-3, teacher=base if taught else None, replayed=old if replay else None, **how)
        return held_out_loss(model, old), held_out_loss(model, new)

    return learn


def test_replay_a_teacher_and_reptile_keep_more_of_the_old(after: Any) -> None:
    old, new = after()
    taught_old, taught_new = after(taught=True)
    assert taught_old < old - 0.5 and taught_new < new + 0.5
    reptile_old, reptile_new = after(additions=Additions(reptile=Reptile(5, 0.5)))
    assert reptile_old < old - 0.1 and reptile_new < new + 0.5
    replayed_old, replayed_new = after(replay=True)
    assert replayed_old < old - 0.5 and replayed_new < new + 0.3


def test_the_best_text_last_pays_only_where_the_rate_does_not_vanish(after: Any) -> None:
    def gain(end: float) -> float:
        """How much lower the loss is with the noise falling than with it spread evenly."""
        _, spread = after(end=end, noise=lambda done: 0.6 * (80 * done * 0.618 % 1))
        _, falling = after(end=end, noise=lambda done: 0.6 * (1 - done))
        return spread - falling

    assert gain(1.0) > 0.1
    assert gain(0.0) < 0


def test_decay_to_the_initial_weights_hinders_learning_less_than_decay_to_zero(after: Any) -> None:
    _, new_to_zero = after(weight_decay=10.0)
    _, new_to_initial = after(weight_decay=10.0, additions=Additions(decay_to_initial=True))
    assert new_to_initial < new_to_zero - 0.05
