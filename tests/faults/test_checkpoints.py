"""Kills, full disks and damaged files around checkpoints: nothing is lost but the steps since the last one.

The short form kills twice; the long form, marked slow, at every operation of a save in turn.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megacpt.assemble.resume import choose_checkpoint
from megacpt.checkpoint import folder, state
from megacpt.checkpoint.channel import Channel
from megacpt.checkpoint.folder import CheckpointFolder, Retention, damage
from megacpt.checkpoint.saving import Saver
from megacpt.errors import CheckpointError
from tests.checkpoint.states import held_of, random_tensors, save_checkpoint
from tests.distributed import RankFailure, run_ranks
from tests.long_form import cases
from tests.parity.runs import evaluations_of, metrics_of, run_command, train, write_recipe


def train_until_killed(rank: int, arguments: list[str], victim: int, num_operations: int) -> int:
    """The body of a rank: the training command; the victim dies by SIGKILL in a save, before so many-th flush."""
    left = [num_operations]

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    if rank == victim:
        for module in (state, folder):
            module.file_record = deadly(module.file_record)  # type: ignore[attr-defined]
    return train(rank, arguments)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A recipe on two ranks with four saves, and the records of its run."""
    recipe = write_recipe(tmp_path_factory.mktemp("run"), parallel={"zero_stage": 1})
    assert run_command(2, recipe) == [0, 0]
    return recipe, (metrics_of(recipe), evaluations_of(recipe))


FLUSHES = {0: 10, 1: 6}
"""Rank -> how often it flushes a file in the first two saves."""


@pytest.mark.parametrize(
    "victim, num_operations, asynchronous",
    cases(
        (
            (rank, n, is_async)
            for rank, flushes in FLUSHES.items()
            for n in range(flushes)
            for is_async in (False, True)
        ),
        always=[(0, 9, False), (1, 4, True)],
    ),
)
def test_a_kill_in_a_save_loses_only_that_save(
    victim: int, num_operations: int, asynchronous: bool, undisturbed: tuple[Path, Any]
) -> None:
    recipe, expected = undisturbed
    name = f"killed-{victim}-{num_operations}-{asynchronous}"
    changes = ["--set", f"name={name}", "--set", f"checkpoint.asynchronous={str(asynchronous).lower()}"]
    arguments = ["--recipe", str(recipe), *changes]
    with pytest.raises(RankFailure):
        run_ranks(2, train_until_killed, arguments, victim, num_operations)
    run = recipe.parent / "runs" / name
    assert list((run / "checkpoints").glob("*.partial")), "it died in a save"
    assert all(damage(path) == [] for path in CheckpointFolder(run / "checkpoints").complete())
    assert run_command(2, recipe, *changes, "--resume", "auto") == [0, 0]
    assert (metrics_of(recipe, name), evaluations_of(recipe, name)) == expected
    assert not list((run / "checkpoints").glob("*.partial"))


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(undisturbed: tuple[Path, Any]) -> None:
    recipe, expected = undisturbed
    copy = recipe.parent / "runs" / "damaged"
    shutil.copytree(recipe.parent / "runs" / "small", copy)
    flip(copy / "checkpoints" / "step_000008" / "tensors" / "exp_avg_sq-00001.safetensors")
    assert run_command(2, recipe, "--set", "name=damaged", "--resume", "auto") == [0, 0]
    assert (metrics_of(recipe, "damaged"), evaluations_of(recipe, "damaged")) == expected
    assert damage(copy / "checkpoints" / "step_000008") == []
    assert (copy / "checkpoints" / "step_000008.set_aside").is_dir()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


KINDS = [
    "manifest.json",
    "state.json",
    "engine.json",
    *(f"tensors/{kind}-00000.safetensors" for kind in ("master", "exp_avg", "exp_avg_sq")),
]


@pytest.mark.parametrize("file", KINDS)
@pytest.mark.parametrize("spoil", [flip, truncate, Path.unlink], ids=["a bit flipped", "truncated", "gone"])
def test_every_kind_of_damage_is_passed_over(
    spoil: Callable[[Path], None], file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newer = (save_checkpoint(tmp_path, step) for step in (3, 6))
    spoil(newer / file)
    assert choose_checkpoint("auto", tmp_path, Channel()) == older
    assert "warning: a damaged checkpoint is passed over for step_000003" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"this checkpoint is damaged|no complete checkpoint here"):
        choose_checkpoint(str(newer), tmp_path / "other", Channel())
    spoil(older / "engine.json")
    with pytest.raises(CheckpointError, match="no checkpoint here is intact"):
        choose_checkpoint("auto", tmp_path, Channel())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("is_foreseen", [True, False])
def test_a_full_disk_costs_one_save(
    is_foreseen: bool, asynchronous: bool, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two checkpoints of 52 KiB fit, a third does not, until one is removed. Others may fill a disk after the look."""
    monkeypatch.setattr("megacpt.checkpoint.saving.HEADERS_BYTES", 0)
    saver = Saver(CheckpointFolder(small_disk), Channel(), Retention(9), asynchronous=asynchronous)

    def save(step: int) -> str | None:
        held = held_of(random_tensors(num_elements=2500))
        record = saver.save({"step": step, "tokens": step}, {"optimizer_updates": step}, held) or saver.wait()
        assert record is not None
        return record.error

    assert save(1) is None and save(2) is None
    if not is_foreseen:
        usage = shutil.disk_usage(small_disk)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    error = save(3)
    assert error is not None and ("no room for a checkpoint" if is_foreseen else "No space left") in error
    complete = CheckpointFolder(small_disk).complete()
    assert [path.name for path in complete] == ["step_000001", "step_000002"]
    assert [damage(path) for path in complete] == [[], []] and not list(small_disk.glob("*.partial"))
    CheckpointFolder(small_disk).discard(complete[0])
    assert save(4) is None
