"""Files of slices: several ranks' files joined to whole tensors, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megacpt.errors import CheckpointError
from megacpt.parallel.slice_files import SliceFiles, read_slices, slice_file, write_slices
from megacpt.parallel.slices import Slice

VOCAB_SIZE, PADDED = 10, 12
EMBEDDING = torch.arange(VOCAB_SIZE * 3.0).view(VOCAB_SIZE, 3)
DOWN = torch.arange(24.0).view(4, 6).to(torch.bfloat16)
NORM = torch.tensor([1.0, 2.0, 3.0])


def write_checkpoint(folder: Path, tensor_degree: int = 2) -> None:
    """The files of two stages: an embedding with a norm, and a row-parallel weight."""
    for rank in range(tensor_degree):
        rows = Slice(0, rank, tensor_degree, padded=PADDED)
        columns = Slice(1, rank, tensor_degree)
        first = [("embed", rows.cut(EMBEDDING), rows), ("norm", NORM, None)]
        write_slices(slice_file(folder, 0, rank), first)
        write_slices(slice_file(folder, 1, rank), [("down", columns.cut(DOWN), columns)])


@pytest.mark.parametrize("tensor_degree", [1, 2, 3])
def test_files_of_all_ranks_join_to_whole_tensors(tensor_degree: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tensor_degree)
    files = SliceFiles(tmp_path)
    assert sorted(files) == ["down", "embed", "norm"]
    for name, expected in {"embed": EMBEDDING, "down": DOWN, "norm": NORM}.items():
        whole = files.whole(name, VOCAB_SIZE)
        assert whole.dtype == expected.dtype
        assert torch.equal(whole, expected)


def test_a_rank_reads_back_what_it_wrote(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    parameters = {"embed": torch.nn.Parameter(torch.empty(PADDED // 2, 3)), "norm": torch.nn.Parameter(torch.empty(3))}
    read_slices(slice_file(tmp_path, 0, 1), parameters)
    assert torch.equal(parameters["embed"], Slice(0, 1, 2, padded=PADDED).cut(EMBEDDING))
    assert torch.equal(parameters["norm"], NORM)


def test_a_missing_slice_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    slice_file(tmp_path, 0, 1).unlink()
    with pytest.raises(CheckpointError, match="slices of 'embed' are missing") as error:
        SliceFiles(tmp_path).whole("embed", VOCAB_SIZE)
    assert error.value.found == [1]
    assert torch.equal(SliceFiles(tmp_path).whole("down", VOCAB_SIZE), DOWN)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights in this folder"):
        SliceFiles(tmp_path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weights-pp00-tp03\.safetensors: .*missing"):
        read_slices(slice_file(tmp_path, 0, 3), {})


@pytest.mark.parametrize("names", [["embed"], ["embed", "norm", "head"]], ids=["fewer", "more"])
def test_other_parameters(names: list[str], tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="other parameters") as error:
        read_slices(slice_file(tmp_path, 0, 0), {name: torch.empty(3) for name in names})
    assert error.value.found == ("norm" if len(names) == 1 else "head")


def test_another_shape_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"'norm' has another shape .*\[3\], expected \[4\]"):
        read_slices(slice_file(tmp_path, 0, 0), {"embed": torch.empty(PADDED // 2, 3), "norm": torch.empty(4)})
