"""Input files as blocks of about a MiB, in order, without ever holding a file.

The parent process cuts files into blocks; a worker turns a block into texts. Where a block is cut depends on the file
alone, never on who works on it. A block knows its file and first line, so that an error can name them.
"""

from __future__ import annotations

import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import orjson

from megacpt.errors import DataError

if TYPE_CHECKING:
    import pyarrow

BLOCK_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 1 << 28
"""256 MiB. Tokenizers work on a whole document and need many times its size."""

Documents = Literal["file", "blank-line"]
"""What a document is in plain text: the whole file, or what stands between blank lines."""

_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_JSON_LINES = (".jsonl", ".ndjson")
_PLAIN_TEXT = (".txt", ".md", ".rst")
KNOWN_SUFFIXES = f"{', '.join(_JSON_LINES + _PLAIN_TEXT)} (each also .gz or .zst), .parquet"
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_PARQUET_ROWS = 512
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Block(ABC):
    """A piece of one input file.

    Attributes:
        path: the file.
        first: line (or row, or document) that it begins with, counted from 1.
        position_bytes: how far into the file, as it lies on disk, reading has come; for progress.
    """

    path: str
    first: int
    position_bytes: int

    @abstractmethod
    def texts(self, text_key: str) -> list[str]:
        """The documents, in order.

        Raises:
            DataError: naming the line that cannot be read.
        """

    @abstractmethod
    def where(self, document: int) -> str:
        """File and line of the block's document number `document`, counted from 0."""


@dataclass(frozen=True)
class JsonLines(Block):
    """Whole lines, each a JSON object; blank ones are passed over."""

    data: bytes

    def texts(self, text_key: str) -> list[str]:
        try:
            texts = [orjson.loads(line)[text_key] for line in self.data.split(b"\n") if line and not line.isspace()]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise self._first_fault(text_key) from None
        if not set(map(type, texts)) <= {str}:
            raise self._first_fault(text_key)
        return texts

    def where(self, document: int) -> str:
        lines = [at for at, line in enumerate(self.data.split(b"\n")) if line and not line.isspace()]
        return f"{self.path}:{self.first + lines[document]}"

    def _first_fault(self, text_key: str) -> DataError:
        """The error for the first line that is not an object with a text; at least one is not."""
        for at, line in enumerate(self.data.split(b"\n")):
            where = f"{self.path}:{self.first + at}"
            if not line or line.isspace():
                continue
            try:
                entry = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                return DataError("the line is not JSON", where=where, found=f"{error.msg}, column {error.colno}")
            if not isinstance(entry, dict):
                return DataError("the line is no JSON object", where=where, found=type(entry).__name__)
            if text_key not in entry:
                hint = "Name the key of the text with --text-key."
                found = ", ".join(entry) or "no keys"
                return DataError(f"the line has no key {text_key!r}", where=where, found=found, hint=hint)
            if not isinstance(entry[text_key], str):
                return DataError(f"{text_key!r} is not text", where=where, found=orjson.dumps(entry[text_key])[:80])
        raise AssertionError("every line can be read")


@dataclass(frozen=True)
class PlainText(Block):
    """UTF-8 text: one document, or documents between blank lines."""

    data: bytes
    documents: Documents

    def texts(self, text_key: str) -> list[str]:
        try:
            text = self.data.decode()
        except UnicodeDecodeError as error:
            line = self.first + self.data.count(b"\n", 0, error.start)
            found = f"byte 0x{self.data[error.start]:02x}"
            raise DataError("the text is not UTF-8", where=f"{self.path}:{line}", found=found) from None
        if self.documents == "file":
            return [text]
        documents = (document.strip("\n") for document in _BLANK_LINES.split("\n" + text.replace("\r\n", "\n")))
        return [document for document in documents if document]

    def where(self, document: int) -> str:
        return self.path if self.documents == "file" else f"{self.path}, document {document + 1} from line {self.first}"


@dataclass(frozen=True)
class ParquetRows(Block):
    """Rows of the text column."""

    rows: pyarrow.RecordBatch

    def texts(self, text_key: str) -> list[str]:
        texts = self.rows.column(0).to_pylist()
        for at, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"{text_key!r} is not text", where=self.where(at), found=repr(text)[:80])
        return texts

    def where(self, document: int) -> str:
        return f"{self.path}, row {self.first + document}"


def find_inputs(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The input files in order; a folder stands for all files of a known kind below it, sorted by path.

    Raises:
        DataError: a path that does not exist, is of no known kind, or a folder without such files.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file) is not None)
            if not found:
                raise DataError("the folder holds no input files", where=str(path), expected=KNOWN_SUFFIXES)
            files += found
        elif not path.is_file():
            raise DataError("there is no such input file", where=str(path))
        elif _kind(path) is None:
            raise DataError("the kind of file is unknown", where=str(path), expected=KNOWN_SUFFIXES)
        else:
            files.append(path)
    if not files:
        raise DataError("no input files were given")
    return files


def read_blocks(path: Path, text_key: str, documents: Documents) -> Iterator[Block]:
    """The file as blocks, in order; memory does not grow with the file.

    Raises:
        DataError: a damaged file, a parquet file without the column, or a document of more than 256 MiB.
    """
    kind = _kind(path)
    if kind == ".parquet":
        yield from _read_parquet(path, text_key)
        return
    with path.open("rb") as raw:
        file = _decompressed(raw, path)
        try:
            if kind in _JSON_LINES:
                for first, data in _cut(file, path, at_blank_lines=False):
                    yield JsonLines(str(path), first, raw.tell(), data)
            elif documents == "blank-line":
                for first, data in _cut(file, path, at_blank_lines=True):
                    yield PlainText(str(path), first, raw.tell(), data, documents)
            else:
                data = file.read(MAX_DOCUMENT_BYTES + 1)
                _check_size(data, f"{path}")
                yield PlainText(str(path), 1, raw.tell(), data.removeprefix(_BYTE_ORDER_MARK), documents)
        except OSError as error:
            raise DataError("the file cannot be read to its end", where=str(path), found=error) from None


def _kind(path: Path) -> str | None:
    """The suffix that says what the file holds, or None where it says nothing known."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes = suffixes[:-1]
        return suffixes[-1] if suffixes and suffixes[-1] in _JSON_LINES + _PLAIN_TEXT else None
    return suffixes[-1] if suffixes and suffixes[-1] in (*_JSON_LINES, *_PLAIN_TEXT, ".parquet") else None


def _decompressed(raw: BinaryIO, path: Path) -> BinaryIO:
    """The file's content. Arrow's streams raise on a truncated file, where zstandard's reader ends in silence."""
    compression = _COMPRESSIONS.get(path.suffix)
    if compression is None:
        return raw
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, compression), BLOCK_BYTES)


def _cut(file: BinaryIO, path: Path, *, at_blank_lines: bool) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, about a block of whole lines) to the end; blocks end with a blank line on request."""
    first = 1
    while data := file.read(BLOCK_BYTES):
        if not data.endswith(b"\n"):
            data += file.readline(MAX_DOCUMENT_BYTES)
        if at_blank_lines:
            lines = [data]
            size_bytes = len(data)
            while (
                (line := file.readline(MAX_DOCUMENT_BYTES)) and not line.isspace() and size_bytes <= MAX_DOCUMENT_BYTES
            ):
                lines.append(line)
                size_bytes += len(line)
            data = b"".join([*lines, line])
        _check_size(data, f"{path}, after line {first}")
        yield first, data.removeprefix(_BYTE_ORDER_MARK) if first == 1 else data
        first += data.count(b"\n")


def _read_parquet(path: Path, text_key: str) -> Iterator[Block]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
            if text_key not in file.schema_arrow.names:
                raise DataError(
                    f"the file has no column {text_key!r}",
                    where=str(path),
                    found=", ".join(file.schema_arrow.names),
                    hint="Name the column of the text with --text-key.",
                )
            first, size_bytes = 1, path.stat().st_size
            for rows in file.iter_batches(_PARQUET_ROWS, columns=[text_key]):
                done = (first - 1 + rows.num_rows) / file.metadata.num_rows
                yield ParquetRows(str(path), first, int(done * size_bytes), rows)
                first += rows.num_rows
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError("the file cannot be read as parquet", where=str(path), found=error) from None


def _check_size(data: bytes, where: str) -> None:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DataError(
            "a document is too large to be tokenized",
            where=where,
            expected=f"at most {MAX_DOCUMENT_BYTES >> 20} MiB",
            hint="Cut it; plain text can be cut with --documents blank-line.",
        )
