"""The kernels are a package of their own: PyTorch, and Triton where there is one."""

from __future__ import annotations

import os
import shutil
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


def test_example_of_the_readme_with_nothing_but_the_wheel(repository: Path, tmp_path: Path) -> None:
    """The first block of Python in kernels/README.md runs as printed, in a folder that has the package alone."""
    source, target = tmp_path / "kernels", tmp_path / "target"
    shutil.copytree(repository / "kernels", source, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    text = (repository / "kernels" / "README.md").read_text(encoding="utf-8")
    example = text.split("```python\n", 1)[1].split("```", 1)[0]
    example += f"import megacpt_kernels\nassert megacpt_kernels.__file__.startswith({str(target)!r})\n"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", example], check=True, cwd=target, env=environment)
