"""Hugging Face folders: finding one, and reading from its safetensors exactly the slices a rank needs."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig

from megacpt.errors import ModelError
from megacpt.parallel.slices import Slice, pad_to

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def find_folder(name: str, revision: str | None = None, *, where: str = "model.path") -> Path:
    """The folder of a model: `name` itself if it is one, else its snapshot from the hub (downloaded once, then cached).

    Args:
        name: a folder, or an id on the hub.
        revision: the hub's branch, tag or commit.
        where: the place that states the name, for an error.

    Raises:
        ModelError: it is neither a folder nor to be had from the hub.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            "this is no folder, and the Hugging Face hub does not give it",
            where=where,
            found=name,
            hint=f"Check the spelling, the network, and `hf auth login` for gated models. {_first_line(error)}",
        ) from error


def read_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model's config.

    Raises:
        ModelError: config.json is missing or of an unknown kind.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            "no config.json in the model's folder", where=str(folder), hint="model.path names a model's folder."
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(
            "config.json is not understood", where=str(folder / "config.json"), found=_first_line(error)
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


class SafetensorsWeights:
    """The tensors of a Hugging Face folder, read slice by slice through memory maps.

    Args:
        folder: holds model.safetensors, or its shards with an index.
        base_name: the decoder's name in the full model ("model"); folders saved without it are read too.

    Raises:
        ModelError: there are no safetensors, or an indexed file is missing.
    """

    def __init__(self, folder: Path, base_name: str = "model") -> None:
        self.folder = folder
        self.base_name = base_name
        if (folder / INDEX).is_file():
            self.files: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
            for file in sorted(set(self.files.values())):
                if not (folder / file).is_file():
                    raise ModelError("a weights file named by the index is missing", where=str(folder / file))
        elif (folder / SINGLE).is_file():
            with self._open(SINGLE) as file:
                self.files = dict.fromkeys(file.keys(), SINGLE)
        else:
            raise ModelError(
                "no safetensors weights in the model's folder",
                where=str(folder),
                expected=f"{SINGLE} or {INDEX}",
                hint="Load and save an older format with transformers: its save_pretrained writes safetensors.",
            )

    def __contains__(self, name: str) -> bool:
        """Whether the folder has the tensor `name`."""
        return self._stored(name) in self.files

    def num_rows(self, name: str) -> int:
        """How many rows the tensor `name`, which the folder has, is stored with."""
        stored = self._stored(name)
        with self._open(self.files[stored]) as file:
            return int(file.get_slice(stored).get_shape()[0])

    def _stored(self, name: str) -> str:
        return name if name in self.files else name.removeprefix(f"{self.base_name}.")

    def _open(self, file: str) -> safe_open:
        try:
            return safe_open(self.folder / file, framework="pt")
        except SafetensorError as error:
            raise ModelError(
                "a weights file cannot be read",
                where=str(self.folder / file),
                found=_first_line(error),
                hint="Fetch it again.",
            ) from error

    def read(self, name: str, piece: Slice | None) -> torch.Tensor:
        """The tensor `name`, or its `piece`; rows past the end of a padded dim are zero.

        Raises:
            ModelError: the folder has no such tensor.
        """
        if name not in self:
            raise ModelError(
                f"the model's folder has no tensor '{name}'",
                where=str(self.folder),
                hint="The weights are incomplete, or of another architecture than config.json.",
            )
        stored = self._stored(name)
        with self._open(self.files[stored]) as file:
            if piece is None:
                return file.get_tensor(stored)
            tensor = file.get_slice(stored)
            length = tensor.get_shape()[piece.dim]
            start, stop = piece.bounds(length)
            window = slice(min(start, length), min(stop, length))
            part = tensor[(slice(None),) * piece.dim + (window,)]
            return pad_to(part, piece.dim, stop - start)
