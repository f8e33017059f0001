"""One run, from a resolved recipe to its last checkpoint: what is built, in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megacpt.assemble import data, mixture, model, preflight, resume
from megacpt.assemble.evaluation import budget_watch, occasions
from megacpt.assemble.outputs import open_sinks
from megacpt.assemble.schedule import rate_jump, schedule
from megacpt.assemble.stages import stage_bounds
from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.export import MODEL_FILES
from megacpt.checkpoint.folder import CheckpointFolder, Retention
from megacpt.checkpoint.saving import Saver
from megacpt.data.history import History
from megacpt.data.stream import Stream
from megacpt.engine.processes import World, from_main, make_tensor_group
from megacpt.evaluate.base_loss import check_base_loss
from megacpt.evaluate.evaluator import Evaluator
from megacpt.observe.events import Events
from megacpt.observe.flops import mfu
from megacpt.observe.log import logger, name_stage
from megacpt.observe.sinks import closing_all
from megacpt.parallel.agreement import Agreement
from megacpt.parallel.grid import Grid
from megacpt.parallel.preflight import MAX_CLOCK_SKEW_SECONDS, compare_ranks, digest, versions
from megacpt.recipe import Architecture, Resolved, wasted_orders
from megacpt.trainer.guard import Guard, GuardSettings
from megacpt.trainer.hooks import Checkpointing, Evaluation, Reporting
from megacpt.trainer.loop import Trainer
from megacpt.trainer.restore import restore
from megacpt.trainer.rollback import Rollbacks
from megacpt.trainer.stopping import Stopping
from megacpt.trainer.watchdog import Watchdog


@dataclass(frozen=True)
class Start:
    """How to begin.

    Attributes:
        resume: None: a fresh run; "auto": the newest checkpoint of the run folder, if any; else a run or checkpoint.
        accepted: recipe keys that may differ from the checkpoint's.
        signalled: whether this process was told to stop.
        deadline: when the scheduler will end the run, in seconds since the epoch; None: it will not.
    """

    resume: str | None = None
    accepted: tuple[str, ...] = ()
    signalled: Callable[[], bool] = lambda: False
    deadline: float | None = None


def run(resolved: Resolved, world: World, start: Start) -> bool:
    """Train. Collective: every process calls it, with the same arguments but for `world`.

    Returns:
        Whether the run came to its end; False: it was told to stop, and goes on with resume="auto".
    """
    recipe, is_main = resolved.recipe, world.rank == 0
    grid = Grid(resolved.pipeline, resolved.data, resolved.tensor)
    place = grid.coordinate(world.rank)
    if grid.pipeline > 1:
        name_stage(place.pipeline)

    # What to continue, if anything; refused before anything large is built.
    folder = resume.run_folder(recipe)
    preflight.check_writable(folder)
    if is_main:
        preflight.check_wandb(recipe)
    controller = mixture.controller(recipe)
    channel = Channel()
    checkpoint = resume.choose_checkpoint(start.resume, folder, channel)
    saved = resume.check_continues(resolved, checkpoint, start.accepted) if checkpoint else None
    first_step = saved["step"] if saved else 0
    origin = checkpoint.parent.parent if checkpoint else None
    is_branch = origin is not None and origin.resolve() != folder.resolve()

    # Model and data, checked against each other.
    base = model.model_folder(recipe)
    config = model.hf_config(recipe, base)
    plan = model.blueprint(recipe, config, world.device)
    architecture = Architecture.from_config(config.to_dict())
    training = data.open_corpora(recipe, "shards", plan.vocab_size)
    held_out = data.open_corpora(recipe, "held_out", plan.vocab_size)
    source = model.weights(recipe, plan, base)
    preflight.check_head(plan, source)
    parts = {"shards": training, "held_out": held_out}
    data.check_tokenizers(recipe, parts, model.tokenizer_fingerprint(recipe, base))
    preflight.check_special_tokens(recipe, parts, model.special_tokens(recipe, base))
    preflight.check_disk(resolved, architecture, folder, channel)
    if is_main:
        for warning in wasted_orders(resolved):
            logger().warning(warning)
    insertions = data.insertions(resolved, plan.vocab_size, model.encoder(recipe, base))
    plan_of_data, texts = data.plan(resolved), data.records(recipe, training, insertions)

    def continued(checkpoint: Path, saved: Mapping[str, Any]) -> History:
        names = {name: corpus.shard_names for name, corpus in training.items()}
        return resume.continued_history(saved, plan_of_data, texts, checkpoint, start.accepted, names, recipe)

    def bounded(rows: Stream, step: int) -> tuple[int, Stream]:
        ending, rows = data.bounded(planned, rows, step)
        return ending.last_step, rows

    history = continued(checkpoint, saved) if checkpoint and saved else data.history(resolved, training, insertions)
    stream = Stream(training, history, insertions, data.divided(recipe, training))
    planned = data.lasting(resolved, history)
    resolved, stream = data.bounded(planned, stream, first_step)
    data.check_epochs(recipe, stream, resolved.last_step)

    facts = versions() | {
        "the recipe": digest(recipe.model_dump(mode="json")),
        "the data": digest([history.to_json(), [parts.num_tokens for parts in stream.parts.values()]]),
    }
    skew_seconds = compare_ranks(facts, world.world_size)
    if is_main and skew_seconds > MAX_CLOCK_SKEW_SECONDS:
        logger().warning("the nodes' clocks differ by %.0f s: times in their logs cannot be compared", skew_seconds)
    watchdog = Watchdog(folder / "ranks", world.rank, world.world_size, recipe.guard.hang_timeout_seconds)
    watchdog.start()

    # The engine, with the weights of the base model or of the checkpoint.
    group = make_tensor_group(grid, world.rank)
    bounds = stage_bounds(recipe, architecture)
    engine = model.engine(resolved, plan, source, bounds, grid, group, domains=stream.counted)
    if checkpoint:
        if is_main:
            CheckpointFolder(folder / "checkpoints").set_aside_after(first_step)
        restore(engine, checkpoint, channel)
        if recipe.optimizer.reset and is_branch:
            engine.forget_moments()

    if is_main and saved and (jump := rate_jump(resolved, saved)):
        logger().warning("the learning rate was %.3g at the checkpoint, and goes on with %.3g", *jump)
    if saved and first_step >= resolved.last_step:
        logger().info(
            "no step is left, the run ends after step %d: training.tokens (with --accept training.tokens) and "
            "training.stop_at_step say so",
            resolved.last_step,
        )

    # What happens at and between steps.
    events = Events(folder if is_main else None)
    events.write("start", step=first_step, world_size=world.world_size)
    due = occasions(resolved, stream.history)
    sinks = []
    if is_main:
        if not (folder / MODEL_FILES).exists():
            model.keep_model_files(recipe, plan, base, folder / MODEL_FILES)
        data.keep_insertions(stream, folder, origin, first_step)
        shown = model.describe(resolved, plan, bounds, world.device) | data.describe(stream, resolved.last_step)
        shown |= data.describe_objective(recipe, stream.history)
        sinks = open_sinks(resolved, folder, first_step, shown, due, origin)
    stopping = Stopping(
        Agreement(world.world_size), start.signalled, start.deadline, num_saves=1 + recipe.checkpoint.asynchronous
    )
    loader = data.loader(resolved, stream, place, first_step)
    guard = Guard(GuardSettings(**recipe.guard.model_dump(exclude={"hang_timeout_seconds"})), events, loader)
    if saved:
        guard.restore(saved["guard"])
    evaluator = Evaluator(
        engine,
        data.held_out(recipe, held_out),
        micro_rows=resolved.micro_rows,
        dp_rank=place.data,
        dp_size=resolved.data,
        aligned=data.aligned(recipe, held_out),
    )
    steering = mixture.steering(resolved, controller, loader, partial(from_main, world), saved)

    def state(step: int) -> dict[str, Any]:
        standing = {
            "guard": guard.state(),
            "evaluation_is_due": evaluation.is_due,
            "mixture": steering.state(step) if steering else [],
        }
        return resume.state(resolved, loader.stream.history, step) | standing

    checkpoints = CheckpointFolder(folder / "checkpoints")
    retention = Retention(recipe.checkpoint.keep_last, recipe.checkpoint.keep_every_tokens)
    checkpointing = Checkpointing(
        engine,
        Saver(checkpoints, channel, retention, asynchronous=recipe.checkpoint.asynchronous),
        state,
        loader.tokens,
        events,
        every_steps=resolved.checkpoint_every_steps,
        milestones=resolved.milestones_tokens,
        at_start=recipe.guard.on_spike == "rollback",
        at_end=recipe.checkpoint.at_end,
        is_branch=is_branch,
        is_unfinished=lambda: evaluation.is_due,
        saved=stopping.saved,
    )
    watch = budget_watch(recipe, origin, first_step, checkpointing.save, is_main)
    evaluation = Evaluation(
        evaluator,
        sinks,
        loader.tokens,
        occasions=due,
        at_start=recipe.evaluation.at_start,
        at_end=recipe.evaluation.at_end,
        then=[
            partial(check_base_loss, recipe.evaluation.base_loss),
            *([steering] if steering else []),
            watch,
        ],
        interrupted=stopping.now,
        is_due=saved is not None and saved["evaluation_is_due"],
    )
    with closing_all(sinks), closing(watchdog), loader, checkpointing:
        num_steps_done, is_done = Trainer(
            engine=engine,
            loader=loader,
            learning_rate=schedule(resolved.rates),
            hooks=[Reporting(sinks), evaluation, checkpointing],
            guard=guard,
            stopping=stopping,
            note=watchdog.note,
            roll_back=Rollbacks(
                lambda path: restore(engine, path, channel),
                checkpoints,
                channel,
                continued,
                bounded,
                loader,
                guard,
                events,
                checkpointing.finish,
                steering.rewind if steering else lambda step: None,
            ),
            seed=recipe.seed,
            utilisation=utilisation(resolved, architecture.flops_per_token(resolved.sequence_length), world.device),
        ).fit(first_step, resolved.last_step)
    is_finished = is_done and not evaluation.is_due
    events.write("end" if is_finished else "stop", step=num_steps_done, reason=stopping.reason.name.lower())
    if not is_finished:
        reason = stopping.reason.name.lower().replace("_", " ")
        logger().info("stopped after step %d: %s. Continue with --resume auto.", num_steps_done, reason)
    return is_finished


def utilisation(resolved: Resolved, flops_per_token: float, device: torch.device) -> Callable[[float], float | None]:
    """Tokens per second -> MFU; None for devices whose peak is not known."""
    if device.type != "cuda":
        return lambda tokens_per_second: None
    name = torch.cuda.get_device_name(device)
    return lambda tokens_per_second: mfu(tokens_per_second, flops_per_token, name, resolved.world_size)
