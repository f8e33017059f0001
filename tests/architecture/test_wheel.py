"""A wheel built from the tree carries the three packages, the recipes and the command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import megacpt

PACKAGES = {"megacpt": "megacpt", "kernels/megacpt_kernels": "megacpt_kernels", "tools/megacpt_tools": "megacpt_tools"}


def test_wheel_holds_packages_recipes_and_command(repository: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("megacpt", "kernels", "tools", "recipes"):
        shutil.copytree(repository / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(source)], check=True)

    with ZipFile(tmp_path / f"megacpt-{megacpt.__version__}-py3-none-any.whl") as wheel:
        packed = set(wheel.namelist())
        entry_points = wheel.read(f"megacpt-{megacpt.__version__}.dist-info/entry_points.txt").decode()
    files = {
        f"{package}/{path.relative_to(source / folder).as_posix()}"
        for folder, package in PACKAGES.items()
        for path in (source / folder).rglob("*.py*")
    }
    recipes = {
        f"megacpt-{megacpt.__version__}.data/data/share/megacpt/{path.relative_to(source).as_posix()}"
        for path in (source / "recipes").rglob("*.yaml")
    }
    assert files - packed == set()
    assert recipes - packed == set()
    assert not any(name.startswith(("tests/", "kernels/", "tools/")) for name in packed)
    assert "megacpt = megacpt_tools.cli:main" in entry_points
