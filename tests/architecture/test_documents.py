"""What the documents tell a reader to type exists: targets, commands, scripts, recipes; so do the files they link."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megacpt_tools.cli import COMMANDS

ROOT = Path(__file__).parents[2]
TRACKED = ("README.md", "CONTRIBUTING.md", "docs", "experiments", "kernels", "recipes", "slurm", "tools")
DOCUMENTS = sorted(
    file for name in TRACKED for file in ([ROOT / name] if name.endswith(".md") else (ROOT / name).rglob("*.md"))
)


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def commands_in(text: str) -> str:
    """The fenced blocks of commands, as one text with continued lines joined."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return "\n".join(block for language, block in fences if language in ("", "sh", "bash", "console")).replace(
        "\\\n", " "
    )


def test_commands_exist(document: Path) -> None:
    commands = commands_in(document.read_text(encoding="utf-8"))
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for target in re.findall(r"^\W*make ([a-z]+)", commands, re.MULTILINE):
        assert target in targets, f"make {target}"
    for command in re.findall(r"^\W*megacpt ([a-z-]+)", commands, re.MULTILINE):
        assert command in COMMANDS, f"megacpt {command}"
    for script in re.findall(r"\b((?:megacpt|slurm|tools|kernels)/\S+\.(?:py|sh|sbatch))\b", commands):
        assert (ROOT / script).is_file(), script
    for recipe in re.findall(r"--recipe[ =](\S+)", commands):
        name = recipe if recipe.endswith(".yaml") else f"{recipe}.yaml"
        if not recipe.startswith("my-") and recipe != "NAME":
            assert (ROOT / "recipes" / name).is_file() or (ROOT / name).is_file(), f"--recipe {recipe}"


def test_links_lead_to_files(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", link):
            assert (document.parent / link).exists(), link
