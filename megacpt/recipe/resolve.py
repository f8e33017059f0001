"""What follows from a recipe once the number of processes is known: degrees, micro-batches, steps.

Pure arithmetic. A combination that does not fit is refused with the nearest ones that do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from megacpt.errors import LaunchError, RecipeError
from megacpt.recipe.architecture import Architecture
from megacpt.recipe.model_config import find_architecture
from megacpt.recipe.rules import check_model, refuse
from megacpt.recipe.schema import RateSection, Recipe
from megacpt.recipe.shares import token_shares
from megacpt.units import Duration, counted

ROUNDING_TOLERANCE = 0.05
"""How far rounding `batch.global_tokens` to whole rows may move it before it is refused."""


@dataclass(frozen=True)
class ResolvedRate:
    """The learning rate's numbers, every length in tokens; `schedule` says which of them it uses.

    Attributes:
        total_tokens: its length: where the schedule ends, from where it begins.
        from_tokens: where it begins.
    """

    schedule: str
    peak: float
    min: float
    constant: float | None
    warmup_tokens: int
    cooldown_tokens: int
    decay_tokens: int
    anneal_tokens: int
    decay_shape: str
    total_tokens: int
    from_tokens: int = 0

    @property
    def final(self) -> float:
        """The rate that it ends with."""
        if self.schedule in ("cosine", "wsd") or self.anneal_tokens:
            return self.min
        return self.peak if self.constant is None else self.constant


@dataclass(frozen=True)
class ResolvedStage:
    """What is in force from some token of the run on.

    Attributes:
        from_tokens: it begins with the first step that begins there or later.
        weights: domain -> weight.
        sequence_length: predicted tokens of a row.
        global_rows: rows of a step over all ranks.
        first_step: the steps before it.
        first_tokens: the tokens trained on in those.
    """

    from_tokens: int
    weights: dict[str, float]
    sequence_length: int
    global_rows: int
    first_step: int = 0
    first_tokens: int = 0

    def tokens_before(self, step: int) -> int:
        """Tokens of the run before a step of this stage."""
        return self.first_tokens + (step - self.first_step) * self.global_rows * self.sequence_length

    def steps_until(self, tokens: int) -> int:
        """Steps of the run until so many of its tokens are trained on, in this stage or none."""
        missing = max(0, tokens - self.first_tokens)
        return self.first_step + math.ceil(missing / (self.global_rows * self.sequence_length))


@dataclass(frozen=True)
class Resolved:
    """A recipe on a number of processes.

    Attributes:
        recipe: what was asked for.
        architecture: the model's shape, None if it was not at hand.
        world_size: processes; pipeline x tensor x data.
        pipeline: stages.
        tensor: ranks that share a layer.
        data: replicas.
        stages: what is in force along the run, the first from token 0; the attributes below are those of the first.
        global_rows: rows of one step over all ranks.
        micro_rows: rows of one micro-batch of one rank.
        num_micro_batches: micro-batches of one step on each rank.
        sequence_length: predicted tokens of a row.
        tokens_per_step: global_rows x sequence_length.
        num_steps: steps of the whole schedule.
        last_step: the step after which this run ends: num_steps, or training.stop_at_step if that comes first.
        evaluation_every_steps: None: not on the way.
        checkpoint_every_steps: None: not on the way.
        milestones_tokens: name -> tokens, of the checkpoints that are kept for good.
        mixture_every_steps: between two decisions of a mixture controller.
        rates: the learning rates' numbers; one, unless a stage has its own.
    """

    recipe: Recipe
    architecture: Architecture | None
    world_size: int
    pipeline: int
    tensor: int
    data: int
    stages: tuple[ResolvedStage, ...]
    global_rows: int
    micro_rows: int
    num_micro_batches: int
    sequence_length: int
    tokens_per_step: int
    num_steps: int
    last_step: int
    evaluation_every_steps: int | None
    checkpoint_every_steps: int | None
    milestones_tokens: dict[str, int]
    mixture_every_steps: int
    rates: tuple[ResolvedRate, ...]

    @property
    def total_tokens(self) -> int:
        """The tokens of all steps of the schedule: training.tokens rounded up to whole steps."""
        return self.rates[-1].from_tokens + self.rates[-1].total_tokens

    def tokens_before(self, step: int) -> int:
        """Tokens trained on before a step."""
        return [stage for stage in self.stages if stage.first_step <= step][-1].tokens_before(step)

    def steps_until(self, tokens: int) -> int:
        """Steps until so many tokens are trained on."""
        return [stage for stage in self.stages if stage.first_tokens <= tokens][-1].steps_until(tokens)


def resolve(recipe: Recipe, world_size: int, architecture: Architecture | None = None) -> Resolved:
    """Complete a recipe for `world_size` processes.

    Args:
        recipe: a loaded recipe.
        world_size: the number of processes, one a GPU.
        architecture: the model's shape; None looks for it in the recipe and the model's folder, and leaves the rules
            that need it unchecked if it is in neither.

    Raises:
        LaunchError: the processes do not fit the layout.
        RecipeError: the model or the batch does not.
    """
    architecture = architecture or find_architecture(recipe)
    if architecture is not None:
        refuse(check_model(recipe, architecture))
    data = _data_degree(recipe, world_size)
    stages = _stages(recipe, data)
    rows, sequence_length = stages[0].global_rows, stages[0].sequence_length
    tokens_per_step = rows * sequence_length
    num_steps = stages[-1].steps_until(recipe.training.tokens)
    rates = resolve_rates(recipe, data)

    def steps(stretch: Duration) -> int:
        return max(1, round(stretch.of(recipe.training.tokens) / tokens_per_step))

    return Resolved(
        recipe=recipe,
        architecture=architecture,
        world_size=world_size,
        pipeline=recipe.parallel.pipeline,
        tensor=recipe.parallel.tensor,
        data=data,
        stages=stages,
        global_rows=rows,
        micro_rows=recipe.batch.micro_rows,
        num_micro_batches=rows // (data * recipe.batch.micro_rows),
        sequence_length=sequence_length,
        tokens_per_step=tokens_per_step,
        num_steps=num_steps,
        last_step=num_steps if recipe.training.stop_at_step is None else min(num_steps, recipe.training.stop_at_step),
        evaluation_every_steps=steps(recipe.evaluation.every) if recipe.evaluation.every else None,
        checkpoint_every_steps=steps(recipe.checkpoint.every) if recipe.checkpoint.every else None,
        milestones_tokens=_milestones(recipe, rates[-1]),
        mixture_every_steps=steps(recipe.mixture.every),
        rates=rates,
    )


def least_world_size(recipe: Recipe) -> int:
    """The fewest processes that the recipe's layout needs."""
    layout = recipe.parallel
    return layout.pipeline * layout.tensor * (1 if layout.data == "auto" else layout.data)


def _data_degree(recipe: Recipe, world_size: int) -> int:
    """The data-parallel degree that fills the world."""
    if world_size < 1:
        raise LaunchError("a run needs a process", found=world_size, expected="a world size of at least 1")
    parallel = recipe.parallel
    model_ranks = parallel.pipeline * parallel.tensor
    layout = f"pipeline {parallel.pipeline} x tensor {parallel.tensor}"
    if parallel.data != "auto" and model_ranks * parallel.data != world_size:
        wanted = model_ranks * parallel.data
        raise LaunchError(
            "the layout does not fill the world",
            where=recipe.where("parallel.data"),
            found=f"{layout} x data {parallel.data} = {wanted} for {counted(world_size, 'process')}",
            hint=f"Start {counted(wanted, 'process')}{_other_layouts(recipe, world_size)}.",
        )
    if world_size % model_ranks:
        below = world_size - world_size % model_ranks
        nearest = " or ".join(str(size) for size in (below, below + model_ranks) if size)
        raise LaunchError(
            "the layout does not fit the world",
            where=recipe.where("parallel"),
            found=f"{layout} = {model_ranks} for {counted(world_size, 'process')}",
            hint=f"Start {nearest} processes{_other_layouts(recipe, world_size)}.",
        )
    return world_size // model_ranks


def _other_layouts(recipe: Recipe, world_size: int) -> str:
    """The layouts nearest to the recipe's that would fill the world."""
    wished = recipe.parallel
    fitting = [
        (pipeline, tensor, world_size // (pipeline * tensor))
        for pipeline in range(1, wished.pipeline + 1)
        for tensor in range(1, wished.tensor + 1)
        if world_size % (pipeline * tensor) == 0 and wished.tensor % tensor == 0
    ]
    largest = sorted(fitting, key=lambda layout: (layout[0] * layout[1], layout[0]), reverse=True)[:3]
    return ", or use " + ", ".join(f"pipeline {p} tensor {t} data {d}" for p, t, d in largest) if largest else ""


def _stages(recipe: Recipe, data: int) -> tuple[ResolvedStage, ...]:
    """The recipe's stages, each with everything that is in force in it."""
    length, rows, tokens = recipe.data.sequence_length, recipe.batch.global_rows, recipe.batch.global_tokens
    resolved = [
        ResolvedStage(0, token_shares(recipe), length, _global_rows(recipe, "batch", rows, tokens, length, data))
    ]
    for number, stage in enumerate(recipe.data.stages):
        length = stage.sequence_length or length
        if stage.global_rows or stage.global_tokens:
            rows, tokens = stage.global_rows, stage.global_tokens
        before, begin = resolved[-1], stage.at.of(recipe.training.tokens)
        first_step = before.steps_until(begin)
        resolved.append(
            ResolvedStage(
                begin,
                before.weights if stage.weights is None else token_shares(recipe, stage.weights),
                length,
                _global_rows(recipe, f"data.stages.{number}", rows, tokens, length, data),
                first_step,
                before.tokens_before(first_step),
            )
        )
    return tuple(resolved)


def _global_rows(
    recipe: Recipe, section: str, global_rows: int | None, global_tokens: int | None, length: int, data: int
) -> int:
    """The rows of a step: a multiple of what all ranks take at a time."""
    together = data * recipe.batch.micro_rows
    splits = f"data {data} x micro_rows {recipe.batch.micro_rows} = {together}"
    if global_rows is not None:
        if global_rows % together:
            below = global_rows - global_rows % together
            fitting = [n for n in range(1, global_rows + 1) if global_rows % (data * n) == 0]
            nearest = " or ".join(str(rows) for rows in (below, below + together) if rows)
            also = f", or a micro_rows among {', '.join(map(str, fitting[:6]))}" if fitting else ""
            raise RecipeError(
                "the ranks cannot split the global batch evenly",
                where=recipe.where(f"{section}.global_rows"),
                found=f"{global_rows} rows over {splits}",
                expected=f"a multiple of {together}",
                hint=f"Nearest: {nearest}{also}.",
            )
        return global_rows
    assert global_tokens is not None
    rows = max(1, round(global_tokens / (length * together))) * together
    if abs(rows * length / global_tokens - 1) > ROUNDING_TOLERANCE:
        below = max(global_tokens // (length * together), 1) * together
        raise RecipeError(
            "the global batch is far from any number of rows that the ranks can split",
            where=recipe.where(f"{section}.global_tokens"),
            found=f"{global_tokens:,} tokens, {global_tokens / length:.1f} rows, over {splits}",
            hint=f"Nearest: {below * length} or {(below + together) * length} tokens.",
        )
    return rows


def _milestones(recipe: Recipe, rate: ResolvedRate) -> dict[str, int]:
    """The recipe's milestones, and the end of the phase before the final decay, if there is one."""
    decay_tokens = rate.decay_tokens or rate.anneal_tokens
    stretches = recipe.checkpoint.milestones.items()
    named = {name: stretch and stretch.of(recipe.training.tokens) for name, stretch in stretches}
    automatic = {"pre_anneal": rate.from_tokens + rate.total_tokens - decay_tokens} if decay_tokens else {}
    return {name: tokens for name, tokens in (automatic | named).items() if tokens}


def resolve_rates(recipe: Recipe, data: int) -> tuple[ResolvedRate, ...]:
    """The recipe's learning rate and those of its stages, on so many replicas."""
    stages = _stages(recipe, data)
    begins = [stage.first_tokens for stage in stages]
    total_tokens = stages[-1].tokens_before(stages[-1].steps_until(recipe.training.tokens))
    own = [recipe.lr, *(stage.lr for stage in recipe.data.stages)]
    stated = [(begin, rate) for begin, rate in zip(begins, own, strict=True) if rate is not None]
    ends = [*(begin for begin, _ in stated[1:]), total_tokens]
    return tuple(
        _rate(rate, begin, end, min(end, recipe.training.tokens) - begin)
        for (begin, rate), end in zip(stated, ends, strict=True)
    )


def _rate(rate: RateSection, begin: int, end: int, stated_tokens: int) -> ResolvedRate:
    """A rate from one token to another; percentages are of `stated_tokens`."""
    phases = rate.phases(stated_tokens)
    return ResolvedRate(
        schedule=rate.schedule,
        peak=rate.peak,
        min=rate.lowest,
        constant=rate.constant,
        warmup_tokens=phases["warmup"],
        cooldown_tokens=phases["cooldown"],
        decay_tokens=phases["decay"],
        anneal_tokens=phases["anneal"],
        decay_shape=rate.decay_shape or "one_minus_sqrt",
        total_tokens=end - begin,
        from_tokens=begin,
    )


LEAST_FINAL_SHARE = 1 / 3
"""Of the peak: the least end of a learning rate under which an ascending quality order still helps."""


def wasted_orders(resolved: Resolved) -> Iterator[str]:
    """What a user should know of domains whose best text comes when hardly anything is learnt any more.

    Ascending quality wins where the learning rate stays up and loses where it decays (arXiv:2511.18903).
    """
    rate = resolved.rates[-1]
    for name, domain in resolved.recipe.data.domains.items():
        if domain.order == "ascending" and rate.final < LEAST_FINAL_SHARE * rate.peak:
            yield (
                f"the text of {name} comes by rising {domain.order_by}, and the learning rate falls to "
                f"{rate.final / rate.peak:.0%} of its peak: if {domain.order_by} means quality, the best text teaches "
                f"least. Set lr.schedule: constant, or lr.min to {rate.peak / 3:.2g} or more, and export the running "
                "average (optimizer.average_decay)"
            )
