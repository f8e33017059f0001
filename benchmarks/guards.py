"""What the guards cost: training of the quickstart's model with all of them against training with none.

    python benchmarks/guards.py [--quickstart runs/quickstart] [--pairs 24] [--rows 2] [--length 64]

Two processes, one pipeline stage each, as in the quickstart. Steps alternate within one run, so that a machine whose
speed drifts slows both. With guards: the agreement on stopping, finite checks and the spike rule with `on_spike: skip`,
a watchdog started and ended with each step, which costs more than its look every 30 seconds, metrics.jsonl and the
console. Without: the loader and the engine alone. Steps are far smaller than the quickstart's, so the guards' share is
larger.

Then the same with an engine that computes nothing: a share of steps as short as these says little beside the noise of a
busy machine, and the guards' own milliseconds say what they are a share of anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import torch.distributed as dist

import megacpt.run
from megacpt.cli import main as train
from megacpt.data.batch import MicroBatch
from megacpt.engine.engine import Acceptable, DomainSums, StepResult
from megacpt.trainer.loop import Trainer
from megacpt.trainer.watchdog import Watchdog

RESULTS = Path(__file__).parent / "results"
RECIPE = "smollm2-135m-medical"
WORLD_SIZE = 2
WATCHDOG_TIMEOUT_SECONDS = 120.0
NUM_STILL_PAIRS = 300
MEASURED = "GUARDS_MEASURED"
"""The environment variable with the file that rank 0 leaves its seconds in."""


@dataclass(frozen=True)
class Still:
    """An engine whose steps are done at once."""

    num_domains: int

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, acceptable: Acceptable
    ) -> StepResult:
        return StepResult(3.0, 1.0, not acceptable(3.0, 1.0), [DomainSums(1.0, 3.0, 1)] * self.num_domains)


class Alternating(Trainer):
    """Does neighbouring steps with and without guards."""

    def fit(self, first_step: int, last_step: int) -> tuple[int, bool]:
        """The steps of a run; those of its last `NUM_STILL_PAIRS` pairs compute nothing."""
        still = replace(self, engine=Still(len(self.loader.stream.counted)))
        num_real_steps = last_step - 2 * NUM_STILL_PAIRS
        for step in range(2):
            self.bare(step)  # allocates and compiles
        seconds = {
            "real": [self.pair(step) for step in range(2, num_real_steps, 2)],
            "still": [still.pair(step) for step in range(num_real_steps, last_step, 2)],
        }
        if dist.get_rank() == 0:
            Path(os.environ[MEASURED]).write_text(json.dumps(seconds))
        return last_step, True

    def pair(self, step: int) -> list[float]:
        """The seconds of a step without guards and of one with them; which comes first alternates too."""
        kinds = [self.bare, self.guarded]
        order = [0, 1] if step // 2 % 2 else [1, 0]
        seconds = [0.0, 0.0]
        for offset, kind in enumerate(order):
            seconds[kind] = timed(kinds[kind], step + offset)
        return seconds

    def bare(self, step: int) -> None:
        rate = self.learning_rate(self.loader.tokens(step + 1))
        self.engine.train_step(self.loader.step(step), rate, lambda loss, grad_norm: True)

    def guarded(self, step: int) -> None:
        folder = Path(os.environ[MEASURED]).parent / "ranks"
        with closing(Watchdog(folder, dist.get_rank(), WORLD_SIZE, WATCHDOG_TIMEOUT_SECONDS)) as watchdog:
            watchdog.start()
            Trainer.fit(replace(self, note=watchdog.note), step, step + 1)


def timed(function: Callable[[int], None], step: int) -> float:
    """The seconds of a step, from all ranks' beginning to all ranks' end."""
    dist.barrier()
    begun = time.perf_counter()
    function(step)
    dist.barrier()
    return time.perf_counter() - begun


def train_on_this_rank(quickstart: Path, folder: Path, num_pairs: int, rows: int, length: int) -> int:
    """Train; the exit code."""
    keys = {
        "name": "guards",
        "logging.folder": folder,
        "logging.tensorboard": "false",
        "model.path": quickstart / "model",
        "data.sequence_length": length,
        "batch.global_rows": rows,
        "training.tokens": 2 * (1 + num_pairs + NUM_STILL_PAIRS) * rows * length,
        "evaluation": "{every: null, dense_start: false, at_start: false, at_end: false}",
        "checkpoint.at_end": "false",
        "guard": "{on_spike: skip, hang_timeout_seconds: null}",
    }
    for domain in ("medical", "general"):
        shards = quickstart / "shards" / domain
        keys |= {f"data.domains.{domain}.{part}": shards / built for part, built in PARTS.items()}
    megacpt.run.Trainer = Alternating
    return train(["--recipe", RECIPE, *(text for key, value in keys.items() for text in ("--set", f"{key}={value}"))])


PARTS = {"shards": "train", "held_out": "held_out"}


def measure(arguments: Sequence[str]) -> dict[str, list[list[float]]]:
    """Start the ranks; what rank 0 measured."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="guards-benchmark-") as folder:
        shared = {"WORLD_SIZE": str(WORLD_SIZE), "LOCAL_WORLD_SIZE": str(WORLD_SIZE), "MASTER_ADDR": "127.0.0.1"}
        shared |= {"MASTER_PORT": str(port), MEASURED: f"{folder}/measured.json"}
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, *arguments],
                env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL,
            )
            for rank in range(WORLD_SIZE)
        ]
        codes = [rank.wait() for rank in ranks]
        if any(codes):
            raise SystemExit(f"the ranks ended with {codes}")
        return json.loads(Path(shared[MEASURED]).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=64)
    arguments = parser.parse_args()
    sizes = (arguments.pairs, arguments.rows, arguments.length)
    if MEASURED in os.environ:
        sys.exit(train_on_this_rank(arguments.quickstart, Path(os.environ[MEASURED]).parent, *sizes))
    seconds = measure(sys.argv[1:])
    bare, guarded = (statistics.median(kind) for kind in zip(*seconds["real"], strict=True))
    quartiles = statistics.quantiles(with_them / without - 1 for without, with_them in seconds["real"])
    own_seconds = statistics.median(with_them - without for without, with_them in seconds["still"])
    result = {
        "date": date.today().isoformat(),
        "command": f"python benchmarks/guards.py --pairs {sizes[0]} --rows {sizes[1]} --length {sizes[2]}",
        "hardware": f"{torch.cpu.get_capabilities()['cpu_name']}, {WORLD_SIZE} processes",
        "versions": {name: version(name) for name in ("torch", "deepspeed")} | {"python": platform.python_version()},
        "model": "SmolLM2-135M",
        "tokens_per_step": sizes[1] * sizes[2],
        "seconds_per_step": {"without": round(bare, 4), "with": round(guarded, 4)},
        "overhead": round(quartiles[1], 4),
        "overhead_quartiles": [round(quartile, 4) for quartile in quartiles],
        "own_milliseconds_per_step": round(1000 * own_seconds, 3),
        "own_share": round(own_seconds / bare, 5),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "guards.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
