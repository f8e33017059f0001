"""The stream's speed, start-up, index and resume beside other libraries', in one run; and reads from a cold disk.

    python benchmarks/stream.py [--tokens 40000000] [--length 8192] [--rows 512] [--rounds 2]

Each contender (`peers/rows.py`) reads rows of the same four domains, in a process of its own, on one thread, out of the
page cache. Rates are rows per second of CPU time of the process with all its threads (what else the machine does counts
less than on the clock), the median of some reads; start and resume are CPU seconds from opening the files to the first
row, imports and a first opening not counted. Reported are medians over the rounds, and rates as ratios to megacpt's.

The index is made from nothing but a number of samples: seconds, and by how much memory grows. Tables grow in
proportion, so what a table of 10**9 samples takes is said from that of 10**7, and marked.

Cold reads: random rows of one file that was dropped from the page cache, on the clock, for the disk is what is waited
for. A virtual disk may have its own cache below.

A contender that is not installed is named and left out: `pip install megacpt[bench]`. mosaicml-streaming and litdata
pin versions of numpy, transformers or torch: `pip install --no-deps mosaicml-streaming litdata`, and what they miss.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from peers.rows import CONTENDERS, Corpora, write_corpora

RESULTS = Path(__file__).parent / "results"
READ_SECONDS, NUM_READS, NUM_OPENINGS = 2.0, 9, 3
"""A contender reads until so many CPU seconds or reads are over, and is opened so often."""
TABLE_SAMPLES, COMPUTED_SAMPLES = (10**6, 10**7), (10**6, 10**9, 10**12)
SAID_SAMPLES = 10**9
COLD_TOKENS, NUM_COLD_ROWS, ROWS_AHEAD = 1 << 27, 400, 8


def read_rows(name: str, corpora: Corpora) -> dict[str, float]:
    """One contender in this process: rows per second, seconds to start, seconds to resume."""
    contender = CONTENDERS[name]
    contender.prepare(corpora)
    run = contender.open(corpora, None)
    run.read(corpora.rows_per_read)  # imports, and the page cache
    start = _median(lambda: contender.open(corpora, None).read(1), NUM_OPENINGS)
    rates: list[float] = []
    begun = time.process_time()
    while len(rates) < NUM_READS and time.process_time() < begun + READ_SECONDS:
        before = time.process_time()
        num_rows = run.read(corpora.rows_per_read if rates else 64)
        rates.append(num_rows / (time.process_time() - before))
    state = run.state()
    resume = _median(lambda: contender.open(corpora, state).read(1), NUM_OPENINGS)
    return {"rows_per_second": statistics.median(rates), "start_seconds": start, "resume_seconds": resume}


def build_index(name: str, num_samples: int, length: int) -> dict[str, float]:
    """The index of so many samples in this process."""
    build = CONTENDERS[name].build_index
    assert build is not None
    build(1000, length)  # imports
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; getrusage's would be the parent's, too
    before_kib = _peak_kib()
    begun = time.process_time()
    build(num_samples, length)
    seconds = time.process_time() - begun
    return {"seconds": round(seconds, 4), "mib": round((_peak_kib() - before_kib) / 1024, 1)}


def _peak_kib() -> int:
    """The highest resident size of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def cold_reads(folder: Path, length: int) -> dict[str, dict[str, float]]:
    """Ways to read rows in random order from a file that is not in memory: rows per second, milliseconds of a row."""
    from megacpt.data.shard import Shard, ShardWriter

    with ShardWriter(folder / "cold", np.int32) as writer:  # so large that what is read is a small part of it
        tile = np.random.default_rng(0).integers(0, 128_000, COLD_TOKENS // 8, dtype=np.int32)
        for _ in range(8):
            writer.add_document(tile)
    shard = Shard(folder / "cold")
    num_bytes = (length + 1) * 4
    out = np.empty((1, length + 1), np.int32)
    first = [0]
    starts = (np.random.default_rng(1).permutation((shard.num_tokens - 1) // length)[:NUM_COLD_ROWS] * length).tolist()

    def faults(at: int, mapped: np.ndarray) -> None:
        out[0] = mapped[starts[at] : starts[at] + length + 1]

    def pread(at: int, mapped: np.ndarray) -> None:
        shard.read_into(out, first, starts[at : at + 1])

    def asked_ahead(at: int, mapped: np.ndarray) -> None:
        shard.will_need(starts[at + ROWS_AHEAD : at + ROWS_AHEAD + 1], length + 1)
        pread(at, mapped)

    found: dict[str, dict[str, float]] = {}
    ways = {"page faults": faults, "pread": pread, f"pread, {ROWS_AHEAD} rows asked for ahead (megacpt)": asked_ahead}
    for name, read in ways.items():
        with shard.bin_path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as bytes_of_file:
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            mapped = np.frombuffer(bytes_of_file, np.int32)
            taken = []
            for at in range(len(starts)):
                begun = time.perf_counter()
                read(at, mapped)
                taken.append(time.perf_counter() - begun)
            del mapped
        found[name] = {
            "rows_per_second": round(len(taken) / sum(taken)),
            "median_ms": round(statistics.median(taken) * 1e3, 3),
            "p99_ms": round(float(np.quantile(taken, 0.99)) * 1e3, 3),
            "mb_per_second": round(len(taken) * num_bytes / sum(taken) / 1e6),
        }
    return found


def _median(do: Callable[[], object], repeats: int) -> float:
    """The median of CPU seconds of some runs."""
    taken = []
    for _ in range(repeats):
        begun = time.process_time()
        do()
        taken.append(time.process_time() - begun)
    return statistics.median(taken)


def in_a_process(*arguments: object) -> dict[str, float] | None:
    """What this script answers in a process of its own; None, said, where it fails."""
    command = [sys.executable, "-W", "ignore", __file__, *map(str, arguments)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        print(f"{arguments[1]} failed:\n{answer.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(answer.stdout.splitlines()[-1])


def index_costs(names: list[str], length: int) -> dict[str, dict[str, Any]]:
    """Contender -> samples -> what its index takes, or why it has none."""
    costs: dict[str, dict[str, Any]] = {}
    for name in names:
        contender = CONTENDERS[name]
        if contender.build_index is None:
            costs[name] = {"none": contender.no_index}
            continue
        is_computed = name.startswith("megacpt")
        sizes = COMPUTED_SAMPLES if is_computed else TABLE_SAMPLES
        made = {size: in_a_process("--index", name, size, "--length", length) for size in sizes}
        costs[name] = {f"{size:.0e}": cost for size, cost in made.items()}
        last = made[sizes[-1]]
        if not is_computed and last is not None:
            times = SAID_SAMPLES // sizes[-1]
            costs[name][f"{SAID_SAMPLES:.0e}, from 1e+07"] = {what: round(last[what] * times, 1) for what in last}
    return costs


def write_result(arguments: argparse.Namespace, measured: dict[str, list[dict[str, float]]], **found: Any) -> None:
    """Write what was measured, and print it."""
    median = {
        name: {what: statistics.median(run[what] for run in runs) for what in runs[0]}
        for name, runs in measured.items()
        if runs
    }
    ours = median["megacpt rows"]["rows_per_second"]
    packages = ["megacpt", "numpy", "torch", *dict.fromkeys(CONTENDERS[name].package for name in median)]
    result = {
        "date": date.today().isoformat(),
        "command": f"python benchmarks/stream.py --tokens {arguments.tokens} --length {arguments.length}"
        f" --rows {arguments.rows} --rounds {arguments.rounds}",
        "hardware": f"{processor()}, 1 thread; load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores",
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "rows": {
            name: {
                "rows_per_second": round(values["rows_per_second"]),
                "ratio_to_megacpt": round(values["rows_per_second"] / ours, 4),
                "start_seconds": round(values["start_seconds"], 4),
                "resume_seconds": round(values["resume_seconds"], 4),
                "gives": CONTENDERS[name].gives,
            }
            for name, values in median.items()
        },
        **found,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "stream.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def processor() -> str:
    """The processor's name, where the system says it."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=40_000_000)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=512, help="rows asked for at a time: a global batch")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--index", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    length = arguments.length
    if arguments.only:
        name, folder = arguments.only
        print(json.dumps(read_rows(name, Corpora(Path(folder), length, arguments.rows))))
        return
    if arguments.index:
        name, num_samples = arguments.index
        print(json.dumps(build_index(name, int(num_samples), length)))
        return
    missing = {name for name, contender in CONTENDERS.items() if not _is_installed(contender.package)}
    names = [name for name in CONTENDERS if name not in missing]
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_corpora(folder, arguments.tokens)
        cold = cold_reads(folder, length)
        for _ in range(arguments.rounds):
            for name in names:
                answer = in_a_process("--only", name, folder, "--length", length, "--rows", arguments.rows)
                if answer is not None:
                    measured[name].append(answer)
    write_result(
        arguments,
        measured,
        index=index_costs(names, length),
        cold_reads=cold,
        not_installed=sorted(missing),
    )


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
