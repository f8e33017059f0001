"""Whether model, shards and disk belong together, before anything is built.

What does not match here trains without an error and spoils the model. A start makes these checks on every rank;
`megacpt doctor` makes them all in one process, and says what it found.
"""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

import torch
from transformers import PretrainedConfig

from megacpt.assemble import data, mixture, model, resume
from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.huggingface import SafetensorsWeights
from megacpt.data.corpus import Corpus
from megacpt.data.special_tokens import SpecialTokens
from megacpt.data.stream import Stream
from megacpt.data.view import View
from megacpt.errors import CheckpointError, DataError, LaunchError, MegacptError, ModelError
from megacpt.model.blueprint import Blueprint
from megacpt.model.fill import WeightSource
from megacpt.model.probe import probe
from megacpt.observe.log import logger, warn_once
from megacpt.observe.sinks import import_wandb
from megacpt.parallel.slices import Slice
from megacpt.recipe import Architecture, Recipe, Resolved, checkpoint_bytes, num_checkpoints
from megacpt.units import counted, rounded_bytes

PART_OF_THE_HEAD = Slice(dim=0, index=8, count=16)
"""Rows from the middle of the vocabulary, where no token is reserved: enough to tell a head from an embedding."""


def check_special_tokens(
    recipe: Recipe, parts: Mapping[str, Mapping[str, Corpus | View]], known: SpecialTokens | None
) -> None:
    """Refuse shards whose documents begin or end otherwise than the model knows; warn of documents without an end.

    Args:
        recipe: `data.special_tokens` says whether it matters.
        parts: "shards" and "held_out" -> domain -> corpus.
        known: the model's; None: nobody knows.

    Raises:
        DataError: BOS is missing, superfluous or another token; EOS is no EOS of the model.
    """
    if recipe.data.special_tokens == "as_built":
        return
    for part, corpora in parts.items():
        for name, corpus in corpora.items():
            made_by = corpus.tokenizer
            if made_by is None:
                continue
            key = f"data.domains.{name}.{part}"
            if not made_by.adds_eos:
                warn_once("%s: no token ends a document: the model does not learn where to stop", key)
            if known is None:
                continue
            begins = made_by.bos_id if made_by.adds_bos else None
            expected = known.bos_id if known.adds_bos else None
            if begins != expected:
                raise DataError(
                    "the documents of these shards do not begin as the model knows it",
                    where=recipe.where(key),
                    found="no BOS" if begins is None else f"BOS {begins}",
                    expected="no BOS" if expected is None else f"BOS {expected}",
                    hint="Build them anew with the model's tokenizer, or say data.special_tokens: as_built.",
                )
            if made_by.adds_eos and known.end_ids and made_by.eos_id not in known.end_ids:
                raise DataError(
                    "the documents of these shards end with a token that is no EOS of the model",
                    where=recipe.where(key),
                    found=made_by.eos_id,
                    expected=" or ".join(map(str, sorted(known.end_ids))),
                    hint="Build them anew with the model's tokenizer, or say data.special_tokens: as_built.",
                )


def check_head(plan: Blueprint, source: WeightSource) -> None:
    """Refuse weights whose vocabulary or head is not what the config says. Random weights have no say.

    Raises:
        ModelError: the embedding or the head has other rows than the vocabulary, which loading would cut or pad; an
            untied head is missing, or a tied one differs from the embedding.
    """
    if not isinstance(source, SafetensorsWeights):
        return
    head, embedding = f"{plan.head_name}.weight", f"{plan.embedding_name}.weight"
    if not plan.tied and head not in source:
        raise ModelError(
            "the config says that the head has weights of its own, but there are none",
            where=str(source.folder),
            found=f"no tensor '{head}'",
            hint="If the embedding is the head, set tie_word_embeddings: true in config.json; else fetch the weights.",
        )
    for name in (embedding, head):
        if name in source and (num_rows := source.num_rows(name)) != plan.vocab_size:
            raise ModelError(
                f"the weights do not fit the model's config, at '{name}'",
                where=str(source.folder),
                found=counted(num_rows, "row"),
                expected=f"{plan.vocab_size:,}, the config's vocab_size",
                hint="config.json and the weights are of different models.",
            )
    if plan.tied and head in source:
        parts = (source.read(name, PART_OF_THE_HEAD) for name in (head, embedding))
        if not torch.equal(*parts):
            raise ModelError(
                "the config says that the embedding is the head, but the weights have another head",
                where=str(source.folder),
                found=f"a tensor '{head}' that differs from '{embedding}'",
                hint="Set tie_word_embeddings: false in config.json; else the head would be thrown away.",
            )


def check_writable(folder: Path) -> None:
    """Prove that this process can write to the run folder, or to where it would be made; nothing is left behind.

    Raises:
        LaunchError: it cannot.
    """
    try:
        with TemporaryFile(dir=_existing(folder)):
            pass
    except OSError as error:
        raise LaunchError(
            "the run folder cannot be written",
            where=str(folder),
            found=f"{error.strerror}, on {socket.gethostname()}",
            hint="Set logging.folder to a place of yours on a disk that all nodes share.",
        ) from error


def check_wandb(recipe: Recipe) -> None:
    """Import wandb, if the recipe asks for it: for rank 0, which alone uses it.

    Raises:
        LaunchError: it is not installed.
    """
    if recipe.logging.wandb is not None:
        import_wandb(recipe.where("logging.wandb"))


def check_disk(resolved: Resolved, architecture: Architecture, folder: Path, channel: Channel) -> None:
    """Warn if the run folder's disk has no room for the checkpoints that the run will keep at a time. Collective.

    Raises:
        CheckpointError: not even one fits.
    """
    checkpoints, settings = folder.absolute() / "checkpoints", resolved.recipe.checkpoint
    free_bytes: int = channel.broadcast(shutil.disk_usage(_existing(checkpoints)).free)
    each_bytes = checkpoint_bytes(architecture)
    if free_bytes < each_bytes and (settings.at_end or resolved.checkpoint_every_steps or resolved.milestones_tokens):
        raise CheckpointError(
            "the disk has no room for one checkpoint",
            where=str(folder),
            found=f"{rounded_bytes(free_bytes)} left",
            expected=rounded_bytes(each_bytes),
            hint="Make room, or set logging.folder to another disk.",
        )
    if not channel.is_main:
        return
    present_bytes = sum(path.stat().st_size for path in checkpoints.rglob("*") if path.is_file())
    needed_bytes = num_checkpoints(resolved) * each_bytes - present_bytes
    if needed_bytes > free_bytes:
        logger().warning(
            "the checkpoints of this run may take %s more, and %s has %s left: make room, lower "
            "checkpoint.keep_last, or set logging.folder to another disk",
            *(rounded_bytes(needed_bytes), folder, rounded_bytes(free_bytes)),
        )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


@dataclass(frozen=True)
class Finding:
    """What a check found, in words."""

    name: str
    verdict: Literal["ok", "warning", "error", "not checked"]
    text: str


class _Run:
    """What a run is made of, opened when it is first asked for."""

    def __init__(self, resolved: Resolved) -> None:
        self.resolved, self.recipe = resolved, resolved.recipe

    @cached_property
    def base(self) -> Path | None:
        return model.model_folder(self.recipe)

    @cached_property
    def config(self) -> PretrainedConfig:
        return model.hf_config(self.recipe, self.base)

    @cached_property
    def plan(self) -> Blueprint:
        if torch.cuda.is_available():
            return model.blueprint(self.recipe, self.config, torch.device("cuda"))
        probe(self.config)  # the GPUs' attention and kernels cannot be asked for here
        return Blueprint(self.config, model.DTYPES[self.recipe.model.dtype])

    @cached_property
    def parts(self) -> dict[str, dict[str, Corpus | View]]:
        return {part: data.open_corpora(self.recipe, part, self.config.vocab_size) for part in ("shards", "held_out")}


def _model(run: _Run) -> str:
    return f"{run.base or 'random weights'} ({run.config.model_type}), {run.plan.num_parameters():,} parameters"


def _rope(run: _Run) -> str:
    return ", ".join(f"{key} {value}" for key, value in (run.config.rope_parameters or {}).items())


def _head(run: _Run) -> str:
    check_head(run.plan, model.weights(run.recipe, run.plan, run.base))
    return "the embedding" if run.plan.tied else "weights of its own"


def _shards(run: _Run) -> str:
    tokens = {part: sum(corpus.num_tokens for corpus in corpora.values()) for part, corpora in run.parts.items()}
    data.divided(run.recipe, run.parts["shards"])
    return f"{tokens['shards']:,} tokens to train on, {tokens['held_out']:,} held out, ids fit the vocabulary"


def _tokenizer(run: _Run) -> str:
    fingerprint = model.tokenizer_fingerprint(run.recipe, run.base)
    data.check_tokenizers(run.recipe, run.parts, fingerprint)
    return f"fingerprint {fingerprint[:12]}" if fingerprint else "the model has none: shards compared with each other"


def _documents(run: _Run) -> str:
    known = model.special_tokens(run.recipe, run.base)
    check_special_tokens(run.recipe, run.parts, known)
    if known is None or run.recipe.data.special_tokens == "as_built":
        return "taken as they were built"
    return f"{f'BOS {known.bos_id}' if known.adds_bos else 'no BOS'}, EOS {known.eos_id}"


def _epochs(run: _Run) -> str:
    history = data.history(run.resolved, run.parts["shards"])
    resolved, stream = data.bounded(data.lasting(run.resolved, history), Stream(run.parts["shards"], history))
    data.check_epochs(run.recipe, stream, resolved.last_step)
    return ", ".join(f"{domain.name} {domain.epochs:.2f}" for domain in stream.report(resolved.last_step))


def _insertions(run: _Run) -> str:
    found = data.insertions(run.resolved, run.config.vocab_size, model.encoder(run.recipe, run.base))
    stream = Stream(run.parts["shards"], data.history(run.resolved, run.parts["shards"], found), found)
    return f"in {counted(len(found), 'place')} of {counted(len(stream.places), 'step')}" if found else "none"


def _mixture(run: _Run) -> str:
    mixture.controller(run.recipe)
    return run.recipe.mixture.controller


def _disk(run: _Run) -> str:
    folder = resume.run_folder(run.recipe)
    check_writable(folder)
    check_disk(run.resolved, Architecture.from_config(run.config.to_dict()), folder, Channel())
    return "room for the checkpoints"


def _logging(run: _Run) -> str:
    check_wandb(run.recipe)
    kinds = {"TensorBoard": run.recipe.logging.tensorboard, "Weights & Biases": run.recipe.logging.wandb is not None}
    return ", ".join(["JSON lines", *(kind for kind, is_on in kinds.items() if is_on)])


CHECKS: Mapping[str, Callable[[_Run], str]] = {
    "model": _model,
    "rope": _rope,
    "head": _head,
    "shards": _shards,
    "tokenizer": _tokenizer,
    "documents": _documents,
    "epochs": _epochs,
    "insertions": _insertions,
    "mixture": _mixture,
    "disk": _disk,
    "logging": _logging,
}
"""Name -> a check that says what it found, warns by the log, or raises what the user has to mend."""


def examine(resolved: Resolved) -> Iterator[Finding]:
    """Everything that can be checked of a fresh run without training: a finding for each of `CHECKS`, in their order.

    What needs the same broken thing as an earlier check is not checked.
    """
    run, raised = _Run(resolved), set[str]()
    for name, check in CHECKS.items():
        with _warnings() as warned:
            try:
                text = check(run)
            except MegacptError as error:
                is_new = str(error) not in raised
                raised.add(str(error))
                yield Finding(name, *(("error", str(error)) if is_new else ("not checked", "needs what failed above")))
                continue
        yield Finding(name, "warning" if warned else "ok", "; ".join(warned) or text)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """The log's warnings, kept from the log."""
    kept: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            kept.append(record.getMessage())
        return False

    logger().addFilter(keep)
    try:
        yield kept
    finally:
        logger().removeFilter(keep)
