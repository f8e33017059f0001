"""Input files as blocks of about two MiB, in order, without ever holding a file.

    local paths, globs      corpus/*.jsonl.zst, folders, files
    URLs of fsspec          s3://bucket/part-*.parquet, gs://, hf://datasets/NAME/...
    datasets of the hub     hf-dataset:NAME[@REVISION][:CONFIG][:SPLIT], streamed by the `datasets` library

Where a block is cut depends on the file alone, never on who works on it. Lines of an uncompressed file are cut by byte
ranges, which the workers read for themselves: the parent names them and touches no byte. What can only be read from
front to back (compressed files, parquet, datasets) is read by the parent and handed on.

A block does not know how many lines come before it. It counts its own, and who puts blocks in order adds them up, so
that an error can name the line.
"""

from __future__ import annotations

import glob
import io
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, islice, pairwise
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NoReturn, cast

import orjson

from megacpt.errors import DataError

if TYPE_CHECKING:
    import pyarrow

BLOCK_BYTES = 1 << 21
MAX_DOCUMENT_BYTES = 1 << 28
"""256 MiB. Tokenizers work on a whole document and need many times its size."""

DocumentBorder = Literal["file", "blank-line"]
"""What ends a document in plain text: the end of the file, or a blank line."""

HUB_DATASET = "hf-dataset:"
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_JSON_LINES = (".jsonl", ".ndjson")
_PLAIN_TEXT = (".txt", ".md", ".rst")
KNOWN_SUFFIXES = f"{', '.join(_JSON_LINES + _PLAIN_TEXT)} (each also .gz or .zst), .parquet"
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_ROWS = 512
_EXCERPT_CHARACTERS = 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Source:
    """One input: a file, or a dataset of the hub.

    Attributes:
        path: local path, URL, or `hf-dataset:` and a name.
        size_bytes: as it lies on disk; 0 for a dataset.
        version: changes when the content does (time of change, or what the store has for it).
    """

    path: str
    size_bytes: int
    version: str

    @property
    def kind(self) -> str:
        """The suffix that says what the file holds, or `hf-dataset:`."""
        return HUB_DATASET if self.path.startswith(HUB_DATASET) else _kind(self.path) or ""

    @property
    def is_seekable(self) -> bool:
        """Whether its blocks are byte ranges that can be read in any order."""
        return self.kind in _JSON_LINES and PurePosixPath(self.path).suffix not in _COMPRESSIONS

    @property
    def is_divisible(self) -> bool:
        """Whether a part can be read without what is before it: byte ranges, or row groups."""
        return self.is_seekable or self.kind == ".parquet"


@dataclass(frozen=True)
class Fault:
    """A line that cannot be used: its number in its block, counted from 0, and what is wrong with it."""

    line: int
    message: str
    found: str
    hint: str | None = None


@dataclass(frozen=True)
class Documents:
    """What a block holds.

    Attributes:
        texts: the documents in order.
        columns: name -> a value for each of them, None where it has none.
        num_lines: lines (or rows) of the block.
        faults: lines that are left out.
    """

    texts: list[str]
    columns: dict[str, list[Any]]
    num_lines: int
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Block(ABC):
    """A piece of one source.

    Attributes:
        begin, end: where in the file, as it lies on disk, it begins and ends; for progress, and to divide a build.
    """

    path: str
    begin: int
    end: int

    @abstractmethod
    def documents(self, text_key: str, columns: Sequence[str] = ()) -> Documents:
        """Read the block; a missing value of a column is None.

        Raises:
            DataError: a fault of the file itself.
        """

    @abstractmethod
    def line(self, text: str, number: int, text_key: str) -> int:
        """The line in the block, counted from 0, of its document `number` with this text."""

    def where(self, num_lines_before: int, line: int) -> str:
        """File and line."""
        return f"{self.path}:{num_lines_before + line + 1}"


@dataclass(frozen=True)
class JsonLines(Block):
    """Whole lines, each a JSON object; blank ones are passed over. Without `data`, those that begin in [begin, end)."""

    data: bytes | None = None

    def documents(self, text_key: str, columns: Sequence[str] = ()) -> Documents:
        lines = self._lines()
        if max(map(len, lines)) > MAX_DOCUMENT_BYTES:
            return self._one_by_one(lines, text_key, columns)
        try:
            entries = [orjson.loads(line) for line in lines if line and not line.isspace()]
            texts = [entry[text_key] for entry in entries]
            kept = {name: [entry.get(name) for entry in entries] for name in columns}
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return self._one_by_one(lines, text_key, columns)
        if not set(map(type, texts)) <= {str}:
            return self._one_by_one(lines, text_key, columns)
        return Documents(texts, kept, len(lines) - 1)

    def line(self, text: str, number: int, text_key: str) -> int:
        lines = [line for line, entry in enumerate(self._lines()) if _text_of(entry, text_key) is not None]
        return lines[number]

    def _lines(self) -> list[bytes]:
        """The lines without their ends, and an empty one; the last line of all may be cut short for its size."""
        data = self._range() if self.data is None else self.data
        if data and not data.endswith(b"\n"):
            data += b"\n"
        return (data.removeprefix(_BYTE_ORDER_MARK) if self.begin == 0 else data).split(b"\n")

    def _range(self) -> bytes:
        with open_binary(self.path) as file:
            if self.begin:
                # The rest of a line that began before: its end alone, if the byte before the range is one.
                file.seek(self.begin - 1)
                file.readline(self.end - self.begin + 1)
            left_bytes = self.end - file.tell()
            if left_bytes <= 0:
                return b""
            data = file.read(left_bytes)
            if not data.endswith(b"\n"):
                data += file.readline(MAX_DOCUMENT_BYTES)
        return data

    def _one_by_one(self, lines: list[bytes], text_key: str, columns: Sequence[str]) -> Documents:
        texts: list[str] = []
        kept: dict[str, list[Any]] = {name: [] for name in columns}
        faults = []
        for number, line in enumerate(lines):
            if not line or line.isspace():
                continue
            entry = _entry(line, text_key)
            if isinstance(entry, Fault):
                faults.append(Fault(number, entry.message, entry.found, entry.hint))
                continue
            texts.append(entry[text_key])
            for name, values in kept.items():
                values.append(entry.get(name))
        return Documents(texts, kept, len(lines) - 1, tuple(faults))


@dataclass(frozen=True)
class PlainText(Block):
    """UTF-8 text: one document, or documents between blank lines. Without `data`, the whole file."""

    border: DocumentBorder
    data: bytes | None = None

    def documents(self, text_key: str, columns: Sequence[str] = ()) -> Documents:
        if self.data is None:
            with open_binary(self.path) as file:
                data = _whole(file, self.path)
        else:
            data = self.data
        num_lines = data.count(b"\n")
        nothing: dict[str, list[Any]] = {name: [] for name in columns}
        if fault := _not_utf8(data):
            return Documents([], nothing, num_lines, (fault,))
        text = data.decode()
        texts = [text]
        if self.border == "blank-line":
            documents = (document.strip("\n") for document in _BLANK_LINES.split("\n" + text.replace("\r\n", "\n")))
            texts = [document for document in documents if document]
        return Documents(texts, {name: [None] * len(texts) for name in nothing}, num_lines)

    def line(self, text: str, number: int, text_key: str) -> int:
        if self.border == "file" or self.data is None:
            return 0
        data = self.data.decode().replace("\r\n", "\n")
        return data.count("\n", 0, data.find(text))


@dataclass(frozen=True)
class Rows(Block):
    """Rows of a table: the text and the columns that are kept."""

    table: pyarrow.Table

    def documents(self, text_key: str, columns: Sequence[str] = ()) -> Documents:
        texts = _values(self.table.column(text_key))
        names = self.table.column_names
        kept = {name: _values(self.table.column(name)) if name in names else [None] * len(texts) for name in columns}
        faults = []
        good = []
        for row, text in enumerate(texts):
            if isinstance(text, bytes) and (not_utf8 := _not_utf8(text)):
                faults.append(replace(not_utf8, line=row))
            elif not isinstance(text, str):
                faults.append(Fault(row, f"{text_key!r} is not text", repr(text)[:80]))
            elif len(text) > MAX_DOCUMENT_BYTES:
                faults.append(replace(_too_large(), line=row))
            else:
                good.append(row)
        if faults:
            texts = [texts[row] for row in good]
            kept = {name: [values[row] for row in good] for name, values in kept.items()}
        return Documents(texts, kept, self.table.num_rows, tuple(faults))

    def line(self, text: str, number: int, text_key: str) -> int:
        texts = _values(self.table.column(text_key))
        good = (row for row, entry in enumerate(texts) if isinstance(entry, str) and len(entry) <= MAX_DOCUMENT_BYTES)
        return next(islice(good, number, None))

    def where(self, num_lines_before: int, line: int) -> str:
        return f"{self.path}, row {num_lines_before + line + 1}"


def _values(column: pyarrow.ChunkedArray) -> list[Any]:
    """The values of a column; text that is not UTF-8 stays bytes."""

    def value(scalar: pyarrow.Scalar) -> Any:
        try:
            return scalar.as_py()
        except UnicodeDecodeError:
            return scalar.as_buffer().to_pybytes()

    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = [value(scalar) for scalar in column]
    return values


def find_inputs(paths: Sequence[str | os.PathLike[str]]) -> list[Source]:
    """The sources in order; a folder stands for all files of a known kind below it, a pattern for what it matches.

    Raises:
        DataError: a path that does not exist, is of no known kind, or a folder without such files.
    """
    sources = [source for path in paths for source in _sources(os.fspath(path))]
    if not sources:
        raise DataError("no input files were given")
    return sources


def other_files(paths: Sequence[str | os.PathLike[str]]) -> Counter[str]:
    """Suffix -> files of no known kind in those paths that are local folders: `find_inputs` leaves them out."""
    below = (file for path in paths if os.path.isdir(path) for file in _files_below(os.fspath(path)))
    return Counter(file.suffix or "without a suffix" for file in below if _kind(file.name) is None)


def read_blocks(
    source: Source,
    text_key: str,
    border: DocumentBorder,
    columns: Sequence[str] = (),
    is_wanted: Callable[[int], bool] = lambda begin: True,
) -> Iterator[Block]:
    """The source as blocks, in order; memory does not grow with it.

    Of a source that is divisible, only parts whose `begin` is wanted.

    Raises:
        DataError: a damaged file, a table without the text's column, or plain text of more than 256 MiB in a document.
    """
    path, kind = source.path, source.kind
    if kind == HUB_DATASET:
        yield from _read_dataset(source, text_key, columns)
    elif kind == ".parquet":
        yield from _read_parquet(source, text_key, columns, is_wanted)
    elif source.is_seekable:
        for begin in range(0, source.size_bytes, BLOCK_BYTES):
            if is_wanted(begin):
                yield JsonLines(path, begin, min(begin + BLOCK_BYTES, source.size_bytes))
    elif border == "file" and kind in _PLAIN_TEXT:
        yield PlainText(path, 0, source.size_bytes, border)
    else:
        with open_binary(path, decompress=False) as raw:
            begin = 0
            try:
                for data in _cut(_decompressed(raw, path), path, at_blank_lines=kind in _PLAIN_TEXT):
                    end = raw.tell()
                    yield (
                        JsonLines(path, begin, end, data)
                        if kind in _JSON_LINES
                        else PlainText(path, begin, end, border, data)
                    )
                    begin = end
            except OSError as error:
                raise DataError("the file cannot be read to its end", where=path, found=error) from None


@contextmanager
def open_binary(path: str, *, decompress: bool = True) -> Iterator[BinaryIO]:
    """A file or URL, open for reading; its content if it is compressed, or its bytes as they lie on disk.

    Raises:
        DataError: it cannot be read to its end.
    """
    try:
        with _open_url(path) if _is_url(path) else open(path, "rb") as raw:
            yield _decompressed(raw, path) if decompress else raw
    except OSError as error:
        raise DataError("the file cannot be read to its end", where=path, found=error) from None


def _is_url(path: str) -> bool:
    return "://" in path


def _open_url(url: str) -> BinaryIO:
    import fsspec

    with _store_errors(url):
        return cast(BinaryIO, fsspec.open(url, "rb").open())


@contextmanager
def _store_errors(url: str) -> Iterator[None]:
    """Every store raises errors of its own kinds; they become one that names the URL."""
    try:
        yield
    except Exception as error:
        hint = "The package of a store has to be installed (s3fs, gcsfs), and its credentials set."
        found = str(error).partition("\n")[0] or type(error).__name__
        raise DataError("the URL cannot be read", where=url, found=found, hint=hint) from None


def _sources(path: str) -> list[Source]:
    if path.startswith(HUB_DATASET):
        return [Source(path, 0, "")]
    found = _sources_at_url(path) if _is_url(path) else _local_sources(path)
    for source in found:
        if (name := os.fsencode(source.path).decode(errors="backslashreplace")) != source.path:
            raise DataError("the name of a file is not UTF-8", where=name, hint="Rename it.")
        if _kind(source.path) is None:
            hint = "Is it JSON lines? Name it .jsonl." if source.path.endswith(".json") else None
            raise DataError("the kind of file is unknown", where=source.path, expected=KNOWN_SUFFIXES, hint=hint)
    return found


def _local_sources(path: str) -> list[Source]:
    if os.path.isdir(path):
        files = [str(file) for file in _files_below(path) if _kind(file.name) is not None]
        if not files:
            others = listed(other_files([path]))
            raise DataError("the folder holds no input files", where=path, found=others, expected=KNOWN_SUFFIXES)
    else:
        files = [path] if os.path.isfile(path) else sorted(filter(_is_file, glob.glob(path, recursive=True)))
    if not files:
        raise DataError("there is no such input file", where=path)
    for file in files:
        if not os.path.exists(file):
            raise DataError("the link leads nowhere", where=file, found=os.readlink(file), hint="Mend or remove it.")
    states = map(os.stat, files)
    return [Source(file, state.st_size, str(state.st_mtime_ns)) for file, state in zip(files, states, strict=True)]


def _files_below(folder: str) -> list[Path]:
    """The files below a folder in order, but for what is hidden: .git, .ipynb_checkpoints, .cache of the hub.

    Links are followed; a folder that they lead to in several ways is read once.

    Raises:
        DataError: a folder that cannot be read.
    """
    files: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        is_new = (real := os.path.realpath(parent)) not in seen
        seen.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".") if is_new else []
        paths = (Path(parent, name) for name in names if is_new and name[0] != ".")
        files += filter(_is_file, paths)
    return sorted(files)


def _is_file(path: str | Path) -> bool:
    """Whether it is a file, or a link that leads nowhere: who means the file should hear of it."""
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))


def _refuse_folder(error: OSError) -> NoReturn:
    raise DataError("the folder cannot be read", where=error.filename, found=error.strerror)


def listed(counts: Mapping[str, int]) -> str | None:
    """'3 .csv, 1 .json', or None of nothing."""
    return ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(counts.items())) or None


def _sources_at_url(url: str) -> list[Source]:
    import fsspec

    with _store_errors(url):
        system, path = fsspec.core.url_to_fs(url)
        if system.isdir(path):
            below = (file for file in sorted(system.find(path)) if _kind(file) is not None)
            files = [file for file in below if "/." not in file.removeprefix(path.rstrip("/"))]
        elif glob.has_magic(path):
            entries = system.glob(path, detail=True)
            files = sorted(file for file, entry in entries.items() if entry["type"] != "directory")
        else:
            files = [path] if system.exists(path) else []
        found = [Source(system.unstrip_protocol(file), system.size(file), system.ukey(file)) for file in files]
    for source in found:
        if source.size_bytes is None:
            hint = "Download it first."
            raise DataError("the store does not say how large the file is", where=source.path, hint=hint)
    if not found:
        raise DataError("there are no input files here", where=url, expected=KNOWN_SUFFIXES)
    return found


def _kind(path: str) -> str | None:
    """The suffix that says what the file holds, or None where it says nothing known."""
    suffixes = PurePosixPath(path).suffixes
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes = suffixes[:-1]
        return suffixes[-1] if suffixes and suffixes[-1] in _JSON_LINES + _PLAIN_TEXT else None
    return suffixes[-1] if suffixes and suffixes[-1] in (*_JSON_LINES, *_PLAIN_TEXT, ".parquet") else None


def _decompressed(raw: BinaryIO, path: str) -> BinaryIO:
    """The file's content. Arrow's streams raise on a truncated file, where zstandard's reader ends in silence."""
    compression = _COMPRESSIONS.get(PurePosixPath(path).suffix)
    if compression is None:
        return raw
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, compression), BLOCK_BYTES)


def _whole(file: BinaryIO, path: str) -> bytes:
    data = file.read(MAX_DOCUMENT_BYTES + 1)
    _check_size(data, path)
    return data.removeprefix(_BYTE_ORDER_MARK)


def _cut(file: BinaryIO, path: str, *, at_blank_lines: bool) -> Iterator[bytes]:
    """About a block of whole lines at a time, to the end; blocks end with a blank line on request."""
    num_bytes = 0
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
            _check_size(data, f"{path}, after {num_bytes:,} bytes")
        elif not data.endswith(b"\n"):  # too large: what is left of the line is passed over
            while (rest := file.readline(BLOCK_BYTES)) and not rest.endswith(b"\n"):
                pass
        yield data if num_bytes else data.removeprefix(_BYTE_ORDER_MARK)
        num_bytes += len(data)


def _read_parquet(
    source: Source, text_key: str, columns: Sequence[str], is_wanted: Callable[[int], bool]
) -> Iterator[Block]:
    """What is wanted is decided for each row group, by its place among the rows."""
    import pyarrow
    from pyarrow import parquet

    try:
        with (
            open_binary(source.path) as opened,
            parquet.ParquetFile(opened, memory_map=False, pre_buffer=False) as file,
        ):
            _check_columns(text_key, columns, file.schema_arrow.names, source.path)
            names = [name for name in dict.fromkeys([text_key, *columns]) if name in file.schema_arrow.names]
            ends = list(accumulate(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)))

            def place(num_rows: int) -> int:
                return source.size_bytes * num_rows // max(file.metadata.num_rows, 1)

            for group, num_rows in enumerate([0, *ends[:-1]]):
                if not is_wanted(place(num_rows)):
                    continue
                for batch in file.iter_batches(_ROWS, row_groups=[group], columns=names):
                    for table in _parts_of(pyarrow.Table.from_batches([batch])):
                        begin, num_rows = num_rows, num_rows + table.num_rows
                        yield Rows(source.path, place(begin), place(num_rows), table)
    except pyarrow.ArrowException as error:
        raise DataError("the file cannot be read as parquet", where=source.path, found=error) from None


def _read_dataset(source: Source, text_key: str, columns: Sequence[str]) -> Iterator[Block]:
    """A dataset of the hub (or a folder that `datasets` understands), streamed; nothing of it is run as code."""
    try:
        import datasets
    except ImportError as error:
        hint = "Run pip install 'megacpt[datasets]'."
        raise DataError(
            "the package for datasets of the hub is missing", where=source.path, found=error, hint=hint
        ) from None
    name, config, split, *others = [*source.path.removeprefix(HUB_DATASET).split(":"), "", ""]
    if any(others):
        raise DataError("this names no dataset", where=source.path, expected=f"{HUB_DATASET}NAME[:CONFIG[:SPLIT]]")
    name, _, revision = name.partition("@")
    try:
        dataset = datasets.load_dataset(
            name, config or None, split=split or "train", revision=revision or None, streaming=True
        )
        for table in dataset.with_format("arrow").iter(_ROWS):
            _check_columns(text_key, columns, table.column_names, source.path)
            names = [name for name in dict.fromkeys([text_key, *columns]) if name in table.column_names]
            yield from (Rows(source.path, 0, 0, part) for part in _parts_of(table.select(names)))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError("the dataset cannot be read", where=source.path, found=error) from None


def _parts_of(table: pyarrow.Table) -> Iterator[pyarrow.Table]:
    """A table in parts of about a block of bytes, or of one row; copies, for a slice is pickled with all the table."""
    num_parts = min(-(-table.nbytes // BLOCK_BYTES), table.num_rows)
    if num_parts < 2:
        yield table
        return
    ends = [table.num_rows * part // num_parts for part in range(num_parts + 1)]
    for begin, end in pairwise(ends):
        yield _copied(table.slice(begin, end - begin))


def _copied(table: pyarrow.Table) -> pyarrow.Table:
    import pyarrow

    content = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(content, table.schema) as stream:
        stream.write_table(table)
    return pyarrow.ipc.open_stream(content.getvalue()).read_all()


def _check_columns(text_key: str, columns: Sequence[str], names: Sequence[str], path: str) -> None:
    for name in (text_key, *columns):
        if names.count(name) > 1:
            raise DataError(f"the file has several columns {name!r}", where=path, found=", ".join(names))
    if text_key not in names:
        hint = "Name the column of the text with --text-key."
        raise DataError(f"the file has no column {text_key!r}", where=path, found=", ".join(names), hint=hint)


def _entry(line: bytes, text_key: str) -> dict[str, Any] | Fault:
    """The object of a line, or what is wrong with it."""
    if len(line) > MAX_DOCUMENT_BYTES:
        return _too_large()
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if not_utf8 := _not_utf8(line):
            return not_utf8
        excerpt = error.doc[error.pos : error.pos + _EXCERPT_CHARACTERS]
        return Fault(0, "the line is not JSON", f"{error.msg}, {excerpt and f'{excerpt!r}, '}column {error.colno}")
    if not isinstance(entry, dict):
        return Fault(0, "the line is no JSON object", type(entry).__name__)
    if text_key not in entry:
        hint = "Name the key of the text with --text-key."
        return Fault(0, f"the line has no key {text_key!r}", ", ".join(entry) or "no keys", hint)
    if not isinstance(entry[text_key], str):
        return Fault(0, f"{text_key!r} is not text", orjson.dumps(entry[text_key]).decode()[:80])
    return entry


def _not_utf8(data: bytes) -> Fault | None:
    """The first place in lines that is not UTF-8, if there is one."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line, column = data.count(b"\n", 0, error.start), error.start - data.rfind(b"\n", 0, error.start)
        hint = "Other encodings: iconv -f latin1 -t utf-8 FILE > NEW."
        return Fault(line, "the text is not UTF-8", f"0x{data[error.start]:02x}, byte {column} of the line", hint)
    return None


def _too_large() -> Fault:
    return Fault(0, "the document is too large to be tokenized", f"more than {MAX_DOCUMENT_BYTES >> 20} MiB", "Cut it.")


def _text_of(line: bytes, text_key: str) -> str | None:
    entry = _entry(line, text_key) if line and not line.isspace() else None
    return entry[text_key] if isinstance(entry, dict) else None


def _check_size(data: bytes, where: str) -> None:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise DataError(
            "a document is too large to be tokenized",
            where=where,
            expected=f"at most {MAX_DOCUMENT_BYTES >> 20} MiB",
            hint="Cut it, or part it with --documents blank-line.",
        )
