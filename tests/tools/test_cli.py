"""The door: what is imported when, and what a user sees of an error."""

from __future__ import annotations

import subprocess
import sys

import pytest

from megacpt.errors import DataError
from megacpt_tools import cli


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; from megacpt_tools.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print(sorted({'torch', 'numpy', 'transformers', 'tokenizers', 'rich'} & set(sys.modules)))"
    )
    for arguments in (["--help"], ["shards", "build", "--help"]):
        result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        assert result.stdout.splitlines()[-1] == "[]"
        if arguments == ["--help"]:
            assert all(name in result.stdout for name in cli.COMMANDS)


def test_shards_do_not_need_torch() -> None:
    script = "import sys, megacpt_tools.builder, megacpt_tools.progress; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            DataError("it is broken", where="a.bin", found=1, expected=2),
            2,
            "megacpt: a.bin: it is broken (found 1, expected 2)",
        ),
        (OSError(28, "No space left on device", "a.bin"), 2, "megacpt: a.bin: No space left on device"),
        (KeyboardInterrupt(), 130, "megacpt: interrupted"),
    ],
)
def test_errors_are_one_line(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from megacpt_tools import shards

    def run(arguments: object) -> int:
        raise error

    monkeypatch.setattr(shards, "run", run)
    assert cli.main(["shards", "verify", "x"]) == code
    assert capsys.readouterr().err == said + "\n"


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from megacpt_tools import shards

    def run(arguments: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(shards, "run", run)
    with pytest.raises(ZeroDivisionError):
        cli.main(["shards", "verify", "x"])
