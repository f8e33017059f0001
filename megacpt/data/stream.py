"""The stream: every training row of a run, by its number.

    step          -> samples                the run's history: rows of a batch, jumps
    sample number -> (domain, ordinal)      the mixture's quotas
    ordinal       -> (epoch, row)           a permutation of the domain's rows, keyed by seed, domain and epoch;
                                            of one window of them after the other, where they have an order
    row           -> tokens                 S predicted tokens of the text as it is cut (`megacpt.data.rows`)

Each arrow is computed, none is looked up, so the stream has no state: a run resumes by naming its next step, and
neither the number of ranks nor the micro-batch size changes what is trained on. Each row of a domain comes once an
epoch, and each epoch has an order of its own. Orders are keyed by the domain's *name*: a domain that joins or leaves
moves no row of another.

**When the rows change.** Shards behind those of a domain lengthen the epoch that is being read: what is left of it and
the new rows come next, each once, in an order of their own. A change of the sequence length cuts other rows from the
same text, and begins an epoch. So does text that itself has changed, if a user accepts that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from megacpt.data.history import CorpusRecord, History
from megacpt.data.insertions import DOMAIN as INSERTIONS
from megacpt.data.insertions import Insertion, insert, place
from megacpt.data.mixture import MAX_SAMPLES, Int64s
from megacpt.data.order import KeyedPermutation, permute, stable_hash
from megacpt.data.packing import window_of
from megacpt.data.parts import Parts
from megacpt.data.rows import BestFit, Concat, CutText, Rows, TokenSource
from megacpt.errors import DataError


def record_of(source: TokenSource, **reading: Any) -> CorpusRecord:
    """Return what identifies a corpus, for the history of a run; `reading`: the record's fields on how it is read."""
    return CorpusRecord(source.num_tokens, source.num_documents, source.fingerprint, source.shard_digests, **reading)


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
        redraw: whether each epoch has an order of its own.
        window_rows: rows that are shuffled among themselves, one window after the other; None: all of an epoch.
        packing: "concat" or "best_fit".
        before: where rows were only added: the cut whose last epoch goes on in the first one of this.
        num_carried: rows of that epoch that are still to come.
    """

    first_ordinal: int
    first_epoch: int
    num_rows: int
    sequence_length: int
    key: tuple[int, ...]
    redraw: bool = True
    window_rows: int | None = None
    packing: str = "concat"
    before: Cut | None = None
    num_carried: int = 0

    @property
    def first_epoch_rows(self) -> int:
        """Rows of the first epoch."""
        return self.num_rows if self.before is None else self.num_carried + self.num_rows - self.before.num_rows

    def text(self, source: TokenSource) -> CutText:
        """The text as it is cut here."""
        if self.packing == "concat":
            return Concat(source, self.sequence_length)
        return BestFit(source, self.sequence_length, self._edges)

    def tokens_of(self, row: int) -> tuple[int, int]:
        """The first token, and the last + 1, of the stretch of text that a row's tokens are taken from."""
        if self.packing == "concat":
            return row * self.sequence_length, (row + 1) * self.sequence_length + 1
        first, last = window_of(row, self._edges)
        return first * (self.sequence_length + 1), last * (self.sequence_length + 1)

    @property
    def _edges(self) -> tuple[int, ...]:
        return (*(self.before._edges if self.before else (0,)), self.num_rows)

    def num_left(self, ordinal: int) -> int:
        """Rows still to come, at an ordinal, of an epoch that is begun; 0 where it has just ended."""
        beyond_first = ordinal - self.first_ordinal - self.first_epoch_rows
        return -beyond_first if beyond_first <= 0 else -beyond_first % self.num_rows


def _locate(cuts: Sequence[Cut], which: Int64s, ordinals: Int64s) -> tuple[Int64s, Int64s]:
    """The epochs and rows of ordinals, each read by `cuts[which]`: [N], [N]."""
    columns = [(cut.first_ordinal, cut.first_epoch, cut.first_epoch_rows, cut.num_rows) for cut in cuts]
    first_ordinal, first_epoch, first_epoch_rows, num_rows = np.array(columns).T[:, which]
    beyond_first = ordinals - first_ordinal - first_epoch_rows
    later = np.maximum(beyond_first // num_rows + 1, 0)
    numbers = np.where(later > 0, beyond_first % num_rows, ordinals - first_ordinal)
    windows = np.array([cut.window_rows or MAX_SAMPLES for cut in cuts])[which]
    window, inside = np.divmod(numbers, windows)
    asked, permutation = _distinct(which, later, window)
    orders = [_order(cuts[cut], cuts[cut].first_epoch + epoch, window) for cut, epoch, window in asked]
    rows = window * windows + permute(inside, orders, permutation)
    for number, cut in enumerate(cuts):
        if cut.before is not None:
            first = np.flatnonzero((which == number) & (later == 0))
            places = rows[first]
            rows[first] = cut.before.num_rows + places - cut.num_carried
            left = first[places < cut.num_carried]
            carried = cut.first_ordinal + places[places < cut.num_carried]
            rows[left] = _locate([cut.before], np.zeros(len(left), dtype=np.int64), carried)[1]
    return first_epoch + later, rows


def _distinct(*columns: Int64s) -> tuple[list[tuple[int, ...]], Int64s]:
    """The distinct rows of equally long columns, and the place of every row among them: [N].

    `np.unique` of rows compares them as records, which takes several times as long.
    """
    order = np.lexsort(columns)
    is_first = np.zeros(order.size, dtype=np.bool_)
    is_first[:1] = True
    for column in columns:
        is_first[1:] |= np.diff(column[order]) != 0
    places = np.empty_like(order)
    places[order] = np.cumsum(is_first) - 1
    return list(zip(*(column[order[is_first]].tolist() for column in columns), strict=True)), places


@lru_cache(maxsize=1024)
def _order(cut: Cut, epoch: int, window: int) -> KeyedPermutation:
    """The order of a window of an epoch; the only one, 0, where rows have no order of their own."""
    is_joined = epoch == cut.first_epoch and cut.before is not None
    num_rows = cut.first_epoch_rows if is_joined else cut.num_rows
    key = (*cut.key, epoch if is_joined or cut.redraw else 0)
    if cut.window_rows is None:
        return KeyedPermutation(num_rows, key)
    return KeyedPermutation(min(cut.window_rows, num_rows - window * cut.window_rows), (*key, window))


class Stream:
    """All rows of a run, a pure function of corpora and history. Immutable.

    Args:
        corpora: domain -> its tokens. One that is no longer read may be missing.
        history: how they are mixed and cut.
        insertions: what takes the place of tokens here and there.
        parts: domain -> the parts that its labels are counted as, where it is divided.

    Raises:
        DataError: if a corpus has fewer tokens than one row reads, or insertions find no place.

    Attributes:
        names: the domains.
        counted: what labels are counted as: the domains, and behind them "web/arxiv", ... of those that are divided,
            which then have none of their own.
        cuts: for each domain how its text is cut, ascending by ordinal; none of one that is never read, nor of
            insertions, which are no text.
        places: step -> where insertions stand in it.
    """

    def __init__(
        self,
        corpora: Mapping[str, TokenSource],
        history: History,
        insertions: Sequence[Insertion] = (),
        parts: Mapping[str, Parts] | None = None,
    ) -> None:
        self.corpora = dict(corpora)
        self.history = history
        self.names = history.domains
        self.parts = dict(parts or {})
        self.counted = (*self.names, *(f"{name}/{part}" for name, each in self.parts.items() for part in each.names))
        self._first_parts = {name: self.counted.index(f"{name}/{each.names[0]}") for name, each in self.parts.items()}
        self.insertions = tuple(insertions)
        self.places = place(self.insertions, history)
        self.cuts = tuple(() if name == INSERTIONS else tuple(_cuts(history, name)) for name in self.names)
        self._all_cuts = [cut for cuts in self.cuts for cut in cuts]
        self._first_cuts = np.cumsum([0, *map(len, self.cuts)])
        self._text = cache(self._make_text)
        self._places = np.array([self.names.index(name) for name in history.mixture.names])

    def with_history(self, history: History) -> Stream:
        """The stream of the same corpora under another history."""
        return Stream(self.corpora, history, self.insertions, self.parts)

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
        cut_numbers = np.zeros_like(domains)
        for domain, cuts in enumerate(self.cuts):
            for cut in cuts[1:]:
                cut_numbers += (domains == domain) & (ordinals >= cut.first_ordinal)
        which = (self._first_cuts[domains] + cut_numbers).ravel()
        epochs, rows = _locate(self._all_cuts, which, ordinals.ravel())
        return Location(domains, ordinals, epochs.reshape(domains.shape), rows.reshape(domains.shape), cut_numbers)

    def rows(self, location: Location) -> Rows:
        """Return the tokens and document boundaries of located rows of one sequence length, in their order: [N]."""
        parts = list(self._by_cut(location))
        (width,) = {cut.sequence_length + 1 for _, _, cut in parts}
        tokens = np.empty((location.row.size, width), dtype=np.int32)
        document_starts = [np.arange(len(tokens)) * width]
        for asked, text, _ in parts:
            document_starts.append(text.read_into(tokens, asked, location.row[asked])[0])
        return Rows(tokens, np.sort(np.concatenate(document_starts)), np.full(len(tokens), width))

    def read(self, step: int, location: Location, which: Int64s) -> tuple[Rows, Int64s]:
        """Return rows of a step's global batch, with what is inserted into them.

        Args:
            step: the step.
            location: of all its rows.
            which: the rows that are wanted: [N].

        Returns:
            The rows, and what their labels are counted as, places in `counted`: [N]; where something is inserted or
            domains have parts, of each label, which is of what the token is that it predicts: [N, S].
        """
        located = Location(*(part[which] for part in location))
        rows = self.rows(located)
        counted = self._counted_as(located, rows.tokens.shape[1])
        if step in self.places:
            wanted = {row: number for number, row in enumerate(which.tolist())}
            places = [replace(each, row=wanted[each.row]) for each in self.places[step] if each.row in wanted]
            if places:
                rows, counted = insert(places, rows, counted, self.names.index(INSERTIONS))
        return rows, counted if counted.ndim == 1 else counted[:, 1:]

    def _counted_as(self, location: Location, width: int) -> Int64s:
        """What located rows are counted as: [N]; where domains have parts, each of their tokens: [N, width]."""
        if not self.parts:
            return location.domain
        counted = np.repeat(location.domain, width).reshape(-1, width)
        for asked, parts, lengths, _ in self._stretches(location):
            counted[asked] = np.repeat(parts, lengths).reshape(-1, width)
        return counted

    def _stretches(self, location: Location) -> Iterator[tuple[Int64s, Int64s, Int64s, Int64s]]:
        """For each cut of a domain with parts: the places of its located rows; of all their stretches of one document
        what they are counted as, and their tokens; and how many stretches each row has.
        """
        for asked, text, _ in self._by_cut(location):
            name = self.names[location.domain[asked[0]]]
            if name in self.parts:
                first_tokens, lengths, counts = text.stretches(location.row[asked])
                yield asked, self._first_parts[name] + self.parts[name].of(first_tokens), lengths, counts

    def labels_of_domains(self, step: int, location: Location, document_mask: bool = True) -> Int64s:
        """Return how many labels the located rows of a step have of each of `counted`: [len(counted)]."""
        changed = np.unique(np.array([each.row for each in self.places.get(step, ())], dtype=np.int64))
        num_labels = self.num_labels(location, document_mask)
        num_labels[changed] = 0
        labels = np.bincount(location.domain, weights=num_labels, minlength=len(self.counted)).astype(np.int64)
        if self.parts:
            self._move_to_parts(labels, Location(*(part[num_labels > 0] for part in location)), document_mask)
        if changed.size:
            rows, domains = self.read(step, location, changed)
            is_label = np.ones(domains.shape, dtype=np.bool_)
            if document_mask:
                is_label[rows.borders] = False
            labels += np.bincount(domains[is_label], minlength=len(self.counted))
        return labels

    def _move_to_parts(self, labels: Int64s, location: Location, document_mask: bool) -> None:
        """Count the labels of located rows as those of their parts, and no longer as their domains'."""
        for asked, parts, lengths, counts in self._stretches(location):
            is_first_unpredicted = np.full(len(parts), document_mask)
            is_first_unpredicted[np.cumsum(counts) - counts] = True
            num_labels = np.bincount(parts, lengths - is_first_unpredicted, len(labels)).astype(np.int64)
            labels += num_labels
            labels[location.domain[asked[0]]] -= num_labels.sum()

    def will_need(self, location: Location) -> None:
        """Let the system fetch located rows, without waiting for them."""
        for asked, text, _ in self._by_cut(location):
            text.will_need(location.row[asked])

    def num_labels(self, location: Location, document_mask: bool = True) -> Int64s:
        """Return how many tokens each located row predicts, without reading a token: [N].

        A token is predicted from the one before it; with `document_mask` only within a document.
        """
        num_labels = np.empty_like(location.row)
        for asked, text, cut in self._by_cut(location):
            num_labels[asked] = cut.sequence_length
            if document_mask:
                num_labels[asked] -= text.count_starts(location.row[asked])
        return num_labels

    def _by_cut(self, location: Location) -> Iterator[tuple[Int64s, CutText, Cut]]:
        """The places, text and cut of located rows, for each domain and cut that is among them."""
        asked, places = _distinct(location.domain, location.cut)
        for number, (domain, cut) in enumerate(asked):
            name = self.names[domain]
            if name not in self.corpora:
                raise DataError("the domain's tokens are not at hand", where=f"domain {name}")
            yield np.flatnonzero(places == number), self._text(domain, cut), self.cuts[domain][cut]

    def _make_text(self, domain: int, cut: int) -> CutText:
        return self.cuts[domain][cut].text(self.corpora[self.names[domain]])

    def report(self, num_steps: int) -> tuple[DomainReport, ...]:
        """Return what the run's first steps take from each domain, in the order of `names`; no steps, no domains.

        Samples that a jump passes over are not taken, but their rows do not come again in that epoch.
        """
        if not num_steps:
            return ()
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
            if self.cuts[i]
        )


def exhausted_at(stream: Stream, max_epochs: Mapping[str, float], num_steps: int) -> tuple[int, str] | None:
    """The first of a run's steps that would read a domain more often than it may, and the first such domain by name.

    Args:
        stream: the run's.
        max_epochs: domain -> how often it may be read; the others as often as they are.
        num_steps: of the run.
    """
    history = stream.history
    limits = [(name, stream.names.index(name), limit) for name, limit in sorted(max_epochs.items())]
    limits = [(name, at, limit) for name, at, limit in limits if stream.cuts[at]]

    def exhausted(step: int) -> list[str]:
        counts = stream.counts(history.first_sample(step) + history.settings(step).global_rows)
        return [name for name, at, limit in limits if _epochs_read(stream.cuts[at], int(counts[at])) > limit]

    step = bisect_left(range(num_steps), True, key=lambda step: bool(exhausted(step)))
    return (step, exhausted(step)[0]) if step < num_steps else None


def _cuts(history: History, name: str) -> list[Cut]:
    """How the text of a domain is cut over a run, ascending by ordinal; a cut that nothing is read of is left out.

    What the domain becomes while it has no weight does not cut it: it may be too small for the rows of such a stage.
    """
    generations = [generation for generation in history.corpora if generation.domain == name]
    edges = {segment.from_step for segment in history.segments} | {each.from_step for each in generations}
    cuts: list[Cut] = []
    texts: list[tuple[CorpusRecord, int]] = []
    for step in sorted(edge for edge in edges if edge >= generations[0].from_step):
        text = [each.record for each in generations if each.from_step <= step][-1]
        settings = history.settings(step)
        length = settings.sequence_length
        if (texts and texts[-1] == (text, length)) or not settings.weights.get(name):
            continue
        num_rows = (text.tokens - 1) // length if text.packing == "concat" else text.tokens // (length + 1)
        if num_rows < 1:
            raise DataError(
                "the domain is too small for a single row",
                where=f"domain {name}",
                found=f"{text.tokens:,} tokens",
                expected=f"sequence length + 1 = {length + 1:,} or more",
                hint="Give it more text, or shorten the sequences.",
            )
        ordinal = history.num_samples_of(name, step) if cuts else 0
        while cuts and cuts[-1].first_ordinal == ordinal:
            cuts.pop()
            texts.pop()
        key = (history.seed, stable_hash("order", name))
        cut = Cut(ordinal, 0, num_rows, length, key, text.redraw == "per_epoch", text.window_rows(length), text.packing)
        if cuts:
            last, (last_text, last_length) = cuts[-1], texts[-1]
            cut = replace(cut, first_epoch=int(_locate([last], np.array([0]), np.array([ordinal - 1]))[0][0]) + 1)
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
