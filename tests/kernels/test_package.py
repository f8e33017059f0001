"""The kernels are a package of their own: PyTorch, and Triton where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import megacpt

BEFORE = """
import sys
sys.modules["triton"] = None
"""
AFTER = """
import megacpt_kernels
assert megacpt_kernels.__file__.startswith(sys.argv[1])
foreign = {name.partition(".")[0] for name in sys.modules} & {"megacpt", "deepspeed", "transformers"}
assert not foreign, foreign
"""


def test_bears_the_version_of_the_project(repository: Path) -> None:
    text = (repository / "kernels" / "pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["project"]["version"] == megacpt.__version__


def test_example_of_the_readme_needs_the_wheel_alone(repository: Path, tmp_path: Path) -> None:
    """The first block of Python in kernels/README.md runs as printed, without the trainer and without Triton."""
    source, target = tmp_path / "kernels", tmp_path / "target"
    shutil.copytree(repository / "kernels", source, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    text = (repository / "kernels" / "README.md").read_text(encoding="utf-8")
    example = text.split("```python\n", 1)[1].split("```", 1)[0]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", BEFORE + example + AFTER, str(target)]
    subprocess.run(command, check=True, cwd=target, env=environment)
