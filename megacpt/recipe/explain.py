"""The whole plan of a run as a person wants to see it before it starts.

`explain` is plain text for logs and the run folder, `show` the same for a terminal. Milestones are restated from the
recipe's numbers; the schedule itself is `megacpt.optim`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from megacpt.recipe.importance import objective
from megacpt.recipe.memory import RankMemory, checkpoint_bytes, equal_time_layers, estimate_memory, num_checkpoints
from megacpt.recipe.resolve import Resolved, ResolvedRate, ResolvedStage, wasted_orders
from megacpt.recipe.shares import token_shares
from megacpt.units import counted, format_seconds, rounded_bytes

if TYPE_CHECKING:
    from rich.console import Console

ASSUMED_FLOPS = 400e12
"""What one H100 sustains in a well-laid-out bf16 run, for turning FLOPs into hours: 40 % of its peak."""

Row = tuple[str, ...]


@dataclass(frozen=True)
class Topic:
    """A titled table; the first column names what the others say."""

    title: str
    rows: tuple[Row, ...]


def explain(resolved: Resolved, layers_per_stage: Sequence[int] | None = None) -> str:
    """The plan as plain text.

    Args:
        resolved: the recipe on a number of processes.
        layers_per_stage: decoder layers of each pipeline stage; None cuts by time as if layers were divisible, unless
            the recipe states them.
    """
    lines = []
    for topic in _topics(resolved, layers_per_stage):
        # A cell with nothing right of it may run on, and does not widen its column.
        widths = [
            max((len(row[i]) for row in topic.rows if len(row) > i + 1), default=0)
            for i in range(max(map(len, topic.rows)))
        ]
        lines.append(topic.title)
        for row in topic.rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            lines.append(f"  {'  '.join(cells)}".rstrip())
        lines.append("")
    return "\n".join(lines)


def show(resolved: Resolved, console: Console, layers_per_stage: Sequence[int] | None = None) -> None:
    """The plan on a rich console; arguments as for `explain`."""
    from rich.table import Table
    from rich.text import Text

    for topic in _topics(resolved, layers_per_stage):
        table = Table(title=topic.title, title_justify="left", title_style="bold", box=None, show_header=False)
        for row in topic.rows:
            table.add_row(Text(row[0], style="cyan"), *map(Text, row[1:]))
        console.print(table)


def _topics(resolved: Resolved, layers_per_stage: Sequence[int] | None) -> Iterator[Topic]:
    recipe = resolved.recipe
    yield Topic(f"{recipe.name}, on {counted(resolved.world_size, 'process')}", tuple(_model(resolved)))
    layers = layers_per_stage or _layers(resolved)
    yield Topic("Layout", tuple(_layout(resolved, layers)))
    yield Topic("Data", tuple(_domains(resolved)))
    yield Topic("Steps", tuple(_steps(resolved)))
    yield Topic("Learning rate", tuple(_milestones(resolved)))
    if resolved.architecture is not None and layers is not None:
        memory = estimate_memory(resolved, resolved.architecture, layers)
        yield Topic("Memory per rank, estimated (add about 2 GiB for CUDA and NCCL)", tuple(_memory(memory)))
    yield Topic("Compute and disk", tuple(_costs(resolved)))


def _model(resolved: Resolved) -> Iterator[Row]:
    model, shape = resolved.recipe.model, resolved.architecture
    revision = f" at {model.revision}" if model.revision else ""
    yield "model", "random weights" if model.path is None else f"{model.path}{revision}"
    if shape is None:
        yield "architecture", "unknown until the model is at hand: put sizes in model.config to plan without it"
    else:
        heads = f"{shape.num_heads} heads ({shape.num_kv_heads} key-value) of {shape.head_dim}"
        layers = f"{shape.num_layers} layers of width {shape.hidden_size}"
        yield "architecture", f"{shape.model_type}: {layers}, {heads}, MLP {shape.intermediate_size}"
        padded = shape.padded_vocab_size(model.vocab_multiple, resolved.tensor)
        padding = "" if padded == shape.vocab_size else f", padded to {padded:,}"
        tied = "tied" if shape.has_tied_embeddings else "untied"
        yield "vocabulary", f"{shape.vocab_size:,}{padding}, embedding and head {tied}"
        exactness = "" if shape.is_known else " (counted as a plain gated decoder)"
        yield "parameters", f"{shape.num_parameters:,}{exactness}"
    yield "numbers", f"{model.dtype} weights and activations, fp32 gradients and AdamW state"


def _layers(resolved: Resolved) -> Sequence[float] | None:
    """Decoder layers of each stage, fractional where the cut is not known; None without the model's shape."""
    partition, shape = resolved.recipe.parallel.partition, resolved.architecture
    if isinstance(partition, tuple):
        return partition
    if shape is None:
        return None
    if partition == "uniform":
        return [shape.num_layers / resolved.pipeline] * resolved.pipeline
    return equal_time_layers(shape, resolved.pipeline, resolved.sequence_length)


def _layout(resolved: Resolved, layers: Sequence[float] | None) -> Iterator[Row]:
    parallel = resolved.recipe.parallel
    yield "grid", f"pipeline {resolved.pipeline} x data {resolved.data} x tensor {resolved.tensor}, tensor innermost"
    if resolved.tensor > 1:
        split = "split along the sequence" if parallel.sequence_parallel else "whole on each"
        yield "tensor", f"{_ranks(0, resolved.tensor)} (and so on) share every matrix; activations between are {split}"
    if resolved.data > 1:
        shared = ["the optimizer state", "the gradients", "the weights"][: parallel.zero_stage]
        split = ", ".join(shared) or "nothing but the batch"
        yield "data", f"ZeRO-{parallel.zero_stage}: {resolved.data} replicas split {split}"
    if parallel.activation_checkpointing == "full":
        yield "recompute", "layers keep their inputs only and run twice"
    ranks = resolved.data * resolved.tensor
    for stage in range(resolved.pipeline if resolved.pipeline > 1 else 0):
        holds = [counted(layers[stage], "layer")] if layers is not None else ["layers"]
        if stage == 0:
            holds.insert(0, "embedding")
        if stage == resolved.pipeline - 1:
            holds.append("norm, head and loss")
        yield f"stage {stage}", f"{_ranks(stage * ranks, ranks)}: {', '.join(holds)}"
    if resolved.pipeline > 1:
        idle = (resolved.pipeline - 1) / (resolved.num_micro_batches + resolved.pipeline - 1)
        yield "idle", f"{idle:.1%} of each step fills and drains the pipeline"


def _domains(resolved: Resolved) -> Iterator[Row]:
    recipe = resolved.recipe
    shares = token_shares(recipe)
    weighting = objective(recipe, shares)
    is_staged = len(resolved.stages) > 1
    yield "domain", "role", "at first" if is_staged else "of tokens", "of loss", "tokens", "at most", "evaluated"
    for name, domain in recipe.data.domains.items():
        held_out = "yes" if domain.is_evaluated else "no"
        if not any(stage.weights.get(name) for stage in resolved.stages):
            yield name, domain.role, "-", "-", "-", "-", held_out
            continue
        share, mass = shares.get(name, 0.0), weighting.masses.get(name, 0.0)
        tokens = _rounded(_domain_tokens(resolved, name))
        yield name, domain.role, f"{share:.1%}", f"{mass:.1%}", tokens, f"{domain.max_epochs:g} epochs", held_out
    for warning in (*weighting.warnings(), *wasted_orders(resolved)):
        yield "warning", warning
    if recipe.mixture.controller != "static":
        every, floor = counted(resolved.mixture_every_steps, "step"), recipe.mixture.floor
        yield "mixture", f"{recipe.mixture.controller} decides every {every}, no share below {floor:g}"


def _domain_tokens(resolved: Resolved, name: str) -> float:
    """The tokens that the stages' weights give a domain."""
    stages, tokens = resolved.stages, 0.0
    for stage, end in zip(stages, [*(s.from_tokens for s in stages[1:]), resolved.total_tokens], strict=True):
        tokens += stage.weights.get(name, 0) / sum(stage.weights.values()) * (end - stage.from_tokens)
    return tokens


def _steps(resolved: Resolved) -> Iterator[Row]:
    recipe = resolved.recipe
    rows = (
        f"{counted(resolved.global_rows, 'row')} x {resolved.sequence_length:,} = {resolved.tokens_per_step:,} tokens"
    )
    batches = f"{counted(resolved.num_micro_batches, 'micro-batch')} x {counted(resolved.micro_rows, 'row')}"
    yield "batch", f"{rows}: {counted(resolved.data, 'replica')} x {batches}"
    if recipe.batch.global_tokens not in (None, resolved.tokens_per_step):
        yield "", f"asked for {recipe.batch.global_tokens:,} tokens; this is the nearest that the replicas can split"
    for before, stage in pairwise(resolved.stages):
        yield f"from {_rounded(stage.from_tokens)}", _stage_change(before, stage)
    yield "run", f"{counted(resolved.num_steps, 'step')}, {resolved.total_tokens:,} tokens"
    if resolved.last_step < resolved.num_steps:
        yield "", f"stops after step {resolved.last_step:,}; schedules go on as if it did not"
    evaluation, checkpoint = recipe.evaluation, recipe.checkpoint
    every = resolved.evaluation_every_steps
    dense = "; after the first 1, 2, 4, ... steps too" if evaluation.dense_start and every and every > 1 else ""
    yield "evaluation", _occasions(evaluation.at_start, every, evaluation.at_end) + dense
    if evaluation.gradient_alignment is not None:
        yield "", f"compares gradients of {_rounded(evaluation.gradient_alignment)} held-out tokens of each domain"
    for name, budget in recipe.forgetting.items():
        yield "budget", f"{name} may rise {budget:g} nats above the base model, else: {evaluation.over_budget}"
    occasions = _occasions(False, resolved.checkpoint_every_steps, checkpoint.at_end)
    kept = [f"the last {checkpoint.keep_last}", *resolved.milestones_tokens]
    if checkpoint.keep_every_tokens:
        kept.append(f"one every {_rounded(checkpoint.keep_every_tokens)} tokens")
    yield "checkpoint", f"{occasions}; kept: {', '.join(kept)}"


def _stage_change(before: ResolvedStage, stage: ResolvedStage) -> str:
    changes = []
    if stage.weights != before.weights:
        total = sum(stage.weights.values())
        changes.append(", ".join(f"{name} {weight / total:.1%}" for name, weight in stage.weights.items() if weight))
    if (stage.global_rows, stage.sequence_length) != (before.global_rows, before.sequence_length):
        changes.append(f"{counted(stage.global_rows, 'row')} x {stage.sequence_length:,}")
    return "; ".join(changes) or "as before"


def _occasions(at_start: bool, every_steps: int | None, at_end: bool) -> str:
    occasions = ["at the start"] * at_start
    if every_steps is not None:
        occasions.append("every step" if every_steps == 1 else f"every {every_steps:,} steps")
    occasions += ["at the end"] * at_end
    return ", ".join(occasions) or "never"


def _milestones(resolved: Resolved) -> Iterator[Row]:
    """Where each schedule bends, and at which rate."""
    for rate in resolved.rates:
        yield from _bends(resolved, rate)


def _bends(resolved: Resolved, rate: ResolvedRate) -> Iterator[Row]:
    end = rate.total_tokens
    bends: list[tuple[str, int, float]] = [("warm-up from", 0, 0.0)] if rate.warmup_tokens else []
    bends.append(("peak", rate.warmup_tokens, rate.peak))
    if rate.schedule == "wsd":
        bends.append(("decay from", end - rate.decay_tokens, rate.peak))
    elif rate.constant is not None:
        bends.append(("constant", rate.warmup_tokens + rate.cooldown_tokens, rate.constant))
        if rate.anneal_tokens:
            bends.append(("anneal from", end - rate.anneal_tokens, rate.constant))
    bends.append(("end", end, rate.final))
    yield "schedule", rate.schedule + (f", {rate.decay_shape} decay" if rate.schedule == "wsd" else "")
    for what, place, value in bends:
        tokens = rate.from_tokens + place
        step = resolved.steps_until(tokens)
        yield what, f"{value:.2e}", f"step {step:,}", f"{_rounded(tokens)} tokens"


def _memory(ranks: Sequence[RankMemory]) -> Iterator[Row]:
    yield "", "weights", "gradients", "optimizer", "activations", "head", "total"
    for stage, rank in enumerate(ranks):
        states = rank.weights_bytes, rank.gradients_bytes, rank.optimizer_bytes
        yield (
            f"stage {stage}",
            *map(rounded_bytes, (*states, rank.activations_bytes, rank.head_bytes, rank.total_bytes)),
        )


def _costs(resolved: Resolved) -> Iterator[Row]:
    shape = resolved.architecture
    if shape is None:
        yield "compute", "unknown until the model is at hand"
        return
    per_token = shape.flops_per_token(resolved.sequence_length)
    if resolved.recipe.loss.distillation:
        per_token *= 4 / 3  # a teacher's forward: a third of forward and backward
    total = per_token * resolved.tokens_before(resolved.last_step)
    yield "compute", f"{total:.2e} FLOP, {per_token:.3e} per token (causal attention halved, no recomputation)"
    if (seconds := total / ASSUMED_FLOPS) >= 60:
        alone, together = format_seconds(seconds), format_seconds(seconds / resolved.world_size)
        yield "time", f"{alone} of an H100 at 400 TFLOP/s in bf16; {together} on {resolved.world_size} of them"
    size, count = checkpoint_bytes(shape), num_checkpoints(resolved)
    yield (
        "checkpoint",
        f"{rounded_bytes(size)} each; at most {rounded_bytes(count * size)}, while the last of {count} is written",
    )


def _ranks(first: int, count: int) -> str:
    return f"rank {first}" if count == 1 else f"ranks {first}-{first + count - 1}"


def _rounded(tokens: float) -> str:
    """Tokens to three digits: 19.1B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if tokens >= size:
            return f"{tokens / size:.3g}{unit}"
    return f"{tokens:.0f}"
