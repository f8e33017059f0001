"""The stream's speed, start-up, memory and resume, beside plainer ways to read the same tokens, in turns in one run.

    python benchmarks/stream.py [--tokens 40000000] [--length 8192] [--rows 64] [--rounds 5]

Read are rows of tokens in random order from four domains, out of the page cache, by one process:

    megacpt rows       Stream: tokens and all document boundaries
    megacpt batches    Loader without a thread: tensors, positions, labels, weights, global normaliser
    numpy              a memory map and a stored permutation: tokens alone, one domain; the floor
    datasets           Hugging Face datasets, map-style, shuffled and interleaved; rows stored beforehand, no boundaries

A round reads `--rows` rows by each. Reported are medians of CPU seconds (one thread; what else the machine does counts
less than on the clock), and each as a ratio to numpy's. A peer that is not installed is left out and named. The index
is measured apart: time from a history to the first sample's place, the same far into the run from its JSON (a resume),
and the memory that it takes, at growing numbers of samples; beside it a stored permutation.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megacpt.data.corpus import Corpus, open_corpus
from megacpt.data.history import CorpusRecord, History, Settings, Stage
from megacpt.data.loader import Loader
from megacpt.data.shard import ShardWriter
from megacpt.data.stream import Stream, record_of

RESULTS = Path(__file__).parent / "results"
WEIGHTS = {"a": 0.45, "b": 0.25, "c": 0.2, "d": 0.1}
SIZES = {"a": 0.5, "b": 0.25, "c": 0.15, "d": 0.1}
MEAN_DOCUMENT_TOKENS = 741

Reader = Callable[[int], object]
"""Reads the rows of a round."""


def write_corpora(folder: Path, num_tokens: int) -> dict[str, Corpus]:
    """Four domains of documents of lognormal lengths, ids in int32."""
    random = np.random.default_rng(0)
    corpora = {}
    for name, share in SIZES.items():
        lengths = random.lognormal(
            np.log(MEAN_DOCUMENT_TOKENS) - 0.72, 1.2, int(num_tokens * share / MEAN_DOCUMENT_TOKENS)
        )
        lengths = np.maximum(lengths.astype(np.int64), 1)
        with ShardWriter(folder / name, np.dtype("<i4")) as writer:
            writer.add_documents(random.integers(0, 128_000, lengths.sum(), dtype=np.int32), lengths)
        corpora[name] = open_corpus(folder / name)
    return corpora


def history_of(corpora: dict[str, CorpusRecord], length: int, rows: int) -> History:
    return History.begin(0, [Stage(0, Settings(WEIGHTS, length, rows))], corpora)


def readers(folder: Path, corpora: dict[str, Corpus], length: int, rows: int) -> tuple[dict[str, Reader], list[str]]:
    """Name -> what reads the rows of a round; and the peers that are not installed."""
    records = {name: record_of(corpus) for name, corpus in corpora.items()}
    stream = Stream(corpora, history_of(records, length, rows))
    loader = Loader(stream, prefetch_steps=0)

    tokens = np.memmap(folder / "a.bin", np.int32, "r")
    permutation = np.random.default_rng(0).permutation((tokens.size - 1) // length)

    def numpy_rows(number: int) -> object:
        out = np.empty((rows, length + 1), dtype=np.int64)
        for place, k in enumerate(
            np.take(permutation, range(number * rows, (number + 1) * rows), mode="wrap").tolist()
        ):
            out[place] = tokens[k * length : k * length + length + 1]
        return out

    found: dict[str, Reader] = {
        "megacpt rows": lambda number: stream.rows(stream.locate(stream.samples(number))),
        "megacpt batches": loader.step,
        "numpy": numpy_rows,
    }
    missing = []
    try:
        found["datasets"] = datasets_reader(corpora, length, rows)
    except ImportError:
        missing.append("datasets")
    return found, missing


def datasets_reader(corpora: dict[str, Corpus], length: int, rows: int) -> Reader:
    """Rows stored in Arrow, shuffled and interleaved by probabilities."""
    import datasets

    datasets.disable_progress_bars()
    parts = []
    for corpus in corpora.values():
        starts = range(0, corpus.num_tokens - length, length)
        stored = np.stack([corpus.read(start, length + 1) for start in starts]).astype(np.int32)
        parts.append(datasets.Dataset.from_dict({"tokens": stored}).shuffle(seed=0))
    mixed = datasets.interleave_datasets(parts, probabilities=list(WEIGHTS.values()), seed=0).with_format("numpy")
    return lambda number: [mixed[(number * rows + k) % len(mixed)]["tokens"] for k in range(rows)]


def index_costs(length: int) -> dict[str, dict[str, float]]:
    """Samples -> seconds to the first place, seconds to a place in the middle, peak MiB that both take."""
    costs = {}
    for num_samples in (10**6, 10**9, 10**12):
        records = {name: CorpusRecord(int(num_samples * share) * length, num_samples) for name, share in SIZES.items()}

        def start(records: dict[str, CorpusRecord] = records) -> Stream:
            stream = Stream({}, history_of(records, length, 512))
            stream.locate(stream.samples(0))
            return stream

        stored = json.dumps(start().history.to_json())

        def resume(stored: str = stored, step: int = num_samples // 1024) -> Stream:
            stream = Stream({}, History.from_json(json.loads(stored)))
            stream.locate(stream.samples(step))
            return stream

        tracemalloc.start()
        start(), resume()
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        costs[f"{num_samples:.0e}"] = {
            "start_seconds": _seconds(start),
            "resume_seconds": _seconds(resume),
            "peak_mib": round(peak_bytes / 2**20, 2),
        }
    for num_samples in (10**6, 10**7):
        begun = time.process_time()
        order = np.random.default_rng(0).permutation(num_samples)
        costs[f"numpy permutation {num_samples:.0e}"] = {
            "start_seconds": round(time.process_time() - begun, 4),
            "peak_mib": round(order.nbytes / 2**20, 2),
        }
    return costs


def _seconds(do: Callable[[], object], repeats: int = 5) -> float:
    """The median of some runs."""
    taken = []
    for _ in range(repeats):
        begun = time.process_time()
        do()
        taken.append(time.process_time() - begun)
    return round(statistics.median(taken), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=40_000_000)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    length, rows = arguments.length, arguments.rows
    with tempfile.TemporaryDirectory() as folder:
        corpora = write_corpora(Path(folder), arguments.tokens)
        ways, missing = readers(Path(folder), corpora, length, rows)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(arguments.rounds + 2):  # the first two warm up the page cache and are not counted
            for name, read in ways.items():
                begun = time.process_time()
                read(number)
                if number >= 2:
                    seconds[name].append(time.process_time() - begun)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "command": f"python benchmarks/stream.py --tokens {arguments.tokens} --length {length} --rows {rows}"
        f" --rounds {arguments.rounds}",
        "hardware": f"{torch.cpu.get_capabilities()['cpu_name']}, {torch.get_num_threads()} thread",
        "versions": {name: _version(name) for name in ("numpy", "torch", "datasets")}
        | {"python": platform.python_version()},
        "rows_per_second": {name: round(rows / value) for name, value in median.items()},
        "ratio_to_numpy": {name: round(median["numpy"] / value, 3) for name, value in median.items()},
        "index": index_costs(length),
        "not_installed": missing,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "stream.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
