"""The stream: every training row of a run, by its number.

    step          -> samples                the run's history: rows of a batch, jumps
    sample number -> (domain, ordinal)      the mixture's quotas
    ordinal       -> (epoch, row)           a permutation of the domain's rows, keyed by seed, domain and epoch
    row k         -> tokens [k*S, k*S + S]  S predicted tokens; the last is also the first that row k + 1 reads

Each arrow is computed, none is looked up, so the stream has no state: a run resumes by naming its next step, and
neither the number of ranks nor the micro-batch size changes what is trained on. Each row of a domain comes once an
epoch, and each epoch has an order of its own. Orders are keyed by the domain's *name*: a domain that joins or leaves
moves no row of another.

Rows are cut from the domain's documents laid end to end, wherever a row's edge falls. That wastes nothing and needs no
index of documents in memory; the price is that a document longer than what is left of its row goes on in another row,
which comes at another time. Less than a row at the end of a domain is left out.

**When the rows change.** Shards behind those of a domain lengthen the epoch that is being read: what is left of it and
the new rows come next, each once, in an order of their own. A change of the sequence length cuts other rows from the
same text, and begins an epoch. So does text that itself has changed, if a user accepts that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from megacpt.data.history import CorpusRecord, History
from megacpt.data.mixture import Int64s
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

    @property
    def shard_digests(self) -> tuple[str, ...]:
        """A digest of each shard's content, in reading order."""

    def read(self, start: int, count: int) -> Int64s:
        """Return `count` tokens from token `start` on, as an array of its own."""

    def document_starts(self, start: int, stop: int) -> Int64s:
        """Return the rising, distinct offsets d of documents' first tokens with start <= d < stop."""


def record_of(source: TokenSource) -> CorpusRecord:
    """Return what identifies a corpus, for the history of a run."""
    return CorpusRecord(source.num_tokens, source.num_documents, source.fingerprint, source.shard_digests)


class Location(NamedTuple):
    """Where samples come from; arrays of one shape."""

    domain: Int64s
    """Place in `Stream.names`."""
    ordinal: Int64s
    """How many samples of the domain came before, over the whole run."""
    epoch: Int64s
    """How many epochs of the domain were begun before."""
    row: Int64s
    """Row of the domain's text as it is cut there."""
    cut: Int64s
    """Place in `Stream.cuts[domain]`: how the text is cut there."""


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
    """Predicted tokens that differ in place; at most so many where the sequence length changes."""
    epochs: float
    """How often the domain is read, in full and in part."""


@dataclass(frozen=True)
class Cut:
    """A domain's text cut into rows of one length, and the order in which they come from some ordinal on.

    Attributes:
        first_ordinal: of the domain, the first that reads these rows.
        first_epoch: how many epochs of the domain were begun before.
        num_rows: rows of the whole text.
        sequence_length: predicted tokens of a row.
        key: of the orders.
        before: where rows were only added: the cut whose last epoch goes on in the first one of this.
        num_carried: rows of that epoch that are still to come.
    """

    first_ordinal: int
    first_epoch: int
    num_rows: int
    sequence_length: int
    key: tuple[int, ...]
    before: Cut | None = None
    num_carried: int = 0

    @property
    def first_epoch_rows(self) -> int:
        """Rows of the first epoch."""
        return self.num_rows if self.before is None else self.num_carried + self.num_rows - self.before.num_rows

    def epochs(self, ordinals: Int64s) -> Int64s:
        """The epochs of ordinals, counted over the domain's whole history."""
        later = (ordinals - self.first_ordinal - self.first_epoch_rows) // self.num_rows + 1
        return self.first_epoch + np.maximum(later, 0)

    def num_left(self, ordinal: int) -> int:
        """Rows still to come, at an ordinal, of an epoch that is begun; 0 where it has just ended."""
        beyond_first = ordinal - self.first_ordinal - self.first_epoch_rows
        return -beyond_first if beyond_first <= 0 else -beyond_first % self.num_rows

    def locate(self, ordinals: Int64s) -> tuple[Int64s, Int64s]:
        """The epochs and rows of ordinals: [N], [N]."""
        epochs, rows = self.epochs(ordinals), np.empty_like(ordinals)
        for epoch in np.unique(epochs).tolist():
            asked = epochs == epoch
            if epoch == self.first_epoch:
                begin, num_rows = self.first_ordinal, self.first_epoch_rows
            else:
                begin = self.first_ordinal + self.first_epoch_rows + (epoch - self.first_epoch - 1) * self.num_rows
                num_rows = self.num_rows
            places = KeyedPermutation(num_rows, (*self.key, epoch))(ordinals[asked] - begin)
            rows[asked] = self._carry_on(places) if epoch == self.first_epoch and self.before else places
        return epochs, rows

    def _carry_on(self, places: Int64s) -> Int64s:
        """Places in the first epoch -> rows: first those that were left, then those that were added."""
        assert self.before is not None
        rows = self.before.num_rows + places - self.num_carried
        left = places < self.num_carried
        rows[left] = self.before.locate(self.first_ordinal + places[left])[1]
        return rows


class Stream:
    """All rows of a run, a pure function of corpora and history. Immutable.

    Args:
        corpora: domain -> its tokens. One that is no longer read may be missing.
        history: how they are mixed and cut.

    Raises:
        DataError: if a corpus has fewer tokens than one row reads.

    Attributes:
        names: the domains.
        cuts: for each domain how its text is cut, ascending by ordinal.
    """

    def __init__(self, corpora: Mapping[str, TokenSource], history: History) -> None:
        self.corpora = dict(corpora)
        self.history = history
        self.names = history.domains
        self.cuts = tuple(tuple(_cuts(history, name)) for name in self.names)
        self._places = np.array([self.names.index(name) for name in history.mixture.names])

    def with_history(self, history: History) -> Stream:
        """The stream of the same corpora under another history."""
        return Stream(self.corpora, history)

    def samples(self, step: int) -> Int64s:
        """The numbers of the samples that a step reads: [global_rows]."""
        first = self.history.first_sample(step)
        return np.arange(first, first + self.history.settings(step).global_rows)

    def counts(self, num_samples: int) -> Int64s:
        """How many of the first samples each domain gives: [len(names)], in closed form."""
        counts = np.zeros(len(self.names), dtype=np.int64)
        counts[self._places] = self.history.mixture.counts(num_samples)
        return counts

    def locate(self, sample_numbers: npt.ArrayLike) -> Location:
        """Return where samples come from; every array has the shape of `sample_numbers`.

        Raises:
            ValueError: for a number outside [0, 2**40).
        """
        places, ordinals = self.history.mixture.locate(sample_numbers)
        domains = self._places[places]
        epochs, rows, cut_numbers = (np.empty_like(domains) for _ in range(3))
        for domain in np.unique(domains):
            cuts = self.cuts[domain]
            of_domain = domains == domain
            first_ordinals = [cut.first_ordinal for cut in cuts]
            cut_numbers[of_domain] = np.searchsorted(first_ordinals, ordinals[of_domain], side="right") - 1
            for number in np.unique(cut_numbers[of_domain]):
                asked = of_domain & (cut_numbers == number)
                epochs[asked], rows[asked] = cuts[number].locate(ordinals[asked])
        return Location(domains, ordinals, epochs, rows, cut_numbers)

    def rows(self, location: Location) -> list[Row]:
        """Return the tokens and document boundaries of located rows, in their order."""
        return [
            read_row(self._source(domain), row, self.cuts[domain][cut].sequence_length)
            for domain, row, cut in _places(location)
        ]

    def num_labels(self, location: Location, document_mask: bool = True) -> Int64s:
        """Return how many tokens each located row predicts, without reading a token: the shape of the location.

        A token is predicted from the one before it; with `document_mask` only within a document.
        """
        num_labels = np.empty_like(location.row)
        for i, (domain, row, cut) in enumerate(_places(location)):
            length = self.cuts[domain][cut].sequence_length
            num_labels.flat[i] = length
            if document_mask:
                start = row * length
                num_labels.flat[i] -= len(self._source(domain).document_starts(start + 1, start + length + 1))
        return num_labels

    def _source(self, domain: int) -> TokenSource:
        name = self.names[domain]
        if name not in self.corpora:
            raise DataError("the domain's tokens are not at hand", where=f"domain {name}")
        return self.corpora[name]

    def report(self, num_steps: int) -> tuple[DomainReport, ...]:
        """Return what the run's first steps (1 or more) take from each domain, in the order of `names`.

        Samples that a jump passes over are not taken, but their rows do not come again in that epoch.
        """
        tokens, targets = np.zeros(len(self.names), dtype=np.int64), np.zeros(len(self.names))
        for stretch in self.history.stretches(num_steps):
            num_samples = stretch.num_steps * stretch.settings.global_rows
            counts = self.counts(stretch.first_sample + num_samples) - self.counts(stretch.first_sample)
            tokens += counts * stretch.settings.sequence_length
            weights = np.array([stretch.settings.weights.get(name, 0.0) for name in self.names])
            targets += weights / weights.sum() * stretch.num_steps * stretch.settings.tokens_per_step
        total = self.history.tokens(num_steps)
        ordinals = self.counts(self.history.first_sample(num_steps))
        return tuple(
            DomainReport(
                name=name,
                target_share=float(targets[i] / total),
                tokens=int(tokens[i]),
                share=float(tokens[i] / total),
                unique_tokens=int(min(tokens[i], max(cut.num_rows * cut.sequence_length for cut in self.cuts[i]))),
                epochs=_epochs_read(self.cuts[i], int(ordinals[i])),
            )
            for i, name in enumerate(self.names)
        )


def _places(location: Location) -> Iterator[tuple[int, int, int]]:
    """(domain, row, cut) of each located sample."""
    parts = (location.domain, location.row, location.cut)
    return zip(*(part.ravel().tolist() for part in parts), strict=True)


def _cuts(history: History, name: str) -> list[Cut]:
    """How the text of a domain is cut over a run, ascending by ordinal; a cut that nothing is read of is left out."""
    generations = [generation for generation in history.corpora if generation.domain == name]
    edges = {segment.from_step for segment in history.segments} | {each.from_step for each in generations}
    cuts: list[Cut] = []
    texts: list[tuple[CorpusRecord, int]] = []
    for step in sorted(edge for edge in edges if edge >= generations[0].from_step):
        text = [each.record for each in generations if each.from_step <= step][-1]
        length = history.settings(step).sequence_length
        if texts and texts[-1] == (text, length):
            continue
        num_rows = (text.tokens - 1) // length
        if num_rows < 1:
            raise DataError(
                "the domain is too small for a single row",
                where=f"domain {name}",
                found=f"{text.tokens:,} tokens",
                expected=f"sequence length + 1 = {length + 1:,} or more",
                hint="Give it more text, or shorten the sequences.",
            )
        ordinal = history.num_samples_of(name, step)
        while cuts and cuts[-1].first_ordinal == ordinal:
            cuts.pop()
            texts.pop()
        cut = Cut(ordinal, 0, num_rows, length, (history.seed, stable_hash("order", name)))
        if cuts:
            last, (last_text, last_length) = cuts[-1], texts[-1]
            cut = replace(cut, first_epoch=int(last.epochs(np.array(ordinal - 1))) + 1)
            if length == last_length and last_text.grows_to(text) and last.num_left(ordinal):
                cut = replace(cut, before=last, num_carried=last.num_left(ordinal))
        cuts.append(cut)
        texts.append((text, length))
    return cuts


def _epochs_read(cuts: Sequence[Cut], num_samples: int) -> float:
    """How often a domain was read when so many samples were taken from it."""
    ends = [cut.first_ordinal for cut in cuts[1:]] + [max(num_samples, cuts[-1].first_ordinal)]
    return sum(
        max(min(end, num_samples) - cut.first_ordinal, 0) / cut.num_rows for cut, end in zip(cuts, ends, strict=True)
    )
