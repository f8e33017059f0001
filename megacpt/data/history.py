"""The history of a run's data: everything that decided, or will decide, which rows its steps read. One JSON value.

    plan          what the recipe asks for, stage by stage, in tokens of the run
    segments      step -> weights, sequence length and rows of a batch from there on: the plan's stages as steps, and
                  what a controller or an edited recipe changed on the way
    corpora       step -> what a domain's text consisted of from there on
    jumps         step -> samples that are never used, where training was told to leave some out
    accepted      step -> what a user accepted against the program's advice

A run does not look at its recipe to know its past. It continues the history of its checkpoint: a resume that rebuilt it
from a recipe would forget jumps and controllers, and would read rows twice that it has read before.

Everything else is a pure function of this value: which sample is the first of a step, how many tokens were trained on
before it, and (with the corpora, in `megacpt.data.stream`) every token of every row. Steps count optimizer steps from
0. Samples count the rows handed out by the mixture; steps read them in order, and a jump passes over some.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, NamedTuple

from megacpt.data.mixture import MAX_SAMPLES, Int64s, Mixture
from megacpt.errors import DataError
from megacpt.units import counted

_FORMAT = 1


@dataclass(frozen=True)
class Settings:
    """How rows are drawn and cut.

    Attributes:
        weights: domain -> share of the tokens, in any unit; a domain with 0, or left out, is not read.
        sequence_length: predicted tokens of a row.
        global_rows: rows of a step over all ranks.
    """

    weights: Mapping[str, float]
    sequence_length: int
    global_rows: int

    @property
    def tokens_per_step(self) -> int:
        """Predicted tokens of a step."""
        return self.sequence_length * self.global_rows


@dataclass(frozen=True)
class Stage:
    """What a plan asks for from some token of the run on: from the first step that begins there or later."""

    from_tokens: int
    settings: Settings


@dataclass(frozen=True)
class Segment:
    """What is in force from a step on."""

    from_step: int
    settings: Settings


@dataclass(frozen=True)
class CorpusRecord:
    """What identifies the text of a domain.

    Attributes:
        tokens, documents: totals.
        tokenizer: fingerprint of what made the ids, where known.
        shards: a digest of each shard, in reading order; a corpus grows by shards behind the ones it has.
        redraw: "per_epoch" or "fixed": whether each epoch has an order of its own.
        order: "shuffled": rows come in any order. Else the words for an order that the text is in, such as "ascending
            by score": rows come as they lie, shuffled within windows only.
        window_tokens: of those windows; None: a hundredth of the text.
        packing: "concat" or "best_fit": how rows are cut from it (`megacpt.data.rows`).
        subset: a digest of which of the shards' documents are meant, and in which order; None: all, as they lie.
    """

    tokens: int
    documents: int
    tokenizer: str | None = None
    shards: tuple[str, ...] = ()
    redraw: str = "per_epoch"
    order: str = "shuffled"
    window_tokens: int | None = None
    packing: str = "concat"
    subset: str | None = None

    def window_rows(self, sequence_length: int) -> int | None:
        """Rows that are shuffled among themselves; None: all of the text."""
        if self.order == "shuffled":
            return None
        return max((self.window_tokens or self.tokens // 100) // sequence_length, 1)

    def grows_to(self, other: CorpusRecord) -> bool:
        """Whether `other` is this corpus with nothing changed, and perhaps shards behind it."""
        same = ("tokenizer", "redraw", "order", "window_tokens", "packing", "subset")
        return (
            all(getattr(self, key) == getattr(other, key) for key in same)
            and self.shards == other.shards[: len(self.shards)]
            and (self == other or (len(self.shards) < len(other.shards) and self.tokens <= other.tokens))
        )

    def changes(self, other: CorpusRecord, shard_names: Sequence[str] = ()) -> list[str]:
        """What differs in `other`, whose shards have these names: a phrase each; empty if nothing does."""
        keys = ("tokens", "documents", "tokenizer", "redraw", "order", "window_tokens", "packing")
        facts = [(key, getattr(self, key), getattr(other, key)) for key in keys]
        phrases = [f"{key} {_shown(before)} before, {_shown(now)} now" for key, before, now in facts if before != now]
        if self.subset != other.subset:
            phrases.append(
                f"{_meant(self)} before, {'another part' if self.subset and other.subset else _meant(other)} now"
            )
        if self.shards != other.shards:
            phrases.append(_shard_change(self.shards, other.shards, shard_names))
        return phrases


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _meant(record: CorpusRecord) -> str:
    return "a part of the documents" if record.subset else "all documents"


def _shard_change(before: Sequence[str], now: Sequence[str], names: Sequence[str]) -> str:
    if now[: len(before)] == before:
        return f"{counted(len(now) - len(before), 'shard')} added behind the {len(before)} there were"
    if sorted(now) == sorted(before):
        return "the shards come in another order"
    if len(now) != len(before):
        return f"{len(before)} shards before, {len(now)} now, and not only added ones"
    changed = [number for number, (old, new) in enumerate(zip(before, now, strict=True), 1) if old != new]
    named = [f"{number} ({names[number - 1]})" if names else f"{number}" for number in changed[:5]]
    return f"the content of shard {', '.join(named)} of {len(now)} changed"


@dataclass(frozen=True)
class Generation:
    """The text of a domain from a step on."""

    from_step: int
    domain: str
    record: CorpusRecord


@dataclass(frozen=True)
class Jump:
    """Samples that step `at_step` and the ones after it pass over; nothing ever reads them.

    Attributes:
        at_step: the first step that reads behind them.
        num_samples: how many.
        reason: for people.
    """

    at_step: int
    num_samples: int
    reason: str = ""


@dataclass(frozen=True)
class Accepted:
    """Something unusual that a user accepted before a step."""

    at_step: int
    what: str


class Stretch(NamedTuple):
    """Steps of one segment without a jump between them: their samples lie end to end."""

    from_step: int
    num_steps: int
    first_sample: int
    settings: Settings


@dataclass(frozen=True)
class History:
    """See the module. Immutable: what changes it returns another.

    Attributes:
        seed: of every order.
        plan: the stages that it was last planned by, the first from token 0.
        segments: ascending by step, the first from step 0.
        corpora: ascending by step.
        jumps, accepted: ascending by step.
    """

    seed: int
    plan: tuple[Stage, ...]
    segments: tuple[Segment, ...]
    corpora: tuple[Generation, ...]
    jumps: tuple[Jump, ...] = ()
    accepted: tuple[Accepted, ...] = ()

    @classmethod
    def begin(cls, seed: int, plan: Sequence[Stage], corpora: Mapping[str, CorpusRecord]) -> History:
        """The history of a run that is to start.

        Args:
            seed: of every order.
            plan: stages, the first from token 0.
            corpora: domain -> its text, of every domain that has a weight in some stage.

        Raises:
            DataError: stages out of order, or a domain with a weight and no text.
        """
        empty = cls(seed, (), (), ())
        return empty.replan(0, plan, corpora)

    # What follows from it.

    def settings(self, step: int) -> Settings:
        """What is in force at a step."""
        return self.segments[self._segment_number(step)].settings

    def shares(self, step: int) -> dict[str, float]:
        """Domain -> share of a step's tokens that is asked for, of the domains that have one; they sum to 1."""
        weights = self.settings(step).weights
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items() if weight}

    def planned_shares(self, step: int) -> dict[str, float]:
        """`shares` as the plan has them at a step, whatever a controller did."""
        weights = self._planned(step).weights
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items() if weight}

    def _planned(self, step: int) -> Settings:
        return [stage.settings for stage in self.plan if stage.from_tokens <= self.tokens(step)][-1]

    def first_sample(self, step: int) -> int:
        """The number of the first sample that a step reads."""
        number = self._segment_number(step)
        segment = self.segments[number]
        read = self._samples_before[number] + (step - segment.from_step) * segment.settings.global_rows
        return read + sum(jump.num_samples for jump in self.jumps if jump.at_step <= step)

    def tokens(self, step: int) -> int:
        """Tokens trained on before a step; samples that were jumped over do not count."""
        number = self._segment_number(step)
        segment = self.segments[number]
        return self._tokens_before[number] + (step - segment.from_step) * segment.settings.tokens_per_step

    def num_steps(self, tokens: int) -> int:
        """Steps until so many tokens are trained on: the first step before which they are."""
        number = max(bisect_right(self._tokens_before, tokens) - 1, 0)
        segment = self.segments[number]
        return segment.from_step + math.ceil((tokens - self._tokens_before[number]) / segment.settings.tokens_per_step)

    def stretches(self, num_steps: int) -> Iterator[Stretch]:
        """The first steps of the run, as stretches whose samples lie end to end, in order."""
        edges = {segment.from_step for segment in self.segments} | {jump.at_step for jump in self.jumps}
        starts = sorted(step for step in edges if step < num_steps)
        for start, stop in zip(starts, [*starts[1:], num_steps], strict=True):
            yield Stretch(start, stop - start, self.first_sample(start), self.settings(start))

    def step_of(self, sample: int) -> int | None:
        """The step that reads a sample; None for one that a jump passes over."""
        for stretch in self.stretches(MAX_SAMPLES):
            step, _ = divmod(sample - stretch.first_sample, stretch.settings.global_rows)
            if 0 <= step < stretch.num_steps:
                return stretch.from_step + step
        return None

    def parting(self, other: History) -> int | None:
        """The first step before which something happened to one of two histories and not to the other.

        Up to there they read the same rows. None: nothing ever did, in the past or in the plan of either.
        """
        if self.seed != other.seed:
            return 0
        first: list[int] = []
        for mine, theirs in ((self.segments, other.segments), (self.corpora, other.corpora), (self.jumps, other.jumps)):
            pairs = enumerate(zip(mine, theirs, strict=False))  # not as sets: equal jumps add up
            same = next((number for number, (one, two) in pairs if one != two), min(len(mine), len(theirs)))
            parted = [*mine[same : same + 1], *theirs[same : same + 1]]
            first += [event.at_step if isinstance(event, Jump) else event.from_step for event in parted]
        return min(first, default=None)

    @property
    def domains(self) -> tuple[str, ...]:
        """Every domain of the history, in the order of first appearance: nothing that happens later renumbers them."""
        return tuple(dict.fromkeys(generation.domain for generation in self.corpora))

    def latest_corpus(self, domain: str) -> CorpusRecord | None:
        """The text of a domain as it was last recorded."""
        return next((g.record for g in reversed(self.corpora) if g.domain == domain), None)

    @cached_property
    def mixture(self) -> Mixture:
        """Whose turn every sample is."""
        first, *changes = self.segments
        mixture = Mixture(first.settings.weights, self.seed)
        for segment in changes:
            mixture = mixture.append(self.first_sample(segment.from_step), segment.settings.weights)
        return mixture

    def num_samples_of(self, domain: str, step: int) -> int:
        """How many samples a domain has given before a step, jumped ones included: its next ordinal."""
        names = self.mixture.names
        return int(self._counts(self.first_sample(step))[names.index(domain)]) if domain in names else 0

    @cached_property
    def _counts(self) -> Callable[[int], Int64s]:
        """`Mixture.counts`, each once: all domains are asked for at the same few samples."""
        return cache(self.mixture.counts)

    # What may happen to it.

    def set_weights(self, step: int, weights: Mapping[str, float]) -> History:
        """Other weights from a step on, until the next segment that the plan has. Steps before it stay as they are.

        Raises:
            DataError: weights that make no mixture, or of a domain without text.
        """
        return self._with_segment(Segment(step, replace(self.settings(step), weights=dict(weights))))

    def jump(self, at_step: int, num_samples: int, reason: str = "") -> History:
        """Let step `at_step` begin `num_samples` further on; what lies between is never used.

        Raises:
            DataError: no samples, or a step before 0.
        """
        if num_samples < 1 or at_step < 0:
            raise DataError("a jump passes over samples at a step", found=f"{num_samples} samples at step {at_step}")
        jumps = sorted([*self.jumps, Jump(at_step, num_samples, reason)], key=lambda jump: jump.at_step)
        return replace(self, jumps=tuple(jumps))._checked()

    def accept(self, step: int, what: str) -> History:
        """Keep on record what a user accepted."""
        return replace(self, accepted=(*self.accepted, Accepted(step, what)))

    def replan(
        self, step: int, plan: Sequence[Stage], corpora: Mapping[str, CorpusRecord], *, anew: bool = False
    ) -> History:
        """Let another plan, or other text, hold from a step on. What lies before stays; so do jumps.

        Stages begin by the tokens that this run has then trained on. A plan and text equal to the present ones change
        nothing. Weights that were set on the way, by a controller or where a domain was exhausted, stay in force if
        the plan's own are what they were, until the next stage.

        Args:
            step: from which it holds.
            plan: stages, the first from token 0.
            corpora: domain -> its text.
            anew: the plan's weights hold whatever was set on the way, and for later steps.

        Raises:
            DataError: stages out of order, or a domain with a weight and no text.
        """
        plan = tuple(plan)
        starts = [stage.from_tokens for stage in plan]
        if not plan or starts[0] != 0 or any(b <= a for a, b in pairwise(starts)):
            raise DataError("the stages of a plan begin at token 0, each after the one before", found=starts)
        generations = [Generation(step, d, record) for d, record in corpora.items() if record != self.latest_corpus(d)]
        changed = replace(self, corpora=(*self.corpora, *generations))
        if anew or plan != self.plan:
            past = tuple(segment for segment in self.segments if segment.from_step < step)
            tokens = self.tokens(step) if past else 0
            now = max(number for number, start in enumerate(starts) if start <= tokens)
            settings = plan[now].settings
            if past and not anew and settings.weights == self._planned(step).weights:
                settings = replace(settings, weights=self.settings(step).weights)
            changed = replace(changed, plan=plan, segments=past)._with_segment(Segment(step, settings))
            for stage in plan[now + 1 :]:
                changed = changed._with_segment(Segment(changed.num_steps(stage.from_tokens), stage.settings))
        return changed._checked()

    def _with_segment(self, segment: Segment) -> History:
        """The history with a segment more; it replaces one of the same step, and goes where it says nothing new."""
        before = [other for other in self.segments if other.from_step < segment.from_step]
        after = [other for other in self.segments if other.from_step > segment.from_step]
        news = [] if before and before[-1].settings == segment.settings else [segment]
        return replace(self, segments=(*before, *news, *after))._checked()

    def _checked(self) -> History:
        known = set(self.domains)
        for segment in self.segments:
            for domain, weight in segment.settings.weights.items():
                if weight and domain not in known:
                    raise DataError(
                        "the mixture has a domain without tokens",
                        where=f"domain {domain}",
                        expected=f"one of {[*self.domains]}",
                    )
        if self.segments and self.first_sample(self.segments[-1].from_step) >= MAX_SAMPLES:
            raise DataError("a run has fewer samples than that", expected=f"fewer than {MAX_SAMPLES:,}")
        if self.segments:
            self.mixture  # noqa: B018  what is wrong with the weights shows here
        return self

    def _segment_number(self, step: int) -> int:
        if step < 0:
            raise ValueError(f"there is no step {step}")
        return bisect_right(self.segments, step, key=lambda segment: segment.from_step) - 1

    @cached_property
    def _samples_before(self) -> list[int]:
        """Samples read, jumps left out, before each segment."""
        return self._sums(lambda settings: settings.global_rows)

    @cached_property
    def _tokens_before(self) -> list[int]:
        """Tokens trained on before each segment."""
        return self._sums(lambda settings: settings.tokens_per_step)

    def _sums(self, of_a_step: Callable[[Settings], int]) -> list[int]:
        sums = [0]
        for segment, following in pairwise(self.segments):
            sums.append(sums[-1] + (following.from_step - segment.from_step) * of_a_step(segment.settings))
        return sums

    # Storage.

    def to_json(self) -> dict[str, Any]:
        """The whole value as a JSON object."""
        return {
            "format": _FORMAT,
            "seed": self.seed,
            "plan": [{"from_tokens": stage.from_tokens, **asdict(stage.settings)} for stage in self.plan],
            "segments": [{"from_step": segment.from_step, **asdict(segment.settings)} for segment in self.segments],
            "corpora": [{"from_step": g.from_step, "domain": g.domain, **asdict(g.record)} for g in self.corpora],
            "jumps": [asdict(jump) for jump in self.jumps],
            "accepted": [asdict(accepted) for accepted in self.accepted],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> History:
        """What `to_json` wrote.

        Raises:
            DataError: it is no history, or of a format of another version of the program.
        """
        try:
            if stored["format"] != _FORMAT:
                raise DataError("unknown format of a stored data history", found=stored["format"], expected=_FORMAT)
            history = cls(
                seed=int(stored["seed"]),
                plan=tuple(Stage(s["from_tokens"], _settings(s)) for s in stored["plan"]),
                segments=tuple(Segment(s["from_step"], _settings(s)) for s in stored["segments"]),
                corpora=tuple(_generation(**generation) for generation in stored["corpora"]),
                jumps=tuple(Jump(**jump) for jump in stored["jumps"]),
                accepted=tuple(Accepted(**accepted) for accepted in stored["accepted"]),
            )
            if [segment.from_step for segment in history.segments][:1] != [0]:
                raise ValueError("it does not begin at step 0")
            return history._checked()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError("this is not a stored data history", found=f"{type(error).__name__}: {error}") from error


def _settings(stored: Mapping[str, Any]) -> Settings:
    return Settings(dict(stored["weights"]), stored["sequence_length"], stored["global_rows"])


def _generation(from_step: int, domain: str, shards: Sequence[str], **record: Any) -> Generation:
    return Generation(from_step, domain, CorpusRecord(shards=tuple(shards), **record))
