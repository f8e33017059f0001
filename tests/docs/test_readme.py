"""What README.md tells a reader to type: options exist, its recipe is sound, its plans come out."""

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

README = Path(__file__).parents[2] / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
SCRIPTS = ("megacpt/train.py", "slurm/train.sbatch")
TRAINING = [line for line in LINES if any(script in line for script in SCRIPTS)]
TOOLS = [line for line in LINES if line.startswith("megacpt ")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recipe that the page writes out."""
    recipe = re.search(r"^```yaml\n# (my-\S+\.yaml)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert recipe is not None
    (tmp_path / recipe[1]).write_text(recipe[2])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def training_arguments(line: str) -> list[str]:
    """What a launcher hands to the training command."""
    words = shlex.split(line)
    return words[1 + next(i for i, word in enumerate(words) if word in SCRIPTS) :]


def test_the_page_has_commands() -> None:
    assert len(TRAINING) >= 6
    assert len(TOOLS) >= 3


@pytest.mark.parametrize("line", TRAINING)
def test_training_commands_are_understood_and_their_recipes_sound(line: str, folder: Path) -> None:
    arguments = cli.parse(training_arguments(line))
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    assert set(recipe.data.domains) == {"medical", "general"}


@pytest.mark.parametrize("line", [line for line in TRAINING if "--dry-run" in line])
def test_plans_come_out(line: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(training_arguments(line)) == 0
    assert "my-run, on 8 processes" in capsys.readouterr().out


@pytest.mark.parametrize("line", TOOLS)
def test_tools_are_understood(line: str) -> None:
    _, command, *arguments = shlex.split(line)
    parser = argparse.ArgumentParser(exit_on_error=False)
    import_module(COMMANDS[command][0]).configure(parser)
    parser.parse_args(arguments)


def test_shards_are_built_where_the_recipe_looks(folder: Path) -> None:
    outputs = [re.search(r"--output (\S+)", line) for line in TOOLS if "shards build" in line]
    built = {f"{output[1]}/{part}" for output in outputs if output for part in ("train", "held_out")}
    domains = load_recipe("my-run.yaml").data.domains.values()
    assert built == {path for domain in domains for path in (*domain.shards, *domain.held_out)}
