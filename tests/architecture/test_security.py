"""No file runs code that it reads: nothing that is shipped unpickles, evaluates, or loads YAML with objects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SHIPPED = ("megacpt", "tools/megacpt_tools", "kernels/megacpt_kernels")
EXECUTING_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
EXECUTING_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "yaml.load",
    "yaml.full_load",
    "yaml.unsafe_load",
    "pandas.read_pickle",
}
LOADS_THAT_MAY = {"np.load": "allow_pickle", "numpy.load": "allow_pickle"}
"""Calls that unpickle unless this argument is False."""


def dangers(source: str) -> Iterator[str]:
    """What in a module may run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported = {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        else:
            imported = set()
        yield from (name for name in imported if name.partition(".")[0] in EXECUTING_MODULES or name in EXECUTING_CALLS)
        if not isinstance(node, ast.Call):
            continue
        called, stated = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in EXECUTING_CALLS or (called in LOADS_THAT_MAY and stated.get(LOADS_THAT_MAY[called]) != "False"):
            yield called
        yield from (f"{word}=True" for word in ("shell", "trust_remote_code") if stated.get(word) == "True")


def test_nothing_shipped_runs_what_it_reads(repository: Path) -> None:
    files = [file for folder in SHIPPED for file in (repository / folder).rglob("*.py")]
    assert len(files) > 100
    found = {str(file.relative_to(repository)): list(dangers(file.read_text(encoding="utf-8"))) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "from torch import load",
        "import torch\ntorch.load(path, weights_only=True)",
        "np.load(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
    ],
)
def test_what_would_is_seen(source: str) -> None:
    assert list(dangers(source))
