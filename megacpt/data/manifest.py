"""What a folder of shards says about itself: `manifest.json`, written last.

A folder without a manifest is an unfinished build. The manifest records nothing that depends on when, where or with
how many workers the shards were built, so equal input gives equal bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow
from pyarrow import parquet
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from megacpt.data.shard import AtomicFile, Shard
from megacpt.errors import DataError

FILE_NAME = "manifest.json"
NUMBER = "number_in_shard"
"""A column of every table of columns, so that it has its rows even where nobody kept any."""
UNFINISHED = ".unfinished"
"""The mark of a folder that a build is working in, or was interrupted in."""
_HASH_BYTES = 1 << 22


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineRecord(_Section):
    """What ran the tokenizer, and why that could be trusted to make its ids."""

    name: Literal["tokenizers", "tiktoken", "sentencepiece", "fastokens", "gigatoken", "word-cache"]
    reason: str | None = None
    """Why nothing faster ran it."""
    checked_documents: NonNegativeInt = 0
    """Documents of the input that were encoded with equal ids by the tokenizer's own library, where it is another."""
    checked_tokens: NonNegativeInt = 0


class TokenizerRecord(_Section):
    """The tokenizer that made the ids."""

    kind: Literal["huggingface", "sentencepiece", "tiktoken"]
    name: str
    """Its path, as given to the build."""
    fingerprint: str
    """sha256 over what decides the ids; equal for the same tokenizer at any path."""
    vocab_size: PositiveInt
    """One more than the highest id it can produce."""
    bos_id: NonNegativeInt | None
    eos_id: NonNegativeInt | None
    adds_bos: bool
    """Every document begins with `bos_id`."""
    adds_eos: bool
    """Every document ends with `eos_id`."""
    engine: EngineRecord | None = None


class ColumnsRecord(_Section):
    """A parquet file with values of a shard's documents: a row for each, in their order."""

    file: str
    """Relative to the manifest."""
    names: tuple[str, ...]
    sha256: str


class ShardRecord(_Section):
    """One shard of the folder."""

    file: str
    """Prefix relative to the manifest: `file` + ".bin", `file` + ".idx"."""
    documents: NonNegativeInt
    tokens: NonNegativeInt
    bytes: NonNegativeInt
    """UTF-8 bytes of the text: what bits per byte divides by."""
    bin_sha256: str
    idx_sha256: str
    columns: tuple[ColumnsRecord, ...] = ()


class SourceRecord(_Section):
    """One input file."""

    path: str
    bytes: NonNegativeInt
    """Size of the file as it lies on disk (compressed, if it is)."""
    documents: NonNegativeInt
    """Documents read from it, before any split."""
    empty_documents: NonNegativeInt
    """Documents without text, which are left out."""
    bad_documents: NonNegativeInt = 0
    """Lines that could not be read and were tolerated; they count as no documents."""


class FilterRecord(_Section):
    """A condition that documents had to satisfy, in turn, and what it removed."""

    where: str
    removed_documents: NonNegativeInt
    removed_bytes: NonNegativeInt
    """UTF-8 bytes of their text."""


class SliceRecord(_Section):
    """Which part of the input a build took, when several share it."""

    index: NonNegativeInt
    num_slices: PositiveInt
    build: str | None = None
    """sha256 over the names and sizes of the input's files and the options; one for all slices of a build."""


class SplitRecord(_Section):
    """Which part of the documents this folder holds."""

    part: Literal["train", "held_out"]
    held_out_fraction: float
    held_out_max_documents: PositiveInt | None


class Manifest(_Section):
    """The contents of manifest.json; sums are over all shards."""

    format_version: Literal[1] = 1
    tokenizer: TokenizerRecord
    dtype: str
    documents: NonNegativeInt
    tokens: NonNegativeInt
    bytes: NonNegativeInt
    shards: tuple[ShardRecord, ...]
    sources: tuple[SourceRecord, ...]
    split: SplitRecord | None = None
    filters: tuple[FilterRecord, ...] = ()
    slice: SliceRecord | None = None

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write manifest.json, atomically."""
        with AtomicFile(Path(folder) / FILE_NAME) as file:
            file.write(self.model_dump_json(indent=2).encode() + b"\n")

    def read_columns(self, folder: str | os.PathLike[str], names: Sequence[str]) -> pyarrow.Table:
        """The named columns of all documents, in their order; what no shard keeps is left out, and what one does not
        keep is null there.

        Raises:
            DataError: a file is missing, or has other rows than its shard has documents.
        """
        tables = [_shard_columns(Path(folder), record, names) for record in self.shards]
        return stacked([*tables, pyarrow.table({NUMBER: pyarrow.array([], pyarrow.int64())})])

    def open_shards(self, folder: str | os.PathLike[str]) -> list[Shard]:
        """Open the shards and hold them against the manifest; constant time per shard.

        Raises:
            DataError: a shard is missing or broken, or has other sizes than the manifest says.
        """
        where = str(Path(folder) / FILE_NAME)
        shards = [Shard(Path(folder) / record.file) for record in self.shards]
        for shard, record in zip(shards, self.shards, strict=True):
            _agree(f"{where}: shard {record.file}: dtype", self.dtype, shard.dtype.name)
            _agree(f"{where}: shard {record.file}: documents", record.documents, shard.num_documents)
            _agree(f"{where}: shard {record.file}: tokens", record.tokens, shard.num_tokens)
        for field in ("documents", "tokens", "bytes"):
            _agree(f"{where}: {field}", getattr(self, field), sum(getattr(record, field) for record in self.shards))
        return shards


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a folder of shards.

    Raises:
        DataError: there is none, or it cannot be read as one.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        parts = sorted(str(found.parent) for found in Path(folder).glob(f"*/{FILE_NAME}"))
        hint = "The build that wrote it did not finish, or this is a folder of plain Megatron shards: then name them."
        if parts:
            hint = f"Give one of its parts: {', '.join(parts)}."
        raise DataError("the folder has no manifest.json", where=str(folder), hint=hint)
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        where = f"{path}: {key}" if key else str(path)
        raise DataError("this is no manifest of shards", where=where, found=first["msg"]) from None


def stacked(tables: Sequence[pyarrow.Table]) -> pyarrow.Table:
    """Tables below each other: missing columns are null, and integers become floats where one has floats."""
    try:
        return pyarrow.concat_tables(tables, promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise DataError("shards keep values of different kinds in one column", found=error) from None


def verify(folder: str | os.PathLike[str], on_shard: Callable[[ShardRecord], None] | None = None) -> Manifest:
    """Read every byte of a folder of shards and hold it against its manifest.

    Checks sizes, checksums, ids below the vocabulary's size and the order of the indices; calls `on_shard` after each
    shard; returns the manifest.

    Raises:
        DataError: at the first fault.
    """
    manifest = read_manifest(folder)
    shards = manifest.open_shards(folder)
    for shard, record in zip(shards, manifest.shards, strict=True):
        checksums = [(shard.bin_path, record.bin_sha256), (shard.idx_path, record.idx_sha256)]
        checksums += [(Path(folder) / columns.file, columns.sha256) for columns in record.columns]
        for path, expected in checksums:
            found = _sha256(path)
            if found != expected:
                raise DataError(
                    "the file has changed since it was built",
                    where=str(path),
                    found=f"sha256 {found}",
                    expected=expected,
                    hint="Copy it again, or build the shards anew.",
                )
        shard.verify(manifest.tokenizer.vocab_size)
        _shard_columns(Path(folder), record, ())
        if on_shard is not None:
            on_shard(record)
    return manifest


def _shard_columns(folder: Path, record: ShardRecord, names: Sequence[str]) -> pyarrow.Table:
    """The named columns of one shard's documents, after their numbers in it."""
    table = pyarrow.table({NUMBER: np.arange(record.documents)})
    for columns in record.columns:
        path = folder / columns.file
        try:
            with parquet.ParquetFile(path) as file:
                _agree(f"{path}: rows", record.documents, file.metadata.num_rows)
                chosen = [name for name in names if name in columns.names]
                found = file.read(chosen)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError("the columns of a shard cannot be read", where=str(path), found=error) from None
        for name in chosen:
            if name in table.column_names:
                table = table.drop_columns(name)
            table = table.append_column(name, found.column(name))
    return table


def _agree(what: str, manifest_says: object, files_say: object) -> None:
    if manifest_says != files_say:
        raise DataError(
            "the manifest contradicts the shards",
            where=what,
            found=f"{files_say} in the shards",
            expected=f"{manifest_says} in the manifest",
            hint="The files are of different builds; build the shards anew.",
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()
