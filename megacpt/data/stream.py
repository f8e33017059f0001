"""The stream: every training row of a run, by its number.

    sample number -> (domain, ordinal)      the mixture's quotas
    ordinal       -> (epoch, row)           a permutation of the domain's rows, keyed by seed, domain and epoch
    row k         -> tokens [k*S, k*S + S]  S predicted tokens; the last is also the first that row k + 1 reads

Each arrow is computed, none is looked up, so the stream has no state: a run resumes by naming its next sample, and
neither the number of ranks nor the micro-batch size changes what is trained on. Each row of a domain comes once an
epoch, and each epoch has an order of its own. Orders are keyed by the domain's *name*: a domain that joins or leaves
moves no row of another.

Rows are cut from the domain's documents laid end to end, wherever a row's edge falls. That wastes nothing and needs no
index of documents in memory; the price is that a document longer than what is left of its row goes on in another row,
which comes at another time. Less than a row at the end of a domain is left out.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from megacpt.data.mixture import Int64s, Mixture
from megacpt.data.order import KeyedPermutation, stable_hash
from megacpt.errors import DataError


class TokenSource(Protocol):
    """What the stream needs of a domain's corpus: one sequence of tokens that knows where its documents start."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""

    @property
    def num_documents(self) -> int:
        """Documents, empty ones included."""

    @property
    def text_bytes(self) -> int | None:
        """UTF-8 bytes of the text that became these tokens, where that is known."""

    @property
    def fingerprint(self) -> str | None:
        """What identifies the tokenizer that made them, where that is known."""

    def read(self, start: int, count: int) -> Int64s:
        """Return `count` tokens from token `start` on, as an array of its own."""

    def document_starts(self, start: int, stop: int) -> Int64s:
        """Return the rising, distinct offsets d of documents' first tokens with start <= d < stop."""


class Location(NamedTuple):
    """Where samples come from; arrays of one shape."""

    domain: Int64s
    """Place in `Stream.names`."""
    ordinal: Int64s
    """How many samples of the domain came before, over the whole run."""
    epoch: Int64s
    """How many times the domain was read to its end before."""
    row: Int64s
    """Row of the domain's corpus."""


@dataclass(frozen=True, eq=False)
class Row:
    """One row of tokens, S of them predicted."""

    tokens: Int64s
    """[S + 1]: the first S are read, the last S predicted."""
    document_starts: Int64s
    """Rising offsets into `tokens` where documents start: 0 first, whether or not a document starts there."""
    num_tokens: int
    """How many of the tokens are text; what follows is padding. S + 1 but in the last row of held-out text."""


def read_row(source: TokenSource, row: int, sequence_length: int) -> Row:
    """Return a row of a corpus; one that the corpus ends in is padded with zeros, as a document of their own."""
    start = row * sequence_length
    num_tokens = max(0, min(sequence_length + 1, source.num_tokens - start))
    tokens = np.zeros(sequence_length + 1, dtype=np.int64)
    document_starts = np.zeros(1, dtype=np.int64)
    if num_tokens:
        tokens[:num_tokens] = source.read(start, num_tokens)
        starts_inside = source.document_starts(start + 1, start + num_tokens) - start
        padding = [num_tokens] if num_tokens <= sequence_length else []
        document_starts = np.concatenate([document_starts, starts_inside, np.array(padding, dtype=np.int64)])
    return Row(tokens, document_starts, num_tokens)


@dataclass(frozen=True)
class DomainReport:
    """What a run of some length takes from a domain."""

    name: str
    target_share: float
    """Of the run's tokens, as the weights ask for."""
    tokens: int
    """Predicted tokens."""
    share: float
    """Of the run's tokens, as it comes out."""
    unique_tokens: int
    """Predicted tokens that differ in place."""
    epochs: float
    """How often the domain is read, in full and in part."""
    repetitions: int
    """How often the most frequent row comes."""


@dataclass(frozen=True)
class EpochExcess:
    """A domain that a run reads more often than it should."""

    name: str
    epochs: float
    max_epochs: float

    def __str__(self) -> str:
        return f"domain {self.name} is read {self.epochs:.2f} times, more than max_epochs {self.max_epochs:g}"


class Stream:
    """All rows of a run, a pure function of corpora, mixture, sequence length and seed. Immutable.

    Args:
        corpora: domain -> its tokens. Domains that the mixture does not name are not read.
        mixture: whose turn it is.
        sequence_length: predicted tokens of a row, S.
        seed: chooses the order of each domain's rows.

    Raises:
        DataError: if a domain of the mixture has no corpus, or a corpus has fewer tokens than one row reads.
    """

    def __init__(
        self, corpora: Mapping[str, TokenSource], mixture: Mixture, sequence_length: int, seed: int = 0
    ) -> None:
        for name in mixture.names:
            if name not in corpora:
                raise DataError(
                    "the mixture has a domain without tokens", where=f"domain {name}", expected=f"one of {[*corpora]}"
                )
            if corpora[name].num_tokens < sequence_length + 1:
                raise DataError(
                    "the domain is too small for a single row",
                    where=f"domain {name}",
                    found=f"{corpora[name].num_tokens:,} tokens",
                    expected=f"sequence length + 1 = {sequence_length + 1:,} or more",
                    hint="Give it more text, or shorten the sequences.",
                )
        self.corpora = dict(corpora)
        self.mixture = mixture
        self.sequence_length = sequence_length
        self.seed = int(seed)
        self.names = mixture.names
        self.sources = tuple(corpora[name] for name in self.names)
        self.num_rows = np.array([(source.num_tokens - 1) // sequence_length for source in self.sources])
        """Rows of each domain."""
        self._order_keys = [stable_hash("order", name) for name in self.names]

    def with_mixture(self, mixture: Mixture) -> Stream:
        """Return the stream of the same corpora under another mixture (`mixture.append(...)`)."""
        return Stream(self.corpora, mixture, self.sequence_length, self.seed)

    def locate(self, sample_numbers: npt.ArrayLike) -> Location:
        """Return where samples come from; every array has the shape of `sample_numbers`.

        Raises:
            ValueError: for a number outside [0, 2**40).
        """
        domains, ordinals = self.mixture.locate(sample_numbers)
        epochs, rows = np.divmod(ordinals, self.num_rows[domains])
        for domain in np.unique(domains):
            for epoch in np.unique(epochs[domains == domain]):
                asked = (domains == domain) & (epochs == epoch)
                order = KeyedPermutation(int(self.num_rows[domain]), (self.seed, self._order_keys[domain], int(epoch)))
                rows[asked] = order(rows[asked])
        return Location(domains, ordinals, epochs, rows)

    def row(self, domain: int, row: int) -> Row:
        """Return a row's tokens and document boundaries."""
        return read_row(self.sources[domain], row, self.sequence_length)

    def num_labels(self, location: Location, document_mask: bool = True) -> Int64s:
        """Return how many tokens each located row predicts, without reading a token: the shape of the location.

        A token is predicted from the one before it; with `document_mask` only within a document.
        """
        num_labels = np.full(location.row.shape, self.sequence_length)
        if document_mask:
            length = self.sequence_length
            for i, (domain, row) in enumerate(zip(location.domain.flat, location.row.flat, strict=True)):
                start = int(row) * length
                num_labels.flat[i] -= len(self.sources[domain].document_starts(start + 1, start + length + 1))
        return num_labels

    def report(self, num_samples: int) -> tuple[DomainReport, ...]:
        """Return what the run's first samples (1 or more) take from each domain, in the order of `names`."""
        counts = self.mixture.counts(num_samples)
        target_shares = self.mixture.target_shares(num_samples)
        return tuple(
            DomainReport(
                name=name,
                target_share=float(target_shares[i]),
                tokens=int(counts[i]) * self.sequence_length,
                share=float(counts[i] / num_samples),
                unique_tokens=int(min(counts[i], self.num_rows[i])) * self.sequence_length,
                epochs=float(counts[i] / self.num_rows[i]),
                repetitions=math.ceil(counts[i] / self.num_rows[i]),
            )
            for i, name in enumerate(self.names)
        )

    def epoch_excesses(self, num_samples: int, max_epochs: Mapping[str, float]) -> list[EpochExcess]:
        """Return the domains that the run's first samples read more often than `max_epochs` says; absent: no limit."""
        return [
            EpochExcess(domain.name, domain.epochs, max_epochs[domain.name])
            for domain in self.report(num_samples)
            if domain.epochs > max_epochs.get(domain.name, math.inf)
        ]

    def identity(self) -> dict[str, Any]:
        """Return what makes this stream what it is, as a JSON object to store in a checkpoint."""
        return {
            "format": 1,
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "domains": {
                name: {
                    "tokens": source.num_tokens,
                    "documents": source.num_documents,
                    "tokenizer": source.fingerprint,
                }
                for name, source in zip(self.names, self.sources, strict=True)
            },
            "mixture": self.mixture.to_json(),
        }

    def changes_since(self, stored: Mapping[str, Any]) -> list[str]:
        """Return what differs from the `identity` stored by the run that this stream is to continue, a phrase each.

        The mixture's history is left out, for it may grow: continue `Mixture.from_json(stored["mixture"])`. For the
        same reason domains may have joined.
        """
        current = self.identity()
        facts = [(key, stored[key], current[key]) for key in ("format", "seed", "sequence_length")]
        for name, domain in stored["domains"].items():
            now = current["domains"].get(name, {})
            facts += [(f"{key} of domain {name}", value, now.get(key)) for key, value in domain.items()]
        return [f"{what}: {before} before, {after} now" for what, before, after in facts if before != after]

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits: streams that agree in them hand out the same rows of corpora of the same sizes."""
        identity = self.identity() | {"mixture": self.mixture.fingerprint}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
