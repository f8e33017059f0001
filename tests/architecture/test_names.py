"""`deepspeed megacpt/train.py` puts megacpt/ itself first on sys.path: a name there hides every other of its kind."""

from __future__ import annotations

import sys
from importlib.metadata import packages_distributions
from pathlib import Path


def test_nothing_beside_train_hides_another_module(repository: Path) -> None:
    found = [path for path in (repository / "megacpt").iterdir() if path.is_dir() or path.suffix == ".py"]
    ours = {path.stem for path in found if not path.name.startswith("_")}
    others = set(sys.stdlib_module_names) | set(packages_distributions())
    assert not ours & others
