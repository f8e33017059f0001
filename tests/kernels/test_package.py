"""The kernels are a package of their own: PyTorch, and Triton where there is one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import megacpt

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from megacpt_kernels import fused_linear_replay_cross_entropy
hidden, head = torch.randn(4, 8, requires_grad=True), torch.randn(16, 8, requires_grad=True)
fused_linear_replay_cross_entropy(hidden, head, torch.arange(4), None).loss.backward()
foreign = {name.partition(".")[0] for name in sys.modules} & {"megacpt", "deepspeed", "transformers"}
assert not foreign, foreign
"""


def test_works_without_triton_and_the_trainer() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TRITON], check=True)


def test_bears_the_version_of_the_project(repository: Path) -> None:
    text = (repository / "kernels" / "pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["project"]["version"] == megacpt.__version__


def test_example_of_the_readme(repository: Path) -> None:
    """The first block of Python in kernels/README.md runs as printed."""
    text = (repository / "kernels" / "README.md").read_text(encoding="utf-8")
    example = text.split("```python\n", 1)[1].split("```", 1)[0]
    subprocess.run([sys.executable, "-c", example], check=True)
