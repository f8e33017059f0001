"""A long run with everything that may happen to its data, against an oracle that walks through it sample by sample.

The oracle knows the documented rules (docs/data.md and the docstrings of mixture.py, order.py and stream.py) and
nothing of the closed forms: it keeps counters, writes whole epochs down as lists, and has no array operation.
"""

from __future__ import annotations

import json
import random
from fractions import Fraction

import numpy as np
import pytest

from megacpt.data.history import CorpusRecord, History, Settings, Stage
from megacpt.data.loader import Loader
from megacpt.data.mixture import fixed_point_shares
from megacpt.data.order import stable_hash
from megacpt.data.stream import Stream, record_of
from tests.data.memory_corpus import MemoryCorpus

SEED, S = 11, 8
ONE = 1 << 40


def mix(number: int, key: int) -> int:
    """splitmix64's finaliser on Python's integers."""
    mixed = number ^ key
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> shift) * factor % 2**64
    return mixed ^ mixed >> 31


def shuffled(items: list[int], *key: int) -> list[int]:
    """The items in the order of a keyed permutation: a Feistel network that walks until it falls below the size."""
    bits = (len(items) - 1).bit_length()
    low_bits, high_bits = (bits + 1) // 2, bits // 2
    keys = [stable_hash("round", i, *key) for i in range(8 if len(items) > 64 else 16)]
    order = []
    for number in range(len(items)):
        place = number
        while True:
            high, low = place >> low_bits, place % 2**low_bits
            for even, odd in zip(keys[::2], keys[1::2], strict=True):
                low ^= mix(high, even) % 2**low_bits
                high ^= mix(low, odd) % 2**high_bits
            place = (high << low_bits) + low
            if place < len(items):
                break
        order.append(items[place])
    return order


class Oracle:
    """Counters and lists: the weights in force, what each domain has given, what is left of its epoch."""

    def __init__(self) -> None:
        self.sample = 0
        self.num_rows: dict[str, int] = {}
        self.given: dict[str, int] = {}
        self.epoch: dict[str, int] = {}
        self.left: dict[str, list[int]] = {}
        self.block: list[str] = []
        self.window: dict[str, int] = {}

    def set_rows(self, name: str, num_rows: int) -> None:
        """A domain joins, or gets more rows: what is left of its epoch and the new rows are shuffled together."""
        if self.left.get(name):
            self.epoch[name] += 1
            pool = self.left[name] + [*range(self.num_rows[name], num_rows)]
            self.left[name] = shuffled(pool, SEED, stable_hash("order", name), self.epoch[name])
        self.given.setdefault(name, 0)
        self.num_rows[name] = num_rows

    def set_weights(self, weights: dict[str, float]) -> None:
        self.shares = fixed_point_shares(weights)
        self.from_sample, self.block = self.sample, []
        self.begun = dict(self.given)
        self.phase = stable_hash("phase", SEED, self.sample) >> 24
        self.block_samples = 1
        while self.block_samples * min(self.shares.values()) < ONE:
            self.block_samples *= 2

    def next(self) -> tuple[str, int]:
        """The domain and row of the next sample."""
        if not self.block:
            self.block = self.fill_block()
        name = self.block.pop(0)
        self.sample += 1
        self.given[name] += 1
        if not self.left.get(name):
            self.epoch[name] = self.epoch.get(name, -1) + 1
            rows, key = [*range(self.num_rows[name])], (SEED, stable_hash("order", name), self.epoch[name])
            if window := self.window.get(name):
                parts = [rows[first : first + window] for first in range(0, len(rows), window)]
                self.left[name] = [row for i, part in enumerate(parts) for row in shuffled(part, *key, i)]
            else:
                self.left[name] = shuffled(rows, *key)
        return name, self.left[name].pop(0)

    def fill_block(self) -> list[str]:
        def quota(before: int, name: str) -> int:
            names = list(self.shares)
            below = sum(self.shares[other] for other in names[: names.index(name)])
            edges = (below, below + self.shares[name])
            low, high = (Fraction(before * edge + self.phase, ONE) for edge in edges)
            return high.__floor__() - low.__floor__()

        first, slots = self.sample - self.from_sample, []
        for name in self.shares:
            count = quota(first + self.block_samples, name) - quota(first, name)
            key = stable_hash("jitter", SEED, self.from_sample, name)
            for k in range(count):
                u = mix(self.begun[name] + quota(first, name) + k, key) >> 17
                slots.append((((k << 47) + u) // count, name))
        return [name for _, name in sorted(slots, key=lambda slot: slot[0])]


class Text(MemoryCorpus):
    """Rows of one document each, in shards of their own."""

    def __init__(self, num_rows: int, first_token: int, num_shards: int) -> None:
        super().__init__([num_rows * S + 1], first_token)
        self.shard_digests = tuple(f"{first_token}-{shard}" for shard in range(num_shards))


def test_it_reads_what_the_oracle_says() -> None:
    a, more_a, b, c = Text(5000, 0, 1), Text(9000, 0, 2), Text(700, 100_000, 1), Text(333, 200_000, 1)
    oracle = Oracle()
    expected: list[list[tuple[str, int]]] = []

    def walk(num_steps: int, global_rows: int) -> None:
        expected.extend([oracle.next() for _ in range(global_rows)] for _ in range(num_steps))

    # The oracle: ten thousand steps.
    oracle.set_rows("a", 5000)
    oracle.set_rows("b", 700)
    for weights, num_steps, global_rows in (({"a": 0.9, "b": 0.1}, 1000, 8), ({"a": 0.5, "b": 0.5}, 1500, 8)):
        oracle.set_weights(weights)
        walk(num_steps, global_rows)
    walk(500, 8)
    oracle.set_rows("c", 333)  # a domain joins, on other ranks; it has an order
    oracle.window["c"] = 50
    oracle.set_weights({"a": 6, "b": 3, "c": 1})
    walk(2000, 8)
    for _ in range(40):  # a jump
        oracle.next()
    walk(1000, 8)
    oracle.set_rows("a", 9000)  # shards join
    oracle.set_weights({"a": 1, "c": 0.01})
    walk(2500, 8)
    oracle.set_weights({"a": 1, "b": 2, "c": 3})  # with a larger batch
    walk(1500, 16)
    assert len(expected) == 10_000

    # The run: a plan of two stages, then what is edited on resume, a controller, and a jump.
    def settings(weights: dict[str, float], global_rows: int = 8) -> Settings:
        return Settings(weights, S, global_rows)

    texts = {"a": a, "b": b}
    plan = [Stage(0, settings({"a": 9, "b": 1})), Stage(1000 * 8 * S, settings({"a": 1, "b": 1}))]
    history = History.begin(SEED, plan, {name: record_of(text) for name, text in texts.items()})
    found: list[list[tuple[str, int]]] = []

    def train(num_steps: int, dp_size: int, micro_rows: int) -> None:
        """Resume from the stored history on other ranks, and note what they read."""
        stream = Stream(texts, History.from_json(json.loads(json.dumps(history.to_json()))))
        first = len(found)
        loaders = [
            Loader(stream, micro_rows, rank, dp_size, start_step=first, prefetch_steps=0) for rank in range(dp_size)
        ]
        for step in range(first, first + num_steps):
            numbers = np.sort(np.concatenate([loader.samples(step).ravel() for loader in loaders]))
            location = stream.locate(numbers)
            rows = zip(location.domain.tolist(), location.row.tolist(), strict=True)
            found.append([(stream.names[domain], row) for domain, row in rows])
        for step in random.sample(range(first, first + num_steps), 5):
            wanted = sorted(texts[name].tokens[row * S] for name, row in expected[step])
            batches = [batch for loader in loaders for batch in loader.step(step)]
            assert sorted(row[0].item() for batch in batches for row in batch.input_ids) == wanted
        for loader in loaders:
            loader.close()

    train(3000, dp_size=1, micro_rows=2)
    texts["c"] = c
    edited = [Stage(0, settings({"a": 6, "b": 3, "c": 1}))]
    records = {name: record_of(text) for name, text in texts.items()}
    records["c"] = record_of(c, order="as_stored", window_tokens=50 * S + S - 1)
    history = history.replan(3000, edited, records)
    train(2000, dp_size=4, micro_rows=1)
    history = history.jump(5000, 40)
    train(1000, dp_size=2, micro_rows=4)
    texts["a"] = more_a
    history = history.replan(6000, edited, {**records, "a": record_of(more_a)})
    history = history.set_weights(6000, {"a": 1, "c": 0.01})
    train(2500, dp_size=8, micro_rows=1)
    larger = [*edited, Stage(8500 * 8 * S, settings({"a": 1, "b": 2, "c": 3}, 16))]
    history = history.replan(8500, larger, {})
    train(1500, dp_size=2, micro_rows=8)

    assert [step for step in range(10_000) if found[step] != expected[step]] == []


@pytest.mark.parametrize("order", ["shuffled", "as_stored"])
@pytest.mark.parametrize("read", [1, 30, 40, 65])
def test_added_rows_lengthen_the_epoch_that_is_read(read: int, order: str) -> None:
    """Of 40 rows some are read; then there are 55, and then 61: every row comes once before any comes again."""
    texts = [Text(40, 0, 1), Text(55, 0, 2), Text(61, 0, 3)]
    plan = [Stage(0, Settings({"a": 1}, S, 1))]
    reading = {"order": order, "window_tokens": 5 * S if order == "as_stored" else None}
    history = History.begin(SEED, plan, {"a": record_of(texts[0], **reading)})
    for step, text in ((read, texts[1]), (read + 3, texts[2])):
        history = history.replan(step, plan, {"a": record_of(text, **reading)})
    rows = Stream({"a": texts[2]}, history).locate(np.arange(200)).row.tolist()
    begun = read // 40 * 40
    assert sorted(rows[begun : begun + 61]) == [*range(61)]
    assert sorted(rows[begun + 61 : begun + 122]) == [*range(61)]
    if order == "as_stored":
        windows = [sorted(rows[begun + first : begun + first + 5]) for first in range(61, 121, 5)]
        assert windows == [[*range(first, first + 5)] for first in range(0, 60, 5)]


def test_another_sequence_length_begins_an_epoch_in_other_rows() -> None:
    record = CorpusRecord(401, 1)
    plan = [Stage(0, Settings({"a": 1}, 8, 2)), Stage(160, Settings({"a": 1}, 16, 1))]
    stream = Stream({"a": MemoryCorpus([401])}, History.begin(SEED, plan, {"a": record}))
    location = stream.locate(np.arange(20 + 2 * 25))
    assert sorted(location.row[20:45]) == [*range(25)] and location.epoch[19:21].tolist() == [0, 1]
    assert stream.rows(stream.locate(stream.samples(10))).tokens.shape == (1, 17)
    (report,) = stream.report(60)
    assert (report.tokens, report.unique_tokens, report.epochs) == (160 + 50 * 16, 400, 20 / 50 + 2)
