"""The training command before torch: what it refuses, what it says, how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megacpt import __version__, cli
from megacpt.errors import USER_ERROR, DataError, LaunchError
from tests.assemble.recipes import TEXT

WITHOUT_TORCH = """\
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "deepspeed", "triton", "megacpt_kernels"):
            raise ImportError(f"{name} is not to be imported here")

sys.meta_path.insert(0, Refuse())
from megacpt.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(TEXT)
    return path


def without_torch(recipe: Path, *arguments: str, rank: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a Python that has no torch, in the recipe's folder."""
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    if rank is not None:
        environment["RANK"] = rank
    command = [sys.executable, "-c", WITHOUT_TORCH, "--recipe", recipe.name, *arguments]
    return subprocess.run(
        command, cwd=recipe.parent, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_dry_run_needs_no_torch(recipe: Path) -> None:
    done = without_torch(recipe, "--dry-run", "--set", "parallel.pipeline=3", "--local_rank", "0")
    assert (done.returncode, done.stderr) == (0, "")
    said = " ".join(done.stdout.split())
    assert "run 100 steps, 12,800 tokens" in said
    assert "stage 0 rank 0: embedding, 2 layers" in said and "stage 2 rank 2: 2 layers, norm, head and loss" in said
    assert list(recipe.parent.iterdir()) == [recipe]


def test_a_mistake_costs_no_torch_either(recipe: Path) -> None:
    done = without_torch(recipe, "--set", "lr.peek=1")
    assert done.returncode == USER_ERROR
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "lr.peek" in line and "peak" in line


def test_only_rank_0_speaks(recipe: Path) -> None:
    done = without_torch(recipe, "--set", "lr.peek=1", rank="3")
    assert (done.returncode, done.stdout, done.stderr) == (USER_ERROR, "", "")


def test_the_script_of_the_launchers(repository: Path) -> None:
    command = [sys.executable, str(repository / "megacpt" / "train.py"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == f"megacpt {__version__}\n"


@pytest.mark.parametrize(
    "world_size, said",
    [("4", "pipeline 2 x data 2 x tensor 1"), (None, "pipeline 2 x data 1 x tensor 1")],
)
def test_a_dry_run_on_any_world(
    world_size: str | None, said: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = [] if world_size is None else ["--world-size", world_size]
    arguments = ["--recipe", str(recipe), "--dry-run", "--set", "parallel.pipeline=2", *world]
    assert cli.main(arguments) == 0
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_world_that_does_not_fit(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--recipe", str(recipe), "--dry-run", "--set", "parallel.pipeline=2", "--world-size", "3"]
    assert cli.main(arguments) == USER_ERROR
    assert "3 processes" in capsys.readouterr().err


def test_an_unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--recipe", "no-such-recipe", "--dry-run"]) == USER_ERROR
    assert "no-such-recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--recipe"],
        ["--recipe", "x", "--rsume", "auto"],
        ["--recipe", "x", "--world-size", "2"],
        ["--recipe", "x", "--time-limit", "90"],
    ],
)
def test_a_command_line_that_is_not_understood(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train.py: ") and "--help" in line


def test_arguments_reach_the_run(recipe: Path) -> None:
    arguments = cli.parse(
        [
            "--recipe",
            str(recipe),
            "--set",
            "a=1",
            "--set",
            "b=2",
            "--resume",
            "auto",
            "--accept",
            "lr",
            "--local_rank=3",
        ]
    )
    assert (arguments.overrides, arguments.resume, arguments.accept) == (["a=1", "b=2"], "auto", ["lr"])
    assert arguments.local_rank == 3 and not arguments.dry_run


def test_a_time_limit_is_read_as_slurm_reads_it() -> None:
    assert cli.duration_seconds("1-02:03:04") == 93_784
    assert cli.duration_seconds("23:50:00") == 85_800


def test_our_bugs_are_not_hidden(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_train", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["--recipe", str(recipe)])


def test_an_interrupt_is_one_line(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_train", interrupt)
    monkeypatch.delenv("RANK", raising=False)
    assert cli.main(["--recipe", str(recipe)]) == 130
    assert capsys.readouterr().err.startswith("interrupted, without saving: --resume auto")


def test_a_launchers_mistake_is_a_user_error(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> int:
        raise LaunchError("nobody came")

    monkeypatch.setattr(cli, "_train", fail)
    monkeypatch.delenv("RANK", raising=False)
    assert cli.main(["--recipe", str(recipe)]) == USER_ERROR
    assert capsys.readouterr().err == "error: nobody came\n"


def test_what_a_run_writes_is_nobody_else_s_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    before = os.umask(0)
    try:
        assert cli.main(["--recipe", "absent"]) == USER_ERROR
    finally:
        left = os.umask(before)
    assert left == 0o002


def fail_as_rank(rank: int, error: Exception, is_signalled: bool, recipe: Path, patch: pytest.MonkeyPatch) -> object:
    """The exit code of one rank of four whose run fails."""
    import torch

    import megacpt.run
    from megacpt.engine import processes

    def fail(*_: object) -> bool:
        if is_signalled:
            os.kill(os.getpid(), signal.SIGTERM)
        raise error

    def end(code: int) -> None:
        raise SystemExit(code)

    patch.setenv("RANK", str(rank))
    patch.setenv("WORLD_SIZE", "4")
    patch.setattr(processes, "join_world", lambda: processes.World(rank, 4, torch.device("cpu")))
    patch.setattr(processes, "leave_world", lambda world: None)
    patch.setattr(megacpt.run, "run", fail)
    patch.setattr(os, "_exit", end)
    patch.setattr(cli, "_SILENT_SECONDS", 0.2)
    with pytest.raises(SystemExit) as ended:
        cli.main(["--recipe", str(recipe), "--set", "parallel.data=4"])
    return ended.value.code


@pytest.mark.parametrize(
    "rank, is_signalled, said",
    [(0, False, "error: torn\n"), (0, True, "error: torn\n"), (3, False, "[rank 3] error: torn\n"), (3, True, "")],
)
def test_a_rank_that_fails_alone_says_so(
    rank: int,
    is_signalled: bool,
    said: str,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A signal means that another rank has ended before it."""
    assert fail_as_rank(rank, DataError("torn"), is_signalled, recipe, monkeypatch) == USER_ERROR
    assert capsys.readouterr().err == said


def test_an_error_that_knows_its_key_alone_is_given_the_line(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = 1 + TEXT.splitlines().index(next(text for text in TEXT.splitlines() if text.startswith("lr:")))
    assert fail_as_rank(0, DataError("torn", where="lr.peak"), False, recipe, monkeypatch) == USER_ERROR
    assert capsys.readouterr().err == f"error: {recipe}:{line}: lr.peak: torn\n"


def test_a_bug_on_any_rank_is_told(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_as_rank(3, ZeroDivisionError(), True, recipe, monkeypatch) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
