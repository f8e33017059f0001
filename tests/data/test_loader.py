from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacpt.data.batch import IGNORE_INDEX, MicroBatch
from megacpt.data.loader import Loader
from megacpt.data.stream import Stream
from tests.data.memory_corpus import MemoryCorpus, UnreadableCorpus, stream_of

S = 16


def loss_weights(shares: Mapping[str, float]) -> dict[str, float]:
    return {"a": 1.0, "b": 2.5}


def make_stream(global_rows: int, seed: int = 0) -> Stream:
    """Two domains: `a` in documents of 1 to 24 tokens, `b` in long ones."""
    corpora = {
        "a": MemoryCorpus(np.random.default_rng(0).integers(1, 25, size=60).tolist()),
        "b": MemoryCorpus([100] * 5, first_token=10_000),
    }
    return stream_of(corpora, {"a": 0.75, "b": 0.25}, S, global_rows, seed)


def equal(one: Sequence[MicroBatch], other: Sequence[MicroBatch]) -> bool:
    """Whether micro-batches agree bit for bit."""
    return len(one) == len(other) and all(
        torch.equal(getattr(x, field.name), getattr(y, field.name))
        for x, y in zip(one, other, strict=True)
        for field in fields(MicroBatch)
    )


@settings(max_examples=40)
@given(
    step=st.integers(0, 30),
    dp_size=st.sampled_from([1, 2, 3, 4]),
    micro_rows=st.sampled_from([1, 2, 4]),
    prefetch_steps=st.integers(0, 3),
    document_mask=st.booleans(),
)
def test_the_ranks_of_any_layout_share_the_batch_of_a_single_rank(
    step: int, dp_size: int, micro_rows: int, prefetch_steps: int, document_mask: bool
) -> None:
    global_rows = 48
    stream = make_stream(global_rows)
    with Loader(stream, 1, 0, 1, loss_weights, document_mask, prefetch_steps=0) as loader:
        single = loader.step(step)
    seen = []
    for rank in range(dp_size):
        layout = (micro_rows, rank, dp_size)
        with Loader(
            stream, *layout, loss_weights, document_mask, start_step=step, prefetch_steps=prefetch_steps
        ) as loader:
            batches, samples = loader.step(step), loader.samples(step)
        assert len(batches) == loader.num_micro_batches(step) == len(samples)
        for m, (batch, numbers) in enumerate(zip(batches, samples, strict=True)):
            rows = [MicroBatch(*(getattr(batch, f.name)[j : j + 1] for f in fields(batch))) for j in range(micro_rows)]
            for j, (row, number) in enumerate(zip(rows, numbers.tolist(), strict=True)):
                assert number == step * global_rows + (m * dp_size + rank) * micro_rows + j
                assert equal([row], [single[number - step * global_rows]])
                seen.append(number)
    assert sorted(seen) == list(range(step * global_rows, (step + 1) * global_rows))


@given(step=st.integers(0, 50), weight_of_b=st.floats(0, 10))
def test_weights_sum_to_one_and_follow_the_loss_weights(step: int, weight_of_b: float) -> None:
    with Loader(make_stream(32), 4, loss_weights=lambda shares: {"a": 2, "b": weight_of_b}, prefetch_steps=0) as loader:
        batches = loader.step(step)
    weights = torch.cat([batch.weights for batch in batches]).double()
    labels = torch.cat([batch.labels for batch in batches])
    domains = torch.cat([batch.domains for batch in batches])
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert (weights[labels == IGNORE_INDEX] == 0).all()
    num_a, num_b = (((domains == domain) & (labels != IGNORE_INDEX)).sum().item() for domain in (0, 1))
    total = 2 * num_a + weight_of_b * num_b
    assert weights[(domains == 0) & (labels != IGNORE_INDEX)].unique().tolist() == pytest.approx([2 / total])
    assert weights[(domains == 1) & (labels != IGNORE_INDEX)].unique().tolist() == pytest.approx([weight_of_b / total])
    assert loader.global_weight(step) == pytest.approx(total)


def test_a_micro_batch_of_one_domain_keeps_its_domains_weight() -> None:
    with Loader(make_stream(8), micro_rows=1, loss_weights=loss_weights) as loader:
        batches = loader.step(0)
    weight = {int(batch.domains[0, 0]): float(batch.weights.max()) for batch in batches}
    assert weight[1] / weight[0] == pytest.approx(2.5)


def test_a_batch_without_a_single_label_weighs_nothing() -> None:
    with Loader(stream_of({"a": MemoryCorpus([1] * 100)}, {"a": 1}, S, 4)) as loader:
        assert all((batch.weights == 0).all() for batch in loader.step(0))
        assert loader.global_weight(0) == 0


@given(resume_at=st.integers(0, 12), prefetch_steps=st.integers(0, 3))
@settings(max_examples=20)
def test_a_resumed_run_reads_what_the_uninterrupted_one_reads(resume_at: int, prefetch_steps: int) -> None:
    with Loader(make_stream(8), 2, 1, 2, loss_weights) as loader:
        uninterrupted = [loader.step(step) for step in range(14)]
    with Loader(make_stream(8), 2, 1, 2, loss_weights, start_step=resume_at, prefetch_steps=prefetch_steps) as loader:
        for step in range(resume_at, 14):
            assert equal(loader.step(step), uninterrupted[step])


@given(steps=st.lists(st.integers(0, 6), max_size=12), prefetch_steps=st.integers(0, 3))
@settings(max_examples=20)
def test_a_step_is_the_same_in_whatever_order_it_is_asked_for(steps: list[int], prefetch_steps: int) -> None:
    with Loader(make_stream(4), prefetch_steps=0) as loader:
        expected = [loader.step(step) for step in range(7)]
    with Loader(make_stream(4), prefetch_steps=prefetch_steps) as loader:
        for step in steps:
            assert equal(loader.step(step), expected[step])


def test_steps_are_made_ahead_in_the_background() -> None:
    made: list[tuple[str, int]] = []
    is_made = threading.Condition()

    class Watched(MemoryCorpus):
        def read(self, start: int, count: int) -> np.ndarray:
            with is_made:
                made.append((threading.current_thread().name, start // S))
                is_made.notify_all()
            return super().read(start, count)

    stream = stream_of({"a": Watched([S * 10 + 1])}, {"a": 1}, S)
    with Loader(stream, prefetch_steps=2) as loader:
        loader.step(0)
        with is_made:
            assert is_made.wait_for(lambda: len(made) == 3, timeout=60), "steps 1 and 2 are not made ahead"
    assert [row for _, row in made] == stream.locate([0, 1, 2]).row.tolist()
    assert all(thread.startswith("megacpt-loader") for thread, _ in made)
    assert loader.last_wait_seconds > 0


def test_tokens_per_domain_are_those_of_the_global_batch() -> None:
    stream = make_stream(12)
    with Loader(stream, dp_rank=1, dp_size=2) as loader:
        for step in range(5):
            domains = stream.locate(np.arange(12 * step, 12 * step + 12)).domain
            expected = {"a": int((domains == 0).sum()) * S, "b": int((domains == 1).sum()) * S}
            assert loader.tokens_per_domain(step) == expected


def test_the_global_weight_needs_no_tokens_but_a_read_that_fails_reaches_the_caller() -> None:
    with Loader(stream_of({"a": UnreadableCorpus([100])}, {"a": 1}, S, 2)) as loader:
        assert loader.global_weight(0) == 2 * S
        for _ in range(2):  # not only the first time
            with pytest.raises(OSError, match="the disk is gone"):
                loader.step(0)


def test_close_ends_the_thread() -> None:
    def workers() -> int:
        return sum(thread.name.startswith("megacpt-loader") for thread in threading.enumerate())

    before = workers()
    loader = Loader(make_stream(4), prefetch_steps=3)
    loader.step(0)
    assert workers() == before + 1
    loader.close()
    loader.close()
    assert workers() == before


@pytest.mark.parametrize("layout", [(6, 4, 0, 1), (6, 2, 0, 2), (0, 1, 0, 1), (4, 1, 2, 2), (4, 1, -1, 2)])
def test_a_layout_that_does_not_fit_is_refused(layout: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"no multiple|no rank"):
        Loader(make_stream(layout[0]), *layout[1:])


def test_loss_weights_follow_the_shares_and_a_change_leaves_nothing_of_the_old_mixture_behind() -> None:
    def inverse(shares: Mapping[str, float]) -> dict[str, float]:
        return {name: 1 / share for name, share in shares.items()}

    with Loader(make_stream(8), loss_weights=inverse, prefetch_steps=3) as loader:
        loader.step(0)
        loader.set_weights(1, {"a": 1, "b": 4})
        changed = [loader.step(step) for step in (1, 2, 3)]
    with Loader(loader.stream, loss_weights=inverse, prefetch_steps=0) as afresh:
        assert all(equal(batches, afresh.step(step)) for step, batches in enumerate(changed, start=1))
    weight = {int(batch.domains[0, 0]): float(batch.weights.max()) for batch in changed[0]}
    assert weight[0] / weight[1] == pytest.approx(4)
