"""What the benchmarks share: the weighted batch, a table, and the words about where its numbers come from."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[3]
PACKAGES = ("torch", "triton", "liger-kernel", "cut-cross-entropy", "quack-kernels", "flash-attn")


def provenance(hardware: str) -> str:
    """Date, hardware, versions and command of this run, as a sentence each."""
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    program = Path(sys.argv[0]).resolve()
    threads = [f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"] if "OMP_NUM_THREADS" in os.environ else []
    command = " ".join([*threads, "python", str(program.relative_to(ROOT)), *sys.argv[1:]])
    return (
        f"{date.today().isoformat()}, {hardware}. Python {platform.python_version()}, {', '.join(versions)}; "
        f"commit {commit or 'unknown'}. `{command}`"
    )


def cpu_description() -> str:
    """The processor, its vector instructions, and the threads PyTorch uses."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    name = model.group(1) if model else platform.processor() or platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({capability}), threads: {torch.get_num_threads()}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with numbers to three or four digits."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
        return str(value)

    lines = [header, ["---"] * len(header), *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def publish(text: str, output: Path | None) -> None:
    """Print, and save where asked."""
    print(text)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")
        print(f"saved to {output}", file=sys.stderr)
