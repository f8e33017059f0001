"""Rows of tokens from four domains as each library reads them, by its own documented way, behind one face.

A contender prepares its files once (not timed), and opens them at the start of a run or where another run left off.
What it opens reads the next rows. Rows have one token more than are predicted. Every library mixes the domains by the
same weights and shuffles; what else it gives differs and is said by `gives`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS = {"a": 0.45, "b": 0.25, "c": 0.2, "d": 0.1}
SIZES = {"a": 0.5, "b": 0.25, "c": 0.15, "d": 0.1}
MEAN_DOCUMENT_TOKENS = 741
EOS_ID = 0


@dataclass(frozen=True)
class Corpora:
    """Where the shards of the four domains lie, and how they are read."""

    folder: Path
    length: int
    rows_per_read: int

    def own_folder(self, name: str) -> tuple[Path, bool]:
        """A contender's folder, and whether it has to be filled."""
        folder = self.folder / name
        return folder, not folder.exists()

    def rows_of(self, domain: str) -> Iterator[np.ndarray]:
        """The rows of a domain in the order of its text: int32 [length + 1]."""
        tokens = np.memmap(self.folder / f"{domain}.bin", np.int32, "r")
        for start in range(0, tokens.size - self.length, self.length):
            yield np.asarray(tokens[start : start + self.length + 1])


@dataclass(frozen=True)
class Opened:
    """A run that reads.

    Attributes:
        read: reads at least so many of the next rows; returns how many.
        state: what a resumed run is given.
    """

    read: Callable[[int], int]
    state: Callable[[], Any]


@dataclass(frozen=True)
class Contender:
    """A way to read rows.

    Attributes:
        package: that has to be installed.
        gives: what a row comes with.
        prepare: writes the files that it reads.
        open: opens them, at the start or with what `state` returned.
        build_index: makes the index of so many samples of so many predicted tokens, from nothing but their number.
        no_index: why there is no such index.
    """

    package: str
    gives: str
    open: Callable[[Corpora, Any], Opened]
    prepare: Callable[[Corpora], None] = lambda corpora: None
    build_index: Callable[[int, int], object] | None = None
    no_index: str = ""


def write_corpora(folder: Path, num_tokens: int) -> None:
    """Four domains of documents of lognormal lengths, ids in int32, an EOS after each."""
    from megacpt.data.shard import ShardWriter

    random = np.random.default_rng(0)
    for name, share in SIZES.items():
        num_documents = int(num_tokens * share / MEAN_DOCUMENT_TOKENS)
        lengths = random.lognormal(np.log(MEAN_DOCUMENT_TOKENS) - 0.72, 1.2, num_documents)
        lengths = np.maximum(lengths.astype(np.int64), 1)
        ids = random.integers(1, 128_000, lengths.sum(), dtype=np.int32)
        ids[np.cumsum(lengths) - 1] = EOS_ID
        with ShardWriter(folder / name, np.dtype("<i4")) as writer:
            writer.add_documents(ids, lengths)


def _by_number(dataset: Any, state: Any) -> Opened:
    """A run that reads a dataset's rows by their numbers, over and over; its state is the next one."""
    at = state or 0

    def read(num_rows: int) -> int:
        nonlocal at
        for k in range(at, at + num_rows):
            dataset[k % len(dataset)]
        at += num_rows
        return num_rows

    return Opened(read, lambda: at)


def _again_and_again(dataset: Iterable[Any]) -> Iterator[Any]:
    """What a dataset gives, epoch after epoch."""
    while True:
        yield from dataset


# --- megacpt ---------------------------------------------------------------------------------------------


def _megacpt(corpora: Corpora, state: Any) -> Opened:
    from megacpt.data.corpus import open_corpus
    from megacpt.data.history import History, Settings, Stage
    from megacpt.data.stream import Stream, record_of

    opened = {name: open_corpus(corpora.folder / name) for name in SIZES}
    if state is None:
        stages = [Stage(0, Settings(WEIGHTS, corpora.length, corpora.rows_per_read))]
        history = History.begin(0, stages, {name: record_of(corpus) for name, corpus in opened.items()})
        at = 0
    else:
        history, at = History.from_json(json.loads(state[0])), state[1]
    stream = Stream(opened, history)

    def read(num_rows: int) -> int:
        nonlocal at
        stream.rows(stream.locate(np.arange(at, at + num_rows)))
        at += num_rows
        return num_rows

    return Opened(read, lambda: (json.dumps(history.to_json()), at))


def _megacpt_index(num_samples: int, length: int) -> object:
    from megacpt.data.history import CorpusRecord, History, Settings, Stage
    from megacpt.data.stream import Stream

    records = {name: CorpusRecord(int(num_samples * share) * length, num_samples) for name, share in SIZES.items()}
    stream = Stream({}, History.begin(0, [Stage(0, Settings(WEIGHTS, length, 512))], records))
    stream.locate(stream.samples(num_samples // 1024))
    return stream


def _megacpt_batches(corpora: Corpora, state: Any) -> Opened:
    from megacpt.data.corpus import open_corpus
    from megacpt.data.history import History, Settings, Stage
    from megacpt.data.loader import Loader
    from megacpt.data.stream import Stream, record_of

    opened = {name: open_corpus(corpora.folder / name) for name in SIZES}
    rows = min(corpora.rows_per_read, 128)
    records = {name: record_of(corpus) for name, corpus in opened.items()}
    history = History.begin(0, [Stage(0, Settings(WEIGHTS, corpora.length, rows))], records)
    step = state or 0
    loader = Loader(Stream(opened, history), start_step=step, prefetch_steps=0)

    def read(num_rows: int) -> int:
        nonlocal step
        loader.step(step)
        step += 1
        return rows

    return Opened(read, lambda: step)


# --- a memory map and a stored permutation ---------------------------------------------------------------


def _numpy(corpora: Corpora, state: Any) -> Opened:
    tokens, length = np.memmap(corpora.folder / "a.bin", np.int32, "r"), corpora.length
    permutation = np.random.default_rng(0).permutation((tokens.size - 1) // length)
    out = np.empty((corpora.rows_per_read, length + 1), np.int32)
    at = state or 0

    def read(num_rows: int) -> int:
        nonlocal at
        for place, k in enumerate(np.take(permutation, range(at, at + num_rows), mode="wrap").tolist()):
            out[place] = tokens[k * length : k * length + length + 1]
        at += num_rows
        return num_rows

    return Opened(read, lambda: at)


# --- Megatron-core ---------------------------------------------------------------------------------------


def _megatron(corpora: Corpora, state: Any, *, resets: bool) -> Opened:
    import torch
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    tokenizer = types.SimpleNamespace(eod=EOS_ID, pad=-1, vocab_size=128_000, unique_identifiers={"class": "ids"})
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=corpora.length,
        blend=([str(corpora.folder / name) for name in WEIGHTS], list(WEIGHTS.values())),
        split="1,0,0",
        path_to_cache=str(corpora.folder / "megatron_cache"),
        tokenizer=tokenizer,
        reset_position_ids=resets,
        reset_attention_mask=resets,
        eod_mask_loss=resets,
        create_attention_mask=False,
    )
    return _by_number(BlendedMegatronDatasetBuilder(GPTDataset, [20_000, 0, 0], lambda: True, config).build()[0], state)


def _megatron_index(num_samples: int, length: int) -> object:
    """Of one dataset whose documents are a row long on average, and of a blend of four."""
    from megatron.core.datasets import helpers
    from megatron.core.datasets.gpt_dataset import _build_document_index, _build_shuffle_index

    random = np.random.RandomState(0)
    lengths = np.full(num_samples, length, np.int32)
    documents = _build_document_index(np.arange(num_samples, dtype=np.int32), 1, random, False)
    samples = helpers.build_sample_idx(lengths, documents, length, 1, num_samples * length)
    shuffled = _build_shuffle_index(len(samples) - 1, len(samples) - 1, random)
    which, row = np.zeros(num_samples, np.int16), np.zeros(num_samples, np.int64)
    weights = np.array(list(WEIGHTS.values()))
    helpers.build_blending_indices(which, row, weights, len(weights), num_samples, False)
    return documents, samples, shuffled, which, row


# --- mosaicml-streaming ----------------------------------------------------------------------------------


def _import_streaming() -> Any:
    """It imports torchvision, for image formats alone; where that is not installed, empty modules stand in for it."""
    import transformers  # noqa: F401  it asks whether torchvision is there, and must not be told so

    stand_ins = {}
    if importlib.util.find_spec("torchvision") is None:
        names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
        stand_ins = {name: types.ModuleType(name) for name in names}
        vars(stand_ins["torchvision.datasets"])["VisionDataset"] = object
        vars(stand_ins["torchvision.transforms.functional"])["to_tensor"] = None
    sys.modules.update(stand_ins)
    import streaming

    for name in stand_ins:
        del sys.modules[name]
    return streaming


def _prepare_streaming(corpora: Corpora) -> None:
    streaming = _import_streaming()
    folder, is_new = corpora.own_folder("streaming")
    for name in SIZES if is_new else ():
        with streaming.MDSWriter(out=str(folder / name), columns={"tokens": "ndarray:int32"}) as writer:
            for row in corpora.rows_of(name):
                writer.write({"tokens": row})


def _streaming(corpora: Corpora, state: Any) -> Opened:
    streaming = _import_streaming()
    streaming.base.util.clean_stale_shared_memory()
    parts = [
        streaming.Stream(local=str(corpora.folder / "streaming" / name), proportion=share)
        for name, share in WEIGHTS.items()
    ]
    dataset = streaming.StreamingDataset(streams=parts, shuffle=True, batch_size=1, allow_unsafe_types=True)
    if state is not None:
        dataset.load_state_dict(state)
    rows, num_read = _again_and_again(dataset), 0

    def read(num_rows: int) -> int:
        nonlocal num_read
        num_read += sum(1 for _ in islice(rows, num_rows))
        return num_rows

    return Opened(read, lambda: dataset.state_dict(num_read % len(dataset), True))


def _streaming_index(num_samples: int, length: int) -> object:
    _import_streaming()
    from streaming.base.shuffle import get_shuffle

    return get_shuffle("py1e", np.full(num_samples // 1000, 1000), 1, 0, 0)


# --- litdata ---------------------------------------------------------------------------------------------


def _prepare_litdata(corpora: Corpora) -> None:
    import torch
    from litdata.streaming.item_loader import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    folder, is_new = corpora.own_folder("litdata")
    for name in SIZES if is_new else ():
        writer = BinaryWriter(
            str(folder / name), chunk_bytes="64MB", item_loader=TokensLoader(), follow_tensor_dimension=True
        )
        for number, row in enumerate(corpora.rows_of(name)):
            writer[number] = torch.from_numpy(row.copy())
        writer.done()
        writer.merge()


def _litdata(corpora: Corpora, state: Any) -> Opened:
    from litdata import CombinedStreamingDataset, StreamingDataLoader, StreamingDataset
    from litdata.streaming.item_loader import TokensLoader

    parts = [
        StreamingDataset(
            str(corpora.folder / "litdata" / name),
            item_loader=TokensLoader(block_size=corpora.length + 1),
            shuffle=True,
        )
        for name in WEIGHTS
    ]
    mixed = CombinedStreamingDataset(parts, seed=0, weights=list(WEIGHTS.values()), iterate_over_all=False)
    loader = StreamingDataLoader(mixed, batch_size=8, num_workers=0)
    if state is not None:
        loader.load_state_dict(state)
    batches = _again_and_again(loader)

    def read(num_rows: int) -> int:
        found = 0
        while found < num_rows:
            found += len(next(batches))
        return found

    return Opened(read, loader.state_dict)


# --- Hugging Face datasets -------------------------------------------------------------------------------


def _prepare_datasets(corpora: Corpora) -> None:
    import datasets

    datasets.disable_progress_bars()
    folder, is_new = corpora.own_folder("datasets")
    for name in SIZES if is_new else ():
        stored = np.stack(list(corpora.rows_of(name)))
        datasets.Dataset.from_dict({"tokens": stored}).save_to_disk(str(folder / name))


def _datasets(corpora: Corpora, state: Any) -> Opened:
    import datasets

    parts = [datasets.load_from_disk(str(corpora.folder / "datasets" / name)).shuffle(seed=0) for name in WEIGHTS]
    mixed = datasets.interleave_datasets(parts, probabilities=list(WEIGHTS.values()), seed=0)
    return _by_number(mixed.with_format("numpy"), state)


def _datasets_iterable(corpora: Corpora, state: Any) -> Opened:
    import datasets

    parts = [
        datasets.load_from_disk(str(corpora.folder / "datasets" / name))
        .to_iterable_dataset(num_shards=8)
        .shuffle(seed=0, buffer_size=64)
        for name in WEIGHTS
    ]
    mixed = datasets.interleave_datasets(
        parts, probabilities=list(WEIGHTS.values()), seed=0, stopping_strategy="all_exhausted"
    ).with_format("numpy")
    if state is not None:
        mixed.load_state_dict(state)
    rows = _again_and_again(mixed)
    return Opened(lambda num_rows: sum(1 for _ in islice(rows, num_rows)), mixed.state_dict)


def _datasets_index(num_samples: int, length: int) -> object:
    import datasets

    parts = [
        datasets.Dataset.from_dict({"row": np.zeros(int(num_samples * share), np.int8)}).shuffle(seed=0)
        for share in SIZES.values()
    ]
    return datasets.interleave_datasets(parts, probabilities=list(WEIGHTS.values()), seed=0)


CONTENDERS: Mapping[str, Contender] = {
    "megacpt rows": Contender("megacpt", "tokens and all document starts", _megacpt, build_index=_megacpt_index),
    "megacpt batches": Contender(
        "megacpt",
        "tensors: ids, positions, labels, weights, domains; the normaliser of the batch",
        _megacpt_batches,
        no_index="that of megacpt rows",
    ),
    "numpy": Contender(
        "numpy",
        "tokens of one domain, from a memory map by a stored permutation: the floor",
        _numpy,
        build_index=lambda num_samples, length: np.random.default_rng(0).permutation(num_samples),
    ),
    "megatron-core": Contender(
        "megatron-core",
        "tensors: ids, positions, labels, loss mask; documents not told apart",
        partial(_megatron, resets=False),
        build_index=_megatron_index,
    ),
    "megatron-core, document resets": Contender(
        "megatron-core",
        "the same, positions and loss mask by document",
        partial(_megatron, resets=True),
        no_index="that of megatron-core",
    ),
    "mosaicml-streaming": Contender(
        "mosaicml-streaming", "tokens", _streaming, _prepare_streaming, build_index=_streaming_index
    ),
    "litdata": Contender(
        "litdata",
        "tokens, in batches of 8",
        _litdata,
        _prepare_litdata,
        no_index="it keeps one per chunk file, and cannot be asked for one without the files",
    ),
    "datasets": Contender("datasets", "tokens, map-style", _datasets, _prepare_datasets, build_index=_datasets_index),
    "datasets, iterable": Contender(
        "datasets",
        "tokens, shuffled in a buffer of 64",
        _datasets_iterable,
        _prepare_datasets,
        no_index="a stream has none; its shuffle is that of the buffer and of files",
    ),
}
