"""The quickstart's own decisions: steps done once, the command for each kind of machine, agreement with its recipe."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from megacpt.errors import LaunchError
from megacpt.recipe import load_recipe, resolve
from megacpt_tools import quickstart


def test_the_recipe_looks_where_the_steps_write() -> None:
    recipe = load_recipe(quickstart.RECIPE)
    assert Path(recipe.model.path or "") == quickstart.MODEL
    assert recipe.data.domains.keys() == quickstart.HELD_OUT_FRACTION.keys()
    for name, domain in recipe.data.domains.items():
        assert domain.shards == (str(quickstart.SHARDS / name / "train"),)
        assert domain.held_out == (str(quickstart.SHARDS / name / "held_out"),)


def test_a_step_is_done_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail_halfway(target: Path) -> None:
        target.mkdir()
        (target / "half").touch()
        raise RuntimeError("interrupted")

    target = tmp_path / "folder" / "model"
    with pytest.raises(RuntimeError):
        quickstart._step("model", target, fail_halfway)
    assert not target.exists()
    quickstart._step("model", target, Path.mkdir)
    assert list(target.iterdir()) == []
    quickstart._step("model", target, fail_halfway)
    assert capsys.readouterr().out.splitlines()[-1].endswith("is there")


@pytest.mark.parametrize(("num_gpus", "num_processes"), [(0, 2), (1, 1), (2, 2), (8, 2)])
def test_the_recipe_fits_the_machine(num_gpus: int, num_processes: int) -> None:
    processes, overrides = quickstart.fit_machine(num_gpus)
    assert processes == num_processes
    assert resolve(load_recipe(quickstart.RECIPE, overrides), processes).num_steps == 8


def test_the_command_is_one_that_a_user_can_repeat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def launch(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", launch)
    monkeypatch.setattr(quickstart, "fit_machine", lambda num_gpus: (1, ["parallel.pipeline=1"]))
    run_folder = quickstart.train(1)
    ((deepspeed, quiet, flag, number, script, *rest),) = commands
    assert (deepspeed, quiet, flag, number) == ("deepspeed", "--quiet", "--num_gpus", "1")
    assert Path(script).name == "train.py"
    assert rest == ["--recipe", quickstart.RECIPE, "--resume", "auto", "--set", "parallel.pipeline=1"]
    assert f"$ {' '.join(commands[0])}" in capsys.readouterr().out
    assert run_folder == Path("runs/smollm2-135m-medical")


def test_a_failed_launch_ends_the_quickstart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 3))
    with pytest.raises(LaunchError, match="exit code 3"):
        quickstart.train(0)


def test_the_result_is_a_table_of_both_domains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluation(step: int, medical: float, general: float) -> str:
        losses = {"medical": medical, "general": general}
        domains = {name: {"loss": loss, "bits_per_byte": loss / 3, "tokens": 10} for name, loss in losses.items()}
        return json.dumps({"step": step, "tokens": 2048 * step, "domains": domains})

    lines = [evaluation(0, 3.375, 3.125), evaluation(30, 9.0, 9.0), evaluation(60, 2.75, 3.25)]
    (tmp_path / "evaluations.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(quickstart, "_continuation", lambda folder, prompt: f"a line by {folder.name}")
    quickstart.print_results(tmp_path)
    printed = capsys.readouterr().out
    assert "122,880 tokens" in printed
    for expected in (["medical", "3.375", "2.750", "-0.625"], ["general", "3.125", "3.250", "+0.125"]):
        assert any(all(word in line for word in expected) for line in printed.splitlines()), expected
    assert "before: a line by model" in printed
    assert "after: a line by export" in printed
