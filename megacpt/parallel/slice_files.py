"""Files of slices: one safetensors file per rank that owns weights, each tensor under its Hugging Face name.

The header's metadata holds, as JSON, which slice of the whole every tensor is, so that a set of files can be joined to
whole tensors on any machine, without torch processes and without pickle.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from megacpt.errors import CheckpointError
from megacpt.parallel.slices import Slice, join

PATTERN = "weights-*.safetensors"


def slice_file(folder: Path, pipeline_rank: int, tensor_rank: int) -> Path:
    """Where the weights of this stage and tensor rank lie in a checkpoint folder."""
    return folder / f"weights-pp{pipeline_rank:02d}-tp{tensor_rank:02d}.safetensors"


def write_slices(path: Path, slices: Iterable[tuple[str, torch.Tensor, Slice | None]]) -> None:
    """Write (name, tensor, which slice it is) to `path`, on the CPU in the tensors' own dtypes."""
    tensors, pieces = {}, {}
    for name, tensor, piece in slices:
        tensors[name] = tensor.detach().cpu().clone()
        if piece is not None:
            pieces[name] = piece.to_json()
    save_file(tensors, path, metadata={"format": "pt", "slices": json.dumps(pieces)})


def read_slices(path: Path, parameters: Mapping[str, torch.Tensor]) -> None:
    """Copy the tensors of `path` into `parameters`, name by name.

    Raises:
        CheckpointError: the file is missing, or holds other names or shapes.
    """
    if not path.is_file():
        raise CheckpointError("a weights file of the checkpoint is missing", where=str(path))
    with safe_open(path, framework="pt") as file, torch.no_grad():
        names = set(file.keys())
        if names != set(parameters):
            odd = ", ".join(sorted(names ^ set(parameters))[:4])
            raise CheckpointError("the checkpoint holds other parameters than this run", where=str(path), found=odd)
        for name, parameter in parameters.items():
            tensor = file.get_tensor(name)
            if tensor.shape != parameter.shape:
                raise CheckpointError(
                    f"'{name}' has another shape in the checkpoint",
                    where=str(path),
                    found=list(tensor.shape),
                    expected=list(parameter.shape),
                )
            parameter.copy_(tensor)


class SliceFiles:
    """All slice files of one checkpoint, read as whole tensors, one at a time.

    Args:
        folder: the checkpoint's folder.

    Raises:
        CheckpointError: there are no weights in it.
    """

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.glob(PATTERN))
        if not paths:
            raise CheckpointError("no weights in this folder", where=str(folder), expected=PATTERN)
        self._places: dict[str, list[tuple[Path, Slice | None]]] = {}
        for path in paths:
            with safe_open(path, framework="pt") as file:
                pieces = {name: Slice(**piece) for name, piece in json.loads(file.metadata()["slices"]).items()}
                for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                    self._places.setdefault(name, []).append((path, pieces.get(name)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def whole(self, name: str, vocab_size: int) -> torch.Tensor:
        """The joined tensor `name`, without vocabulary padding.

        Raises:
            CheckpointError: a slice is missing.
        """
        places = self._places[name]
        first_path, piece = places[0]
        if piece is None:
            return self._read(first_path, name)
        by_index = {place[1].index: place[0] for place in places if place[1] is not None}
        missing = set(range(piece.count)) - set(by_index)
        if missing:
            raise CheckpointError(
                f"slices of '{name}' are missing", where=str(first_path.parent), found=sorted(missing)
            )
        parts = [self._read(by_index[index], name) for index in range(piece.count)]
        return join(parts, piece.dim, vocab_size if piece.padded else None)

    @staticmethod
    def _read(path: Path, name: str) -> torch.Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
