"""What docs/guide.md tells a reader to write and type: its pieces make one sound recipe, its commands exist."""

from __future__ import annotations

import argparse
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from megacpt import cli
from megacpt.recipe import load_recipe
from megacpt_tools.cli import COMMANDS

TEXT = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
PIECES = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
COMMAND_LINES = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


def test_every_piece_of_a_recipe_extends_the_one_before(tmp_path: Path) -> None:
    assert len(PIECES) >= 3
    previous = tmp_path / "my-run.yaml"
    previous.write_text(PIECES[0])
    for number, piece in enumerate(PIECES[1:]):
        path = tmp_path / f"piece-{number}.yaml"
        path.write_text(f"extends: {previous.name}\n{piece}")
        previous = path
    recipe = load_recipe(str(previous))
    assert recipe.forgetting["code"] > 0
    assert recipe.data.domains["medical"].top_tokens == 5_000_000_000


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_are_understood(line: str) -> None:
    words = shlex.split(line)
    if "megacpt/train.py" in words:
        cli.parse(words[words.index("megacpt/train.py") + 1 :])
    else:
        parser = argparse.ArgumentParser(exit_on_error=False)
        import_module(COMMANDS[words[1]][0]).configure(parser)
        parser.parse_args(words[2:])
