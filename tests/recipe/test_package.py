"""The recipe package as a whole."""

from __future__ import annotations

import subprocess
import sys


def test_planning_needs_no_torch() -> None:
    """A login node plans a 16-GPU run with YAML and pydantic alone."""
    program = (
        "import sys; from megacpt.recipe import explain, load_recipe, resolve;"
        "explain(resolve(load_recipe('llama3-8b-medical'), 16));"
        "print(sorted({'torch', 'transformers', 'numpy', 'deepspeed', 'rich'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
