"""The mixture: which domain the g-th row of a run comes from, and which of that domain's rows it is.

Domains take turns by exact quotas, not by drawing lots. The samples are cut into blocks; what a domain has received
by the end of every block is within one sample of its share, so that nothing drifts over a run of any length. Inside a
block each domain's samples are spread evenly with a keyed jitter, so that a share also holds, up to a sample or two,
in a global batch that is smaller than a block or cuts it. Both are closed forms of the sample number: there is no
table, no state beside the history of weights, and it does not matter who asks, in which order, or how many ask.

**Quotas.** Shares are integers w_d that sum to 2**40; W_d is the sum of the shares before domain d. Before sample n of
a segment, n a block's edge, domain d has received

    T_d(n) = floor(n * W_(d+1) / 2**40 + phase) - floor(n * W_d / 2**40 + phase),        0 <= phase < 1

1. The T_d(n) sum to n: the sum telescopes to floor(n + phase) - floor(phase).
2. |T_d(n) - n * w_d / 2**40| < 1: both floors take away less than one, and the phase cancels.
3. No block gives a domain a negative count. Over a block of B samples the first floor grows by more than
   B * W_(d+1) / 2**40 - 1, the second by less than B * W_d / 2**40 + 1; so the count is greater than
   B * w_d / 2**40 - 2. B is chosen as the smallest power of two with B * w_d >= 2**40 for every domain, so the count is
   an integer greater than -1. (With a fixed B a domain rarer than one sample in B does come out at -1 now and then.)

The phase is drawn by hash for each segment: without it the first domain would lose half a sample, and the last win it,
every time the weights change. For the same reason the jitter below depends on the segment: weights that change faster
than blocks end must not put off the same domain every time.

**Spread.** The k-th of a domain's c samples in a block stands at (k + u) / c of it, u in [0, 1) by hash, and the block
is what sorting these places gives. A domain's ordinals thus rise along the block, and a block that is cut by a change
of weights has handed out a run of ordinals without a gap.

**History.** Weights may change at any sample number: `append` starts a new segment there, in which every domain
continues with the ordinal where the segments before left it. The history of weights and the seed are all there is to
store.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from megacpt.data.order import mix64, stable_hash
from megacpt.errors import DataError

MAX_BLOCK_SAMPLES = 1 << 16
"""The largest block; one sample in so many is the smallest share a domain can have."""

MAX_SAMPLES = 1 << 40
"""Sample numbers lie below this, so that a quota fits into 64-bit arithmetic."""

_SHARE_BITS = 40
_ONE = 1 << _SHARE_BITS
_FORMAT = 1

Int64s = npt.NDArray[np.int64]


def fixed_point_shares(weights: Mapping[str, float]) -> dict[str, int]:
    """Return weights as integer shares that sum to 2**40, by largest remainders, in the order of the names.

    Exact rational arithmetic: the result depends neither on the order of the domains nor on the machine.

    Raises:
        DataError: if no weight is positive, or one is negative, not finite, or smaller than one sample in
            `MAX_BLOCK_SAMPLES`. A weight of zero leaves the domain out.
    """
    return dict(_fixed_point_shares(tuple(weights.items())))


@lru_cache(maxsize=1024)  # milliseconds for many domains, and a history that changes asks for all its weights
def _fixed_point_shares(pairs: tuple[tuple[str, float], ...]) -> dict[str, int]:
    weights = dict(pairs)
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise DataError("a mixture's weight must be a finite number >= 0", where=f"domain {name}", found=weight)
    exact = {name: Fraction(weights[name]) for name in sorted(weights) if weights[name] > 0}
    if not exact:
        raise DataError("a mixture needs a domain with a positive weight", found=dict(weights))
    total = sum(exact.values())
    targets = {name: weight / total * _ONE for name, weight in exact.items()}
    shares = {name: math.floor(target) for name, target in targets.items()}
    missing = _ONE - sum(shares.values())
    for name in sorted(shares, key=lambda name: shares[name] - targets[name])[:missing]:
        shares[name] += 1
    rarest = min(shares, key=shares.__getitem__)
    if shares[rarest] * MAX_BLOCK_SAMPLES < _ONE:
        raise DataError(
            "the domain's share of the mixture is too small",
            where=f"domain {rarest}",
            found=f"{shares[rarest] / _ONE:.3g}",
            expected=f"at least 1/{MAX_BLOCK_SAMPLES}",
            hint="Give it a larger weight, leave it out (weight 0), or build it into the shards of another domain.",
        )
    return shares


@dataclass(frozen=True, eq=False)
class _Segment:
    """A stretch of samples with constant weights. Blocks count from its first sample; D domains take part in it."""

    from_sample: int
    weights: dict[str, float]  # as given
    shares: dict[str, int]  # as used: D positive integers that sum to 2**40, in the order of the names
    names: tuple[str, ...]  # all domains of the history so far
    domains: Int64s  # [D] places in `names`
    first_ordinals: Int64s  # [len(names)] where each domain continues
    prefix_shares: Int64s  # [D + 1] W of the module's docstring: 0 ... 2**40
    jitter_keys: npt.NDArray[np.uint64]  # [D]
    phase: int  # in units of 2**-40
    block_samples: int

    @classmethod
    def begin(cls, from_sample: int, weights: Mapping[str, float], seed: int, previous: _Segment | None) -> _Segment:
        """Return the segment that follows another, or the first."""
        shares = fixed_point_shares(weights)
        known = previous.names if previous else ()
        names = known + tuple(name for name in weights if name in shares and name not in known)
        first_ordinals = np.zeros(len(names), dtype=np.int64)
        if previous:
            first_ordinals[: len(known)] = previous.counts(from_sample)
        return cls(
            from_sample=from_sample,
            weights={name: float(weight) for name, weight in weights.items()},
            shares=shares,
            names=names,
            domains=np.array([names.index(name) for name in shares], dtype=np.int64),
            first_ordinals=first_ordinals,
            prefix_shares=np.cumsum([0, *shares.values()], dtype=np.int64),
            jitter_keys=np.array([stable_hash("jitter", seed, from_sample, name) for name in shares], dtype=np.uint64),
            phase=stable_hash("phase", seed, from_sample) >> (64 - _SHARE_BITS),
            block_samples=1 << (math.ceil(Fraction(_ONE, min(shares.values()))) - 1).bit_length(),
        )

    def counts(self, num_samples: int) -> Int64s:
        """Return what each domain received of the run's first samples, which end in this segment: [len(names)]."""
        block, num_slots = divmod(num_samples - self.from_sample, self.block_samples)
        received = self._received(np.array([block]))[0]
        if num_slots:
            domain, _ = self._slots(np.array([block]))
            received += np.bincount(domain[0, :num_slots], minlength=len(received))
        counts = self.first_ordinals.copy()
        counts[self.domains] += received
        return counts

    def locate(self, samples: Int64s) -> tuple[Int64s, Int64s]:
        """Return the domain (its place in `names`) and the ordinal of every sample: [N], [N]."""
        block, slot = np.divmod(samples - self.from_sample, self.block_samples)
        blocks, place = np.unique(block, return_inverse=True)
        domain, ordinal = (of_block[place, slot] for of_block in self._slots(blocks))
        return self.domains[domain], ordinal

    def _received(self, blocks: Int64s) -> Int64s:
        """Return what each domain has received in this segment before each block: [len(blocks), D]."""
        samples = (blocks * self.block_samples)[:, None]
        # floor(samples * W / 2**40 + phase): the product has 80 bits, so the samples' high and low 20 go one by one.
        high = (samples >> 20) * self.prefix_shares
        low = (samples & 0xFFFFF) * self.prefix_shares + self.phase
        return np.diff((high >> 20) + ((((high & 0xFFFFF) << 20) + low) >> _SHARE_BITS), axis=1)

    def _slots(self, blocks: Int64s) -> tuple[Int64s, Int64s]:
        """Return the domain (its place in `domains`) and the ordinal of every slot: twice [len(blocks), B]."""
        received = self._received(blocks)
        counts = (self._received(blocks + 1) - received).ravel()
        domain = np.repeat(np.tile(np.arange(len(self.domains)), len(blocks)), counts)
        kth = np.arange(len(domain)) - np.repeat(np.cumsum(counts) - counts, counts)
        ordinal = np.repeat((received + self.first_ordinals[self.domains]).ravel(), counts) + kth
        jitter = mix64(ordinal.astype(np.uint64), self.jitter_keys[domain]) >> np.uint64(17)  # u, 47 bits
        places = ((kth.astype(np.uint64) << np.uint64(47)) + jitter) // np.repeat(counts, counts).astype(np.uint64)
        shape = (len(blocks), self.block_samples)
        order = np.argsort(places.reshape(shape), axis=1, kind="stable")
        return (
            np.take_along_axis(domain.reshape(shape), order, axis=1),
            np.take_along_axis(ordinal.reshape(shape), order, axis=1),
        )


class Mixture:
    """Who gives the g-th sample: a pure function of the weights' history and a seed. Immutable.

    Args:
        weights: domain -> weight, in any unit (they are normalised); 0 leaves a domain out.
        seed: chooses the order inside the blocks.

    Raises:
        DataError: see `fixed_point_shares`.
    """

    def __init__(self, weights: Mapping[str, float], seed: int = 0) -> None:
        self.seed = int(seed)
        self._segments: tuple[_Segment, ...] = (_Segment.begin(0, weights, self.seed, None),)

    @property
    def names(self) -> tuple[str, ...]:
        """All domains of the history in the order of their first appearance: `append` never renumbers them."""
        return self._segments[-1].names

    @property
    def block_samples(self) -> int:
        """Samples of a block under the weights in force: shares are exact to a sample at every multiple of it."""
        return self._segments[-1].block_samples

    @property
    def history(self) -> tuple[tuple[int, dict[str, float]], ...]:
        """The changes of weights, as they were given: (first sample, domain -> weight), the first at sample 0."""
        return tuple((segment.from_sample, dict(segment.weights)) for segment in self._segments)

    def append(self, from_sample: int, weights: Mapping[str, float]) -> Mixture:
        """Return the mixture that goes over to other weights at a sample number (the first of a global batch).

        Domains may join and leave; one that comes back continues where it left off. The samples before `from_sample`
        stay as they are. Weights that say what is already in force change nothing.

        Raises:
            DataError: if `from_sample` lies before the last change, or for the weights (`fixed_point_shares`).
        """
        last = self._segments[-1]
        if from_sample < last.from_sample:
            raise DataError(
                "a mixture can change only after its last change",
                found=f"a change at sample {from_sample}",
                expected=f"sample {last.from_sample} or later",
            )
        segments = self._segments if from_sample > last.from_sample else self._segments[:-1]  # an empty one goes
        previous = segments[-1] if segments else None
        if previous is None or fixed_point_shares(weights) != previous.shares:
            segments = (*segments, _Segment.begin(from_sample, weights, self.seed, previous))
        changed = copy.copy(self)
        changed._segments = segments
        return changed

    def locate(self, sample_numbers: npt.ArrayLike) -> tuple[Int64s, Int64s]:
        """Return for every sample number its domain (the place in `names`) and the ordinal among that domain's samples.

        Ordinals of a domain are 0, 1, 2 ... along the samples, without a gap or a repeat, over the whole history.

        Args:
            sample_numbers: of any shape and in any order, each in [0, MAX_SAMPLES).

        Raises:
            ValueError: if a number lies outside.
        """
        samples = np.asarray(sample_numbers, dtype=np.int64)
        if samples.size and not (samples.min() >= 0 and samples.max() < MAX_SAMPLES):
            raise ValueError(f"sample numbers from {samples.min()} to {samples.max()} do not lie in [0, 2**40)")
        domains, ordinals = np.empty_like(samples), np.empty_like(samples)
        starts = [segment.from_sample for segment in self._segments]
        segment_numbers = np.searchsorted(starts, samples, side="right") - 1
        for number in np.unique(segment_numbers):
            asked = segment_numbers == number
            domains[asked], ordinals[asked] = self._segments[number].locate(samples[asked])
        return domains, ordinals

    def counts(self, num_samples: int) -> Int64s:
        """Return how many of the run's first samples each domain gives: [len(names)], in closed form.

        Raises:
            ValueError: if the number lies outside [0, MAX_SAMPLES].
        """
        if not 0 <= num_samples <= MAX_SAMPLES:
            raise ValueError(f"the number of samples does not lie in [0, 2**40]: {num_samples}")
        segment = [segment for segment in self._segments if segment.from_sample <= num_samples][-1]
        counts = np.zeros(len(self.names), dtype=np.int64)
        counts[: len(segment.names)] = segment.counts(num_samples)
        return counts

    def target_shares(self, num_samples: int) -> npt.NDArray[np.float64]:
        """Return the shares that the history asks for over the run's first samples, 1 or more: [len(names)], sum 1."""
        starts = [segment.from_sample for segment in self._segments]
        stretches = np.diff(np.minimum([*starts, num_samples], num_samples))
        targets = np.zeros(len(self.names))
        for segment, stretch in zip(self._segments, stretches, strict=True):
            targets[segment.domains] += stretch / num_samples * np.diff(segment.prefix_shares) / _ONE
        return targets

    def to_json(self) -> dict[str, Any]:
        """Return all there is to store, as a JSON object: the seed and the history of weights as they were given."""
        segments = [{"from_sample": from_sample, "weights": weights} for from_sample, weights in self.history]
        return {"format": _FORMAT, "seed": self.seed, "segments": segments}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Mixture:
        """Return the mixture that `to_json` described.

        Raises:
            DataError: if it is none, or of a format of another version of the program.
        """
        try:
            if stored["format"] != _FORMAT:
                raise DataError("unknown format of a stored mixture", found=stored["format"], expected=_FORMAT)
            first, *changes = stored["segments"]
            if first["from_sample"] != 0:
                raise ValueError("the history does not begin at sample 0")
            mixture = cls(first["weights"], seed=stored["seed"])
            for change in changes:
                mixture = mixture.append(change["from_sample"], change["weights"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError("this is not a stored mixture", found=f"{type(error).__name__}: {error}") from error
        return mixture

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits of the seed and the shares' history: mixtures that agree hand out the same samples."""
        text = json.dumps([self.seed, [(segment.from_sample, segment.shares) for segment in self._segments]])
        return hashlib.sha256(text.encode()).hexdigest()
