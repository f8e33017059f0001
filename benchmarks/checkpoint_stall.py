"""How long training stands still for a checkpoint, in the foreground and in the background, and how long a load takes.

    python benchmarks/checkpoint_stall.py [--parameters 135e6] [--folder .]

One rank holds fp32 master weights and two moments of so many parameters. Beside each other, in turns, since disks and
page caches drift: a save in the foreground; one in the background while a matrix product stands for training; the
verification of the files and the load, with digests. Reported: medians in seconds, and GB/s.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.folder import CheckpointFolder, Retention, damage
from megacpt.checkpoint.saving import Saver, SaveRecord
from megacpt.checkpoint.state import StoredState
from megacpt.parallel.fragments import Fragment, Held

RESULTS = Path(__file__).parent / "results"
WIDTH = 1024
KINDS = ("master", "exp_avg", "exp_avg_sq")


def held_of(num_parameters: int) -> list[Held]:
    """Matrices of 8M elements and their moments."""
    rows = 8192
    shapes = [(rows, WIDTH)] * max(1, num_parameters // (rows * WIDTH))
    return [
        Held(
            Fragment(f"layers.{index}.weight", shape, None, 0, shape[0] * shape[1]),
            {kind: torch.randn(shape[0] * shape[1]) for kind in KINDS},
        )
        for index, shape in enumerate(shapes)
    ]


def save(folder: Path, step: int, held: list[Held], asynchronous: bool) -> SaveRecord:
    """A save; in the background, training goes on until it is complete."""
    saver = Saver(CheckpointFolder(folder), Channel(), Retention(1), asynchronous=asynchronous)
    record = saver.save({"step": step, "tokens": step}, {"optimizer_updates": step}, held)
    matrix = torch.randn(WIDTH, WIDTH)
    while record is None:
        matrix = torch.nn.functional.normalize(matrix @ matrix)
        record = saver.poll()
    assert record.error is None, record.error
    return record


def measure(num_parameters: int, folder: Path, repetitions: int) -> dict[str, float]:
    """Medians, in seconds, of everything reported."""
    held = held_of(num_parameters)
    seconds: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        seconds.setdefault(name, []).append(value)

    for repetition in range(repetitions):
        for kind, asynchronous in (("foreground", False), ("background", True)):
            record = save(folder, 2 * repetition + asynchronous, held, asynchronous)
            note(f"{kind}_stall", record.stall_seconds)
            note(f"{kind}_complete", record.seconds)
        assert record.path is not None
        begun = time.monotonic()
        assert not damage(Path(record.path))
        note("verify_files", time.monotonic() - begun)
        begun = time.monotonic()
        stored = StoredState(Path(record.path))
        for part in held:
            for kind, values in part.values.items():
                stored.fill(part.fragment, kind, values)
        note("load", time.monotonic() - begun)
        begun = time.monotonic()
        stored.check(held, Channel())
        note("check_digests", time.monotonic() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()} | {"gigabytes": record.num_bytes / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=135e6)
    parser.add_argument("--folder", type=Path, default=Path(), help="a folder on the disk to measure")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="checkpoint-benchmark-") as folder:
        figures = measure(int(arguments.parameters), Path(folder), arguments.repetitions)
    result = {
        "date": date.today().isoformat(),
        "command": f"python benchmarks/checkpoint_stall.py --parameters {arguments.parameters:g}",
        "hardware": f"{torch.cpu.get_capabilities()['cpu_name']}, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("torch", "safetensors")} | {"python": platform.python_version()},
        **{name: round(value, 3) for name, value in figures.items()},
    }
    print(json.dumps(result, indent=2))
    for name in ("foreground_stall", "background_stall", "verify_files", "load", "check_digests"):
        print(f"{name:<18} {figures[name]:7.2f} s  {figures['gigabytes'] / figures[name]:6.2f} GB/s")
    print(
        f"the background stands still for {figures['background_stall'] / figures['foreground_stall']:.1%} of the time"
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "checkpoint_stall.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
