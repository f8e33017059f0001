"""The data of a recipe: corpora, mixture, stream, this rank's loader, held-out sets; and what they amount to."""

from __future__ import annotations

import math
from collections.abc import Mapping

from megacpt.data.corpus import Corpus, open_corpus
from megacpt.data.held_out import HeldOut
from megacpt.data.history import CorpusRecord, History, Settings, Stage
from megacpt.data.loader import Loader
from megacpt.data.stream import Stream, record_of
from megacpt.data.view import Subset, View, select
from megacpt.errors import DataError
from megacpt.parallel.grid import Coordinate
from megacpt.recipe import Recipe, Resolved, objective, token_shares


def open_corpora(recipe: Recipe, part: str, vocab_size: int) -> dict[str, Corpus | View]:
    """Domain -> its tokens, of all domains that have this part; of `shards`, the subset that the recipe trains on.

    Args:
        recipe: the recipe.
        part: "shards" or "held_out".
        vocab_size: of the model.

    Raises:
        DataError: shards are missing or broken, or made for another vocabulary.
    """
    corpora: dict[str, Corpus | View] = {}
    for name, domain in recipe.data.domains.items():
        paths = getattr(domain, part)
        if not paths:
            continue
        key = f"data.domains.{name}.{part}"
        try:
            whole = open_corpus(paths)
            subset = Subset(domain.where, domain.rank_by, domain.top_tokens, domain.quantiles)
            corpus = select(whole, subset) if part == "shards" and subset != Subset() else whole
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
        corpora[name] = corpus
    return corpora


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
    shares = token_shares(resolved.recipe)
    return (Stage(0, Settings(shares, resolved.sequence_length, resolved.global_rows)),)


def history(resolved: Resolved, corpora: Mapping[str, Corpus | View]) -> History:
    """The data of a run that starts now."""
    return History.begin(resolved.recipe.seed, plan(resolved), records(corpora))


def records(corpora: Mapping[str, Corpus | View]) -> dict[str, CorpusRecord]:
    """Domain -> what identifies its text."""
    return {name: record_of(corpus) for name, corpus in corpora.items()}


def refuse_excess_epochs(recipe: Recipe, rows: Stream, num_steps: int) -> None:
    """Refuse a run that would read a domain more often than its `max_epochs`.

    Raises:
        DataError: naming the first such domain, how often it would be read, and its limit.
    """
    limits = {name: domain.max_epochs for name, domain in recipe.data.domains.items()}
    for domain in rows.report(num_steps):
        if domain.epochs > limits.get(domain.name, math.inf):
            raise DataError(
                f"the run would read domain '{domain.name}' {domain.epochs:.1f} times",
                where=recipe.where(f"data.domains.{domain.name}.max_epochs"),
                expected=f"at most {limits[domain.name]:g}",
                hint="Give it more text, a smaller weight or the run fewer tokens; or raise max_epochs, knowingly.",
            )


def loader(resolved: Resolved, rows: Stream, place: Coordinate, first_step: int) -> Loader:
    """This rank's micro-batches."""
    recipe = resolved.recipe
    return Loader(
        rows,
        resolved.micro_rows,
        dp_rank=place.data,
        dp_size=resolved.data,
        loss_weights=lambda shares: objective(recipe, shares).weights,
        document_mask=recipe.data.document_mask,
        start_step=first_step,
    )


def held_out(recipe: Recipe, corpora: Mapping[str, Corpus | View]) -> dict[str, HeldOut]:
    """Domain -> the held-out text that is evaluated."""
    return {
        name: HeldOut(
            corpus,
            recipe.data.sequence_length,
            recipe.evaluation.tokens_per_domain,
            document_mask=recipe.data.document_mask,
        )
        for name, corpus in corpora.items()
    }


def describe(rows: Stream, num_steps: int) -> dict[str, str]:
    """Domain -> what the run takes from it, in words."""
    return {
        domain.name: (
            f"{domain.share:.1%} of the tokens: {domain.tokens:,} ({domain.unique_tokens:,} of them different), "
            f"{domain.epochs:.2f} epochs"
            + "".join(f"; {removed}" for removed in getattr(rows.corpora[domain.name], "removed", ()))
        )
        for domain in rows.report(num_steps)
    }
