"""Starting a run folder, or continuing what is in it: what may change between the two, and what may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megacpt.checkpoint.folder import CheckpointFolder, find_checkpoint, read_state
from megacpt.data.history import CorpusRecord, History, Stage
from megacpt.errors import CheckpointError
from megacpt.recipe import Recipe, Resolved

FREE = (
    "name",
    "logging",
    "evaluation",
    "forgetting",
    "checkpoint",
    "training.stop_at_step",
    "data.domains.*.held_out",
    "loss.kernel",
    "guard",
)
"""Keys that do not change what is computed; everything else must be as it was in the checkpoint."""


def choose_checkpoint(resume: str | None, run_folder: Path) -> Path | None:
    """The checkpoint to continue, None for a fresh start.

    Args:
        resume: None: start fresh; "auto": the newest of the run folder, if there is one; else a run or checkpoint.
        run_folder: of the run about to start.

    Raises:
        CheckpointError: a fresh start in a folder that holds a run, or no checkpoint where one is named.
    """
    newest = CheckpointFolder(run_folder / "checkpoints").newest()
    if resume is None:
        if (run_folder / "metrics.jsonl").exists() or newest is not None:
            raise CheckpointError(
                "the run folder already holds a run",
                where=str(run_folder),
                hint="Continue it with --resume auto, or choose another folder with --set name=NEW.",
            )
        return None
    return newest if resume == "auto" else find_checkpoint(Path(resume))


def state(resolved: Resolved, vocab_size: int, history: History, step: int) -> dict[str, Any]:
    """What state.json of a checkpoint holds."""
    return {
        "format": 1,
        "step": step,
        "tokens": history.tokens(step),
        "layout": _layout(resolved),
        "vocab_size": vocab_size,
        "weights": "engine",
        "data": history.to_json(),
        "recipe": resolved.recipe.model_dump(mode="json", exclude={"logging"}),
    }


def continued_history(
    saved: Mapping[str, Any],
    plan: Sequence[Stage],
    corpora: Mapping[str, CorpusRecord],
    checkpoint: Path,
    accepted: Sequence[str] = (),
) -> History:
    """The data of a run that goes on: the checkpoint's history, and from its step on the recipe's plan if it changed.

    Args:
        saved: the checkpoint's state.
        plan: of the present recipe.
        corpora: domain -> what identifies its text now.
        checkpoint: for messages.
        accepted: keys whose change the user accepts; data.domains.NAME.shards accepts another text. What is accepted
            goes on record in the history.

    Raises:
        CheckpointError: the text of a domain changed; all changes are named.
    """
    history, step = History.from_json(saved["data"]), saved["step"]
    refused = []
    for name, record in corpora.items():
        before = history.latest_corpus(name)
        if before is None or before == record:
            continue
        change = f"domain {name}: {', '.join(before.changes(record))}"
        if any(_matches(f"data.domains.{name}.shards", pattern) for pattern in accepted):
            history = history.accept(step, change)
        else:
            refused.append(change)
    if refused:
        raise CheckpointError(
            "the data is not that of the checkpoint: " + "; ".join(refused),
            where=str(checkpoint),
            hint="Restore the shards. Shards added behind the others lengthen the epoch; any other change repeats and "
            "skips text: accept either with --accept data.domains.NAME.shards.",
        )
    return history.replan(step, plan, corpora)


def _layout(resolved: Resolved) -> dict[str, int]:
    return {"pipeline": resolved.pipeline, "tensor": resolved.tensor, "data": resolved.data}


def check_continues(resolved: Resolved, checkpoint: Path, accepted: tuple[str, ...] = ()) -> dict[str, Any]:
    """The checkpoint's state, if this recipe continues it.

    Args:
        resolved: the recipe on the present world.
        checkpoint: a complete checkpoint.
        accepted: keys whose change the user accepts.

    Raises:
        CheckpointError: the layout differs, or a key that matters; all of them are named.
    """
    saved = read_state(checkpoint)
    if saved["layout"] != _layout(resolved):
        raise CheckpointError(
            "the checkpoint was written by another layout",
            where=str(checkpoint),
            found=_spelled(saved["layout"]),
            expected=_spelled(_layout(resolved)),
            hint="Resume with as many processes and the parallel section that it was written with.",
        )
    current = resolved.recipe.model_dump(mode="json", exclude={"logging"})
    changes = [
        f"{key}: {before!r} then, {now!r} in {resolved.recipe.where(key)}"
        for key, before, now in _differences(saved["recipe"], current)
        if not any(_matches(key, pattern) for pattern in (*FREE, *accepted))
    ]
    if changes:
        raise CheckpointError(
            "the recipe contradicts the checkpoint: " + "; ".join(changes),
            where=str(checkpoint),
            hint="Use the checkpoint's own values, start a new run from its export, or accept with --accept KEY.",
        )
    return saved


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
