"""The data of a recipe: corpora, mixture, stream, this rank's loader, held-out sets; and what they amount to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from megacpt.data.corpus import Corpus, open_corpus
from megacpt.data.held_out import HeldOut
from megacpt.data.history import CorpusRecord, History, Settings, Stage
from megacpt.data.insertions import DOMAIN as INSERTIONS
from megacpt.data.insertions import FILE_NAME as INSERTIONS_FILE
from megacpt.data.insertions import Insertion, read_insertions, read_places, record_of_insertions, write_places
from megacpt.data.loader import Loader
from megacpt.data.parts import Parts, divide, domain_of
from megacpt.data.rows import cut_documents
from megacpt.data.stream import Stream, exhausted_at, record_of
from megacpt.data.view import Subset, View, select
from megacpt.errors import DataError
from megacpt.evaluate.evaluator import Aligned
from megacpt.observe.log import logger, warn_once
from megacpt.parallel.grid import Coordinate
from megacpt.recipe import Recipe, Resolved, objective
from megacpt.units import counted


def open_corpora(recipe: Recipe, part: str, vocab_size: int) -> dict[str, Corpus | View]:
    """Domain -> its tokens, of all domains that have this part; of `shards`, the subset that the recipe trains on.

    Args:
        recipe: the recipe.
        part: "shards" or "held_out".
        vocab_size: of the model.

    Raises:
        DataError: shards are missing or broken, or made for another vocabulary; without a manifest a sample tells.
    """
    corpora: dict[str, Corpus | View] = {}
    for name, domain in recipe.data.domains.items():
        is_divided = part == "held_out" and domain.held_out_share > 0
        paths = domain.shards if is_divided else getattr(domain, part)
        if not paths:
            continue
        key = f"data.domains.{name}.{'held_out_share' if is_divided else part}"
        split = Subset()
        if domain.held_out_share:
            split = Subset(held_out_share=domain.held_out_share, held_out_by=domain.held_out_by)
        try:
            whole = open_corpus(paths)
            corpus: Corpus | View = whole
            if part == "shards":
                subset = replace(
                    split,
                    where=domain.where,
                    rank_by=domain.rank_by,
                    top_tokens=domain.top_tokens,
                    quantiles=domain.quantiles,
                )
                if subset != Subset() or domain.order_by:
                    key = f"data.domains.{name}"
                    corpus = select(whole, subset, domain.order_by, domain.order == "descending")
            elif is_divided:
                corpus = select(whole, replace(split, is_held_out=True))
        except DataError as error:
            error.where = f"{recipe.where(key)}: {error.where}" if error.where else recipe.where(key)
            raise
        if corpus.tokenizer is not None and corpus.tokenizer.vocab_size > vocab_size:
            raise DataError(
                "these shards were made with a larger vocabulary than the model has",
                where=recipe.where(key),
                found=f"{corpus.tokenizer.vocab_size:,} tokens in {corpus.tokenizer.name}",
                expected=f"at most {vocab_size:,}",
                hint="Build the shards with the model's own tokenizer.",
            )
        if corpus.tokenizer is None:
            check_ids(recipe.where(key), corpus, vocab_size)
        corpora[name] = corpus
    return corpora


def divided(recipe: Recipe, corpora: Mapping[str, Corpus | View]) -> dict[str, Parts]:
    """Domain -> its parts, of the training text that the recipe divides.

    Raises:
        DataError: there is no such column, it has too many values, or a weight is of none of them.
    """
    parts: dict[str, Parts] = {}
    for name, corpus in corpora.items():
        domain, key = recipe.data.domains[name], f"data.domains.{name}"
        if domain.parts_by is None:
            continue
        try:
            parts[name] = divide(corpus, domain.parts_by)
        except DataError as error:
            error.where = recipe.where(f"{key}.parts_by")
            raise
        if unknown := [part for part in domain.part_weights if part not in parts[name].names]:
            raise DataError(
                f"no document of the domain is of part {unknown[0]!r}",
                where=recipe.where(f"{key}.part_weights"),
                expected=f"one of {', '.join(parts[name].names)}",
            )
    return parts


SAMPLED_PLACES, SAMPLED_TOKENS = 64, 4096
"""How much is looked at of text without a manifest: so many tokens in so many places."""
LONG_DOCUMENT_TOKENS = 1 << 20
"""Text of more tokens without a manifest is hardly a single document."""


def check_ids(where: str, corpus: Corpus | View, vocab_size: int) -> None:
    """Refuse text without a manifest if a sample of it has ids that the model does not know.

    Warns of text that is one long document: what should end documents does not occur in it.

    Raises:
        DataError: it has.
    """
    if corpus.num_documents == 1 and corpus.num_tokens > LONG_DOCUMENT_TOKENS:
        warn_once(
            "%s: all %s tokens are one document; of raw files, is the eos_id right?", where, f"{corpus.num_tokens:,}"
        )
    count = min(SAMPLED_TOKENS, corpus.num_tokens)
    for start in np.unique(np.linspace(0, corpus.num_tokens - count, SAMPLED_PLACES, dtype=np.int64)).tolist():
        ids = corpus.read(start, count)
        if (unknown := ids[(ids < 0) | (ids >= vocab_size)]).size:
            raise DataError(
                "there are ids that the model's vocabulary does not have",
                where=where,
                found=f"{unknown[0]:,} among {count:,} tokens from {start:,} on",
                expected=f"ids below {vocab_size:,}",
                hint="Of raw files, is the dtype right? Else another tokenizer made them.",
            )


def check_tokenizers(
    recipe: Recipe, parts: Mapping[str, Mapping[str, Corpus | View]], model_fingerprint: str | None
) -> None:
    """Refuse shards of different tokenizers, or of another tokenizer than the model's.

    Fingerprints are of one kind of tokenizer file: a tokenizer.json and a SentencePiece model of the same tokenizer
    have different ones and cannot be compared; the size of the vocabulary is all that is checked between them.

    Args:
        recipe: the recipe, for messages.
        parts: "shards" and "held_out" -> domain -> corpus.
        model_fingerprint: of the model's tokenizer.json; None where there is none.

    Raises:
        DataError: two fingerprints differ.
    """
    known = {"huggingface": (model_fingerprint, "the model's tokenizer")} if model_fingerprint else {}
    for part, corpora in parts.items():
        for name, corpus in corpora.items():
            made_by = corpus.tokenizer
            if made_by is None:
                continue
            expected, owner = known.setdefault(made_by.kind, (made_by.fingerprint, f"domain '{name}'"))
            if made_by.fingerprint != expected:
                raise DataError(
                    "these shards were built with another tokenizer",
                    where=recipe.where(f"data.domains.{name}.{part}"),
                    found=f"{made_by.name}, fingerprint {made_by.fingerprint[:12]}",
                    expected=f"fingerprint {expected[:12]}, that of {owner}",
                    hint="The same ids would mean other text. Build them anew: megacpt shards build --tokenizer MODEL.",
                )


def plan(resolved: Resolved) -> tuple[Stage, ...]:
    """What the recipe asks of the stream, stage by stage."""
    return tuple(
        Stage(stage.from_tokens, Settings(stage.weights, stage.sequence_length, stage.global_rows))
        for stage in resolved.stages
    )


def lasting(resolved: Resolved, history: History) -> Resolved:
    """The recipe with the length that the run has after all that happened to it: global batches may have changed."""
    num_steps, stop = history.num_steps(resolved.recipe.training.tokens), resolved.recipe.training.stop_at_step
    begins = [history.tokens(history.num_steps(rate.from_tokens)) for rate in resolved.rates]
    return replace(
        resolved,
        num_steps=num_steps,
        last_step=num_steps if stop is None else min(num_steps, stop),
        rates=tuple(
            replace(rate, from_tokens=begin, total_tokens=end - begin)
            for rate, begin, end in zip(resolved.rates, begins, [*begins[1:], history.tokens(num_steps)], strict=True)
        ),
    )


def history(resolved: Resolved, corpora: Mapping[str, Corpus | View], insertions: Sequence[Insertion] = ()) -> History:
    """The data of a run that starts now."""
    return History.begin(resolved.recipe.seed, plan(resolved), records(resolved.recipe, corpora, insertions))


def records(
    recipe: Recipe, corpora: Mapping[str, Corpus | View], insertions: Sequence[Insertion] = ()
) -> dict[str, CorpusRecord]:
    """Domain -> what identifies its text; insertions are one."""
    read: dict[str, CorpusRecord] = {}
    for name, corpus in corpora.items():
        domain = recipe.data.domains[name]
        order = f"{domain.order} by {domain.order_by}" if domain.order_by else domain.order
        read[name] = record_of(
            corpus,
            redraw=domain.redraw,
            order=order,
            window_tokens=domain.order_window,
            packing=recipe.data.packing,
            subset=corpus.subset if isinstance(corpus, View) else None,
        )
    if insertions:
        read[INSERTIONS] = record_of_insertions(insertions)
    return read


def insertions(resolved: Resolved, vocab_size: int, encode: Callable[[str], list[int]] | None) -> tuple[Insertion, ...]:
    """What the recipe inserts into the stream.

    Places are of the tokens that the recipe asks for: those of whole steps change with the number of ranks, where these
    round the global batch.

    Raises:
        DataError: a file cannot be read, or a line of it is wrong.
    """
    return read_insertions(
        resolved.recipe.data.insertions,
        seed=resolved.recipe.seed,
        total_tokens=resolved.recipe.training.tokens,
        sequence_length=resolved.sequence_length,
        vocab_size=vocab_size,
        encode=encode,
    )


def keep_insertions(rows: Stream, folder: Path, origin: Path | None, first_step: int) -> None:
    """Write where insertions stand into the run folder; what the run that is continued had until now is kept.

    Args:
        rows: the run's.
        folder: the run folder.
        origin: the folder of the run that is continued.
        first_step: steps done before.
    """
    ahead = [each for step, there in sorted(rows.places.items()) if step >= first_step for each in there]
    before = [] if origin is None else read_places(origin / INSERTIONS_FILE, first_step)
    if ahead or before:
        write_places(folder / INSERTIONS_FILE, ahead, rows.history, before)


SHOWN_PARTS = 8
"""Parts of a domain that the plan of a run names, the largest ones."""

HOPELESS_EPOCHS = 16
"""Beyond so many epochs, repeated tokens are worth next to nothing (Muennighoff et al. 2023, arXiv:2305.16264)."""


def bounded(resolved: Resolved, rows: Stream, first_step: int = 0) -> tuple[Resolved, Stream]:
    """The run with `when_exhausted` obeyed: a domain that was read `max_epochs` times leaves, or ends the run.

    One at a time, the earliest first: what one leaves is read from the others, which are then exhausted sooner. The run
    ends where none is left.

    Args:
        resolved: the recipe.
        rows: of the run.
        first_step: where it goes on. A domain that has been read more often until there, when it was allowed to, leaves
            there: what was done stays as it is on record.
    """
    domains = resolved.recipe.data.domains
    waiting = {name for name in rows.names if name in domains and domains[name].when_exhausted != "repeat"}
    while True:
        found = exhausted_at(rows, {name: domains[name].max_epochs for name in waiting}, resolved.last_step)
        if found is None:
            return resolved, rows
        step, name = max(found[0], first_step), found[1]
        if domains[name].when_exhausted == "stop":
            logger().info("the run ends after step %d: domain %s is exhausted there", step, name)
            return replace(resolved, last_step=step), rows
        waiting.remove(name)
        later = [segment.from_step for segment in rows.history.segments if segment.from_step > step]
        history = rows.history
        for change in [step, *later]:
            weights = {other: w for other, w in history.settings(change).weights.items() if other != name}
            if not any(weights.values()):
                logger().info("the run ends after step %d: all its domains are exhausted there", change)
                resolved = replace(resolved, last_step=change)
                break
            history = history.set_weights(change, weights)
        rows = rows.with_history(history)


def check_epochs(recipe: Recipe, rows: Stream, num_steps: int) -> None:
    """Warn of domains that the run reads more often than their `max_epochs`.

    Raises:
        DataError: one would be read more than 16 times, and `max_epochs` does not say that it may.
    """
    for domain in rows.report(num_steps):
        limit = recipe.data.domains[domain.name].max_epochs if domain.name in recipe.data.domains else math.inf
        if domain.epochs <= limit:
            continue
        if domain.epochs > HOPELESS_EPOCHS:
            raise DataError(
                f"the run would read domain '{domain.name}' {domain.epochs:.1f} times",
                where=recipe.where(f"data.domains.{domain.name}.max_epochs"),
                expected=f"at most {max(limit, HOPELESS_EPOCHS):g}",
                hint="Give it more text, a smaller weight or the run fewer tokens; or raise max_epochs, knowingly.",
            )
        warn_once(
            "domain %s is read %.1f times, more than its max_epochs %g: %s of its %s tokens are repeated",
            *(domain.name, domain.epochs, limit),
            *(f"{domain.tokens - domain.unique_tokens:,}", f"{domain.tokens:,}"),
        )


def loader(resolved: Resolved, rows: Stream, place: Coordinate, first_step: int) -> Loader:
    """This rank's micro-batches."""
    recipe = resolved.recipe
    factors = {
        f"{name}/{part}": weight
        for name, domain in recipe.data.domains.items()
        for part, weight in domain.part_weights.items()
    }

    def loss_weights(shares: Mapping[str, float]) -> dict[str, float]:
        weights = objective(recipe, shares).weights
        return {name: weights.get(domain_of(name), 1.0) * factors.get(name, 1.0) for name in rows.counted}

    return Loader(
        rows,
        resolved.micro_rows,
        dp_rank=place.data,
        dp_size=resolved.data,
        loss_weights=loss_weights,
        document_mask=recipe.data.document_mask,
        start_step=first_step,
    )


def held_out(recipe: Recipe, corpora: Mapping[str, Corpus | View]) -> dict[str, HeldOut]:
    """Domain -> the held-out text that is evaluated."""
    return _held_out(recipe, corpora, recipe.evaluation.tokens_per_domain)


def aligned(recipe: Recipe, corpora: Mapping[str, Corpus | View]) -> Aligned | None:
    """The held-out text whose gradients are compared, new against each of the others; None where none are."""
    num_tokens = recipe.evaluation.gradient_alignment
    if num_tokens is None:
        return None
    texts = _held_out(recipe, corpora, num_tokens)
    is_new = {name: recipe.data.domains[name].role == "new" for name in texts}
    return (
        [text for name, text in texts.items() if is_new[name]],
        {name: text for name, text in texts.items() if not is_new[name]},
    )


def _held_out(recipe: Recipe, corpora: Mapping[str, Corpus | View], max_tokens: int | None) -> dict[str, HeldOut]:
    length, document_mask = recipe.data.sequence_length, recipe.data.document_mask
    return {name: HeldOut(corpus, length, max_tokens, document_mask=document_mask) for name, corpus in corpora.items()}


def describe(rows: Stream, num_steps: int) -> dict[str, str]:
    """Domain -> what the run takes from it, in words; and what is inserted."""
    return _insertions_in_words(rows, num_steps) | {
        domain.name: (
            f"{domain.share:.1%} of the tokens: {domain.tokens:,} ({domain.unique_tokens:,} of them different), "
            f"{domain.epochs:.2f} epochs{_order_in_words(rows, domain.name)}{_packing_in_words(rows, domain.name)}"
            f"{_parts_in_words(rows, domain.name)}"
            + "".join(f"; {removed}" for removed in getattr(rows.corpora.get(domain.name), "removed", ()))
        )
        for domain in rows.report(num_steps)
    }


def _insertions_in_words(rows: Stream, num_steps: int) -> dict[str, str]:
    since = max((each.from_step for each in rows.history.corpora if each.domain == INSERTIONS), default=0)
    places = [(step, len(each.insertion.tokens)) for step, there in rows.places.items() for each in there]
    sizes = [num_tokens for step, num_tokens in places if since <= step < num_steps]
    words = f"{sum(sizes):,} tokens in {counted(len(sizes), 'place')}"
    if num_late := sum(step < since for step, _ in places):
        words += f"; {counted(num_late, 'place')} before step {since + 1:,} came too late"
    return {INSERTIONS: words} if places else {}


def _order_in_words(rows: Stream, name: str) -> str:
    record, cut = rows.history.latest_corpus(name), rows.cuts[rows.names.index(name)][-1]
    if record is None or cut.window_rows is None:
        return ""
    words = "as stored" if record.order == "as_stored" else record.order
    return f", {words}, shuffled within {cut.window_rows * cut.sequence_length:,} tokens"


def _packing_in_words(rows: Stream, name: str) -> str:
    cut = rows.cuts[rows.names.index(name)][-1]
    if cut.packing == "concat" or name not in rows.corpora:
        return ""
    share = cut_documents(rows.corpora[name], cut.sequence_length)
    return f", best fit: {share.best_fit:.2%} of the documents are cut ({share.concat:.2%} end to end), no padding"


def _parts_in_words(rows: Stream, name: str) -> str:
    if name not in rows.parts:
        return ""
    tokens = rows.parts[name].num_tokens
    largest = sorted(tokens, key=tokens.__getitem__, reverse=True)
    words = [f"{part} {tokens[part] / sum(tokens.values()):.1%}" for part in largest[:SHOWN_PARTS]]
    words += [f"{len(largest) - SHOWN_PARTS} more"] * (len(largest) > SHOWN_PARTS)
    return f"; parts: {', '.join(words)}"


def describe_objective(recipe: Recipe, history: History) -> dict[str, str]:
    """What the loss weights make of the objective in each stage, in words; empty without target weights.

    Warns of weights that are clipped, or that leave few samples effective.
    """
    if all(domain.target_weight is None for domain in recipe.data.domains.values()):
        return {}
    lines = {}
    for stage in history.plan:
        weighting = objective(recipe, history.planned_shares(history.num_steps(stage.from_tokens)))
        parts = (
            f"{name} {mass:.1%} (loss weight {weighting.weights[name]:.3g})" for name, mass in weighting.masses.items()
        )
        lines[f"objective from {stage.from_tokens:,}" if stage.from_tokens else "objective"] = ", ".join(parts)
        for warning in weighting.warnings():
            logger().warning(warning)
    return lines
