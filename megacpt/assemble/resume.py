"""Starting a run folder, or continuing what is in it: what may change between the two, and what may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.folder import CheckpointFolder, find_checkpoint, read_state
from megacpt.checkpoint.intact import first_intact
from megacpt.data.history import CorpusRecord, History, Stage
from megacpt.data.insertions import DOMAIN as INSERTIONS
from megacpt.errors import CheckpointError
from megacpt.observe.log import logger
from megacpt.recipe import Recipe, Resolved

FREE = (
    "name",
    "logging",
    "evaluation",
    "forgetting",
    "checkpoint",
    "training.stop_at_step",
    "data.domains.*.held_out",
    "data.special_tokens",
    "loss.kernel",
    "optimizer.reset",
    "guard",
    "parallel",
    "batch.micro_rows",
    "model.attention",
    "model.vocab_multiple",
)
"""Keys that do not change what is computed, but for rounding; everything else must be as it was in the checkpoint."""

SEEN = ("evaluation.tokens_per_domain", "data.domains.*.held_out")
"""Of these, the keys that a mixture controller decides by: other text has another base loss than it remembers."""


def choose_checkpoint(resume: str | None, run_folder: Path, channel: Channel) -> Path | None:
    """The checkpoint to continue, None for a fresh start. Collective: every rank looks at its share of the files.

    A run's newest checkpoint may be damaged: then the newest intact one is taken, with a warning.

    Args:
        resume: None: start fresh; "auto": the newest of the run folder, if there is one; else a run or checkpoint.
        run_folder: of the run about to start.
        channel: to the other ranks.

    Raises:
        CheckpointError: a fresh start in a folder that holds a run; no checkpoint, or no intact one, where there
            should be one.
    """
    candidates, error = channel.broadcast(_candidates(resume, run_folder) if channel.is_main else None)
    if error:
        raise error
    chosen, damaged = first_intact(candidates, channel)
    if damaged and chosen is None:
        raise CheckpointError(
            "no checkpoint here is intact" if len(candidates) > 1 else "this checkpoint is damaged",
            where=str(candidates[0].parent if len(candidates) > 1 else candidates[0]),
            found="; ".join(damaged),
            hint="`megacpt checkpoint verify RUN` looks at all files of all checkpoints.",
        )
    return chosen


def _candidates(resume: str | None, run_folder: Path) -> tuple[list[Path], CheckpointError | None]:
    """The checkpoints to try, the best one first, and what is wrong if that cannot be said."""
    folder = CheckpointFolder(run_folder / "checkpoints")
    if resume is None and ((run_folder / "metrics.jsonl").exists() or folder.complete()):
        return [], CheckpointError(
            "the run folder already holds a run",
            where=str(run_folder),
            hint="Continue it with --resume auto, or choose another folder with --set name=NEW.",
        )
    if resume is None:
        return [], None
    if resume == "auto":
        return folder.complete()[::-1], None
    try:
        named = find_checkpoint(Path(resume))
    except CheckpointError as error:
        return [], error
    is_run = (Path(resume) / named.parent.name).is_dir()
    return (CheckpointFolder(named.parent).complete()[::-1] if is_run else [named]), None


def state(resolved: Resolved, history: History, step: int) -> dict[str, Any]:
    """What state.json of a checkpoint holds."""
    return {
        "step": step,
        "tokens": history.tokens(step),
        "layout": _layout(resolved),
        "versions": {name: version(name) for name in ("megacpt", "torch", "deepspeed", "transformers")},
        "dtype": resolved.recipe.model.dtype,
        "data": history.to_json(),
        "recipe": resolved.recipe.model_dump(mode="json", exclude={"logging"}),
    }


def continued_history(
    saved: Mapping[str, Any],
    plan: Sequence[Stage],
    corpora: Mapping[str, CorpusRecord],
    checkpoint: Path,
    accepted: Sequence[str] = (),
    shard_names: Mapping[str, Sequence[str]] | None = None,
    recipe: Recipe | None = None,
) -> History:
    """The data of a run that goes on: the checkpoint's history, and from its step on the recipe's plan if it changed.

    The history also says where domains leave that will be exhausted. That is forgotten where it is no longer so: they
    may be read more often or less, or have other text.

    Args:
        saved: the checkpoint's state.
        plan: of the present recipe.
        corpora: domain -> what identifies its text now.
        checkpoint: for messages.
        accepted: keys whose change the user accepts; data.domains.NAME.shards accepts another text. What is accepted
            goes on record in the history.
        shard_names: domain -> what its shards are called, for messages.
        recipe: the present one; None: its domains are exhausted when they were.

    Raises:
        CheckpointError: the text of a domain changed; all changes are named.
    """
    history, step = History.from_json(saved["data"]), saved["step"]
    limited = _limited(_computing(recipe)) if recipe else {}
    anew = recipe is not None and limited != _limited(_completed(saved["recipe"]))
    anew |= any(corpora[name] != history.latest_corpus(name) for name in limited if name in corpora)
    refused: dict[str, str] = {}
    for name, record in corpora.items():
        before = history.latest_corpus(name)
        if before is None or before == record:
            continue
        change = f"domain {name}: {', '.join(before.changes(record, (shard_names or {}).get(name, ())))}"
        key = "data.insertions" if name == INSERTIONS else f"data.domains.{name}.shards"
        if any(_matches(key, pattern) for pattern in accepted):
            history = history.accept(step, change)
        else:
            refused[key] = change
    if refused:
        raise CheckpointError(
            "the data is not that of the checkpoint: " + "; ".join(refused.values()),
            where=str(checkpoint),
            hint="Restore it. Or let it hold from here on: shards behind the others lengthen the epoch, any other "
            f"change of text repeats and skips some: {' '.join(f'--accept {key}' for key in refused)}.",
        )
    return history.replan(step, plan, corpora, anew=anew)


def _limited(recipe: Mapping[str, Any]) -> dict[str, tuple[float, str]]:
    """Domain -> how often it may be read, and what follows, of those that are not read on."""
    return {
        name: (domain["max_epochs"], domain["when_exhausted"])
        for name, domain in recipe["data"]["domains"].items()
        if domain.get("when_exhausted", "repeat") != "repeat"
    }


def _layout(resolved: Resolved) -> dict[str, int]:
    zero = resolved.recipe.parallel.zero_stage
    return {"pipeline": resolved.pipeline, "tensor": resolved.tensor, "data": resolved.data, "ZeRO": zero}


def check_continues(resolved: Resolved, checkpoint: Path, accepted: tuple[str, ...] = ()) -> dict[str, Any]:
    """The checkpoint's state, if this recipe continues it.

    Args:
        resolved: the recipe on the present world.
        checkpoint: a complete checkpoint.
        accepted: keys whose change the user accepts.

    Raises:
        CheckpointError: a key that matters differs; all of them are named.
    """
    saved = read_state(checkpoint)
    if saved["layout"] != _layout(resolved):
        logger().info("a checkpoint of %s goes on as %s", _spelled(saved["layout"]), _spelled(_layout(resolved)))
    current = _computing(resolved.recipe)
    fixed = () if resolved.recipe.mixture.controller == "static" else SEEN
    changes = {
        key: _change(before, now, resolved.recipe.where(key))
        for key, before, now in _differences(_completed(saved["recipe"]), current)
        if not any(_matches(key, pattern) for pattern in accepted)
        if any(_matches(key, pattern) for pattern in fixed) or not any(_matches(key, pattern) for pattern in FREE)
    }
    if changes:
        raise CheckpointError(
            "the recipe contradicts the checkpoint: " + "; ".join(f"{key}: {words}" for key, words in changes.items()),
            where=str(checkpoint),
            hint="Use the checkpoint's own values, start a new run from its export, or let the new ones hold from here "
            f"on with {' '.join(f'--accept {key}' for key in changes)}.",
        )
    return saved


def _change(before: Any, now: Any, where: str) -> str:
    if before is None and isinstance(now, dict):
        return f"not there then, but in {where}"
    if now is None and isinstance(before, dict):
        return f"there then, and not in {where}"
    return f"{before!r} then, {now!r} in {where}"


def _completed(recipe: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's recipe, with the defaults of keys that the version which wrote it did not have."""
    try:
        return _computing(Recipe.model_validate(recipe))
    except ValidationError:  # keys that are no more: the differences name them
        return recipe


def _computing(recipe: Recipe) -> dict[str, Any]:
    """A recipe as it is compared: parts of a domain that have no weights are only measured."""
    values = recipe.model_dump(mode="json", exclude={"logging"})
    for domain in values["data"]["domains"].values():
        if not domain["part_weights"]:
            domain["parts_by"] = None
    return values


def _spelled(layout: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {degree}" for axis, degree in layout.items())


def _matches(key: str, pattern: str) -> bool:
    """`pattern` names the key or a section above it; `*` stands for one name."""
    parts, wanted = key.split("."), pattern.split(".")
    return len(parts) >= len(wanted) and all(w in ("*", p) for p, w in zip(parts, wanted, strict=False))


def _differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, before, now) of every leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before | now:
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield key, before, now


def run_folder(recipe: Recipe) -> Path:
    """Where the run keeps everything: logging.folder / name."""
    return Path(recipe.logging.folder) / recipe.name
