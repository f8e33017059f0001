"""Text to shards: tokenized once, offline, by all cores, with the same bytes for any number of them.

    files -> blocks of two MiB (named by the parent) -> ids (workers, one block each) -> shards (parent, in input order)

A worker reads, parses, filters and tokenizes; the parent only puts blocks in order and appends them. A few blocks per
worker are in flight, so memory grows with neither the input nor the output. Nothing a worker does depends on which of
them it is.

The shards of all parts (train, held out) are cut at the same document. A cut is what an interrupted build goes on from:
the folder's `.unfinished` then says how far the input was read and which shards are whole, and for which input and
options. The same command continues there; another one sweeps the leftovers away, and nothing else. The price is the
work since the last cut, a shard at most. The manifest is written last: a folder without one does not verify.

Several builds can share one input (`index`, `num_slices`), each in a folder of its own; `join_slices` then makes one
manifest for all.
"""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import os
import signal
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any, Literal

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import parquet
from pydantic import BaseModel, ValidationError

from megacpt import __version__
from megacpt.data.hash_split import TEXT_HASH, hashes_of, is_held_out
from megacpt.data.manifest import (
    FILE_NAME,
    UNFINISHED,
    ColumnsRecord,
    EngineRecord,
    FilterRecord,
    Manifest,
    ShardRecord,
    SliceRecord,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
    read_manifest,
)
from megacpt.data.shard import AtomicFile, ShardWriter, dtype_for
from megacpt.data.where import Where
from megacpt.errors import DataError
from megacpt.observe.log import logger
from megacpt.units import counted
from megacpt_tools import inputs
from megacpt_tools.engine import fastest, reopened
from megacpt_tools.inputs import HUB_DATASET, Block, DocumentBorder, Fault, Source, find_inputs, read_blocks
from megacpt_tools.tokenizer import FasterTokenizer, Tokenizer, open_tokenizer

Part = Literal["train", "held_out"]
Engine = Literal["fastest", "own"]
TRAIN: Part = "train"
HELD_OUT: Part = "held_out"
TEXT_BYTES = "text_bytes"
"""The column that every parquet file beside a shard has: UTF-8 bytes of the document's text."""
SLICE_NAME = "slice_{:05}_of_{:05}"
_SHARD_NAME = "shard_{:05}"
_SHARD_FILES = ("shard_*.bin", "shard_*.idx", "shard_*.parquet", ".*.partial")
_BLOCKS_PER_WORKER = 3
SMALL_BYTES = 1 << 26
"""Looking for a faster engine takes longer than an input below this by the tokenizer's own library, on one core."""
CHECKED_SHARE, CHECKED_CHARACTERS = 1 / 512, 4096
"""All along a build, so much of the text is encoded by the tokenizer's own library, too, at most so much at a time."""
_SHOWN_CHARACTERS = 80
_SAMPLED_SOURCES = 8
_SAMPLE_BYTES = 1 << 20

_tokenize: BlockTokenizer
"""What a worker process does with a block; set once by `_start_worker`."""


@dataclass(frozen=True)
class BuildProgress:
    """How far a build has come: bytes of the input files as they lie on disk, documents and tokens written."""

    done_bytes: int
    total_bytes: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class TokenizedBlock:
    """What a worker makes of a block: the ids of its documents end to end, and a column per document.

    Attributes:
        columns: the values that are kept, or None if none are.
        removed: per filter, documents and bytes of text: int64 [filters, 2].
        absent: columns that are asked for and that none of the documents has.
    """

    ids: NDArray
    lengths: NDArray[np.int64]
    text_bytes: NDArray[np.int64]
    is_held_out: NDArray[np.bool_]
    columns: pyarrow.Table | None
    num_lines: int
    num_documents: int
    num_empty: int
    removed: NDArray[np.int64]
    faults: tuple[Fault, ...]
    absent: tuple[str, ...]


@dataclass(frozen=True)
class BuildOptions:
    """What decides the output besides input and tokenizer.

    Attributes:
        text_key: key of a JSON line, or column of a table, that holds the text.
        documents: what ends a document in plain text.
        append_eos: end every document with EOS.
        add_bos: begin every document with BOS; None does what the tokenizer itself does.
        bos_token, eos_token: spelling of the tokens to use instead of the tokenizer's own.
        keep_columns: keys (columns) whose values are kept in a parquet file beside each shard.
        where: conditions on the documents' columns, applied in turn (`megacpt.data.where`); `text_bytes` is one too.
        held_out_fraction: share of documents to hold out. A hash of the text alone decides, so that equal documents
            fall on the same side, in any order and in any later build.
        held_out_max_documents: hold out no more than these, the first in the order of input; the others train.
        max_tokens_per_shard: shards are cut before the document with which one would exceed it.
        index, num_slices: build only this slice of the input, into a folder of its own below the output.
        divide_input: False where the input that is given is the slice already.
        engine: what makes the ids: the "fastest" that makes the tokenizer's, or the tokenizer's "own" library; None is
            the fastest, of an input that is worth the search.
    """

    text_key: str = "text"
    documents: DocumentBorder = "file"
    append_eos: bool = True
    add_bos: bool | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    keep_columns: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    held_out_fraction: float = 0.0
    held_out_max_documents: int | None = None
    max_tokens_per_shard: int = 1_000_000_000
    index: int = 0
    num_slices: int = 1
    divide_input: bool = True
    engine: Engine | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the documents are divided into."""
        return (TRAIN, HELD_OUT) if self.held_out_fraction else (TRAIN,)

    @property
    def read_columns(self) -> tuple[str, ...]:
        """Columns that are kept or compared, and not made here."""
        return tuple(name for name in self.columns if name not in (TEXT_BYTES, TEXT_HASH))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are kept or compared."""
        compared = [name for where in self.where for name in Where(where).names]
        return tuple(dict.fromkeys([*self.keep_columns, *compared]))


@dataclass(frozen=True)
class BlockTokenizer:
    """Turns blocks into ids; the same in the parent and in a worker.

    Attributes:
        tokenizer: what makes the ids.
        options: of the build.
        bos_id, eos_id: what goes before and after every document, None for nothing.
    """

    tokenizer: Tokenizer
    options: BuildOptions
    bos_id: int | None
    eos_id: int | None

    def __call__(self, block: Block) -> TokenizedBlock:
        options = self.options
        read = block.documents(options.text_key, options.read_columns)
        has_text = [bool(text) and not text.isspace() for text in read.texts]
        encoded = [text.encode() for text in read.texts]
        text_bytes = np.fromiter(map(len, encoded), np.int64, len(encoded))
        hashes = hashes_of(encoded) if options.held_out_fraction or TEXT_HASH in options.columns else None
        made = {TEXT_BYTES: text_bytes} | ({} if hashes is None else {TEXT_HASH: hashes})
        columns = _table(block, {**read.columns, **made}) if options.columns else None
        chosen = np.array(has_text, np.bool_)
        removed = np.zeros((len(options.where), 2), np.int64)
        for number, condition in enumerate(options.where):
            falls = chosen & ~Where(condition).mask(columns)
            removed[number] = falls.sum(), text_bytes[falls].sum()
            chosen = chosen & ~falls

        numbers = np.flatnonzero(chosen)
        texts = [read.texts[number] for number in numbers]
        faults = read.faults
        try:
            ids, lengths = self.tokenizer.encode(texts)
        except ValueError:
            given_up = self._given_up(texts)
            lines = (block.line(texts[at], int(numbers[at]), options.text_key) for at in given_up)
            faults += tuple(
                Fault(line, "the tokenizer gives up on this document", error)
                for line, error in zip(lines, given_up.values(), strict=True)
            )
            numbers = np.delete(numbers, list(given_up))
            texts = [read.texts[number] for number in numbers]
            ids, lengths = self.tokenizer.encode(texts)
        self._check_engine(texts, block.path)
        ids, lengths = _surround(ids, lengths, self.bos_id, self.eos_id, dtype_for(self.tokenizer.vocab_size))
        kept = list(dict.fromkeys([*options.keep_columns, TEXT_BYTES]))
        return TokenizedBlock(
            ids=ids,
            lengths=lengths,
            text_bytes=text_bytes[numbers],
            is_held_out=is_held_out(hashes[numbers], options.held_out_fraction)
            if hashes is not None
            else np.zeros(numbers.size, np.bool_),
            columns=columns.select(kept).take(numbers) if columns is not None and options.keep_columns else None,
            num_lines=read.num_lines,
            num_documents=len(read.texts),
            num_empty=len(has_text) - sum(has_text),
            removed=removed,
            faults=faults,
            absent=tuple(name for name, values in read.columns.items() if all(value is None for value in values)),
        )

    def _check_engine(self, texts: list[str], path: str) -> None:
        """Hold the ids of `CHECKED_SHARE` of all text against the tokenizer's own: a hash says whether and of what.

        Raises:
            DataError: a faster engine makes others.
        """
        num_characters = sum(map(len, texts))
        if not (num_characters and isinstance(self.tokenizer, FasterTokenizer)):
            return
        text = texts[num_characters % len(texts)][:CHECKED_CHARACTERS]
        is_checked = zlib.crc32(text.encode()) / 2**32 * len(text) < num_characters * CHECKED_SHARE
        if is_checked and not self.tokenizer.is_exact(text):
            raise DataError(
                f"{self.tokenizer.library} makes other ids of a text than the tokenizer",
                where=path,
                found=text if len(text) < _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...",
                hint="Build with --engine own. What was built so far is built anew.",
            )

    def _given_up(self, texts: list[str]) -> dict[int, str]:
        """Which documents the tokenizer gives up on, and what it says."""
        errors = {}
        for at, text in enumerate(texts):
            try:
                self.tokenizer.encode([text])
            except ValueError as error:
                errors[at] = str(error)
        return errors


def build_shards(
    paths: Sequence[str | os.PathLike[str]],
    tokenizer: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: BuildOptions | None = None,
    *,
    num_workers: int = 1,
    max_bad_lines: int = 0,
    overwrite: bool = False,
    on_progress: Callable[[BuildProgress], None] | None = None,
    on_bad_line: Callable[[DataError], None] | None = None,
    **changes: Any,
) -> dict[Part, Manifest]:
    """Tokenize text into a folder of shards with a manifest, or continue such a build that was interrupted.

    Args:
        paths: of the text; see `megacpt_tools.inputs`.
        tokenizer: see `megacpt_tools.tokenizer.open_tokenizer`.
        output: folder to make. With a held-out part it gets two, `train` and `held_out`.
        options: what decides the output.
        num_workers: processes; the output does not depend on it. With one, the calling process does the work.
        max_bad_lines: leave out so many lines that cannot be read before giving up.
        overwrite: replace a finished build.
        on_progress: called after each block.
        on_bad_line: called with each line that is left out.
        **changes: options by name.

    Returns:
        The manifests by part: {"train": ...} or {"train": ..., "held_out": ...}.

    Raises:
        DataError: input, tokenizer or output that cannot be used. Whole shards stay for the next try.
    """
    options = replace(options or BuildOptions(), **changes)
    if options.num_slices > 1 and options.held_out_max_documents is not None:
        raise DataError("a slice cannot know how many documents the others hold out", hint="Cap it without slices.")
    sources = [source for source in find_inputs(paths) if not _is_output(source.path, output)]
    opened = open_tokenizer(tokenizer)
    record = _tokenizer_record(tokenizer, opened, options)
    engine, engine_record = engine_for(opened, sources, options)
    record = record.model_copy(update={"engine": engine_record})
    tokenize = BlockTokenizer(
        tokenizer=engine,
        options=options,
        bos_id=record.bos_id if record.adds_bos else None,
        eos_id=record.eos_id if record.adds_eos else None,
    )
    build = _Build(Path(output), sources, record, options)
    with build.claimed():
        build.begin(overwrite)
        blocks = islice(_blocks_of_slice(sources, options), build.state.num_blocks, None)
        try:
            with closing(_in_order(tokenize, tokenizer, engine_record, blocks, num_workers)) as in_order:
                for source, block, tokenized in in_order:
                    if not build.state.tallies and tokenized.num_documents and tokenized.absent:
                        first = f"none of the first {counted(tokenized.num_documents, 'document')} has"
                        logger().warning("%s: %s a value of %s", block.path, first, " or ".join(tokenized.absent))
                    for error in build.faults(source, block, tokenized, max_bad_lines):
                        if on_bad_line is not None:
                            on_bad_line(error)
                    build.add(source, tokenized)
                    if on_progress is not None:
                        on_progress(build.progress(source, block))
            return build.finish()
        except BaseException:
            build.interrupt()
            raise


class _SourceTally(BaseModel):
    lines: int = 0
    documents: int = 0
    empty: int = 0
    bad: int = 0


class _State(BaseModel):
    """What `.unfinished` says: for which input and options, and how far the build has come at its last cut."""

    build: str
    num_blocks: int = 0
    """Blocks whose documents are all in whole shards."""
    num_documents: int = 0
    """Documents of the next block that are, too."""
    num_held_out: int = 0
    """Documents held out of those blocks."""
    num_tokens: int = 0
    total: _SourceTally = _SourceTally()
    """The sum of the tallies, for each block asks for it and there may be a million sources."""
    tallies: dict[int, _SourceTally] = {}
    removed: list[tuple[int, int]]
    shards: dict[Part, list[ShardRecord]]


@dataclass
class _OpenShard:
    """A shard that is being written, and what its documents have besides ids."""

    writer: ShardWriter
    text_bytes: int = 0
    columns: list[pyarrow.Table] = field(default_factory=list)


class _Build:
    """The output of a build: shards of every part, cut together, and what is known of the input so far."""

    def __init__(
        self, output: Path, sources: Sequence[Source], tokenizer: TokenizerRecord, options: BuildOptions
    ) -> None:
        self._output = output
        self._sources = sources
        self._tokenizer = tokenizer
        self._options = options
        self._dtype = dtype_for(tokenizer.vocab_size)
        self._open: dict[Part, _OpenShard] = {}
        self._begins = [*accumulate((source.size_bytes for source in sources), initial=0)]
        described = repr((__version__, inputs.BLOCK_BYTES, sources, tokenizer.model_dump_json(), options))
        self.state = _State(
            build=hashlib.sha256(described.encode()).hexdigest(),
            removed=[(0, 0)] * len(options.where),
            shards={part: [] for part in options.parts},
        )

    def folder(self, part: Part) -> Path:
        folder = self._output / part if self._options.held_out_fraction else self._output
        if self._options.num_slices == 1:
            return folder
        return folder / SLICE_NAME.format(self._options.index, self._options.num_slices)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep the folders for this process, where their file system knows locks; leave none of them empty.

        Raises:
            DataError: another build writes there.
        """
        folders = [self.folder(part) for part in self._options.parts]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        shared = fcntl.LOCK_SH if self._options.num_slices > 1 else fcntl.LOCK_EX
        locks: list[int] = []
        try:
            for folder, kind in {self._output: shared, folders[0]: fcntl.LOCK_EX}.items():
                locks.append(os.open(folder, os.O_RDONLY))
                try:
                    fcntl.flock(locks[-1], kind | fcntl.LOCK_NB)
                except BlockingIOError:
                    hint = "Wait for it, or name another folder. Jobs that share an input have a --shard-index each."
                    raise DataError("another build writes into this folder", where=str(folder), hint=hint) from None
                except OSError:
                    pass
            yield
        finally:
            for lock in locks:
                os.close(lock)
            for folder in (*folders, folders[0].parent, self._output):
                if folder.is_relative_to(self._output):
                    with suppress(OSError):
                        folder.rmdir()

    def begin(self, overwrite: bool) -> None:
        """Take up what an equal build left, or make room for a new one."""
        folders = [self.folder(part) for part in self._options.parts]
        stored = _stored_state(folders[0])
        if stored is not None and stored.build == self.state.build:
            self.state = stored
            whole = {
                folder / f"{shard.file}{suffix}"
                for part, folder in zip(self._options.parts, folders, strict=True)
                for shard in stored.shards[part]
                for suffix in (".bin", ".idx", ".parquet")
            }
            for file in (file for folder in folders for file in _shard_files(folder) if file not in whole):
                file.unlink()
            return
        others = [self._output, self._output / TRAIN, self._output / HELD_OUT] if self._options.num_slices == 1 else []
        _clear([*folders, *others], overwrite)
        for folder in set(others) - set(folders):
            with suppress(OSError):
                folder.rmdir()
        self._store()

    def add(self, source: int, block: TokenizedBlock) -> None:
        """Append a block, without the documents that whole shards have already."""
        is_held_out = block.is_held_out
        if (most := self._options.held_out_max_documents) is not None:
            is_held_out = is_held_out & (self.state.num_held_out + np.cumsum(is_held_out) <= most)
        ends = np.concatenate(([0], np.cumsum(block.lengths)))
        at = self.state.num_documents
        while at < block.lengths.size:
            stop = at + min(
                self._room(part, np.where(is_held_out == (part == HELD_OUT), block.lengths, 0)[at:])
                for part in self._options.parts
            )
            if stop == at and self._open:
                self._cut(at)
                continue
            stop = max(stop, at + 1)
            for part in self._options.parts:
                chosen = at + np.flatnonzero(is_held_out[at:stop] == (part == HELD_OUT))
                if chosen.size:
                    self._append(part, block, chosen, ends)
            at = stop
        state = self.state
        state.num_blocks += 1
        state.num_documents = 0
        state.num_held_out += int(is_held_out.sum())
        state.num_tokens += block.ids.size
        for tally in (state.total, state.tallies.setdefault(source, _SourceTally())):
            tally.lines += block.num_lines
            tally.documents += block.num_documents
            tally.empty += block.num_empty
            tally.bad += len(block.faults)
        state.removed = [
            (documents + int(more), num_bytes + int(more_bytes))
            for (documents, num_bytes), (more, more_bytes) in zip(state.removed, block.removed, strict=True)
        ]

    def faults(self, source: int, block: Block, tokenized: TokenizedBlock, max_bad_lines: int) -> Iterator[DataError]:
        """The errors that name the lines of a block, before it is added, that cannot be used.

        Raises:
            DataError: there is one too many.
        """
        num_lines = self.state.tallies.get(source, _SourceTally()).lines
        for number, fault in enumerate(tokenized.faults, start=self.state.total.bad):
            where = block.where(num_lines, fault.line)
            error = DataError(fault.message, where=where, found=fault.found, hint=fault.hint)
            if number == max_bad_lines:
                if max_bad_lines:
                    error.message += f", the last of more than {max_bad_lines:,} such lines"
                raise error
            yield error

    def progress(self, source: int, block: Block) -> BuildProgress:
        return BuildProgress(
            done_bytes=self._begins[source] + block.end,
            total_bytes=self._begins[-1],
            documents=self.state.total.documents - self.state.total.empty,
            tokens=self.state.num_tokens,
        )

    def finish(self) -> dict[Part, Manifest]:
        """Complete the last shards and write the manifests."""
        options, state = self._options, self.state
        for part, shards in state.shards.items():
            if options.num_slices == 1 and not shards and part not in self._open:
                raise self._nothing_in(part)
        self._cut(0)
        manifests: dict[Part, Manifest] = {}
        for part, shards in state.shards.items():
            manifests[part] = Manifest(
                tokenizer=self._tokenizer,
                dtype=self._dtype.name,
                documents=sum(shard.documents for shard in shards),
                tokens=sum(shard.tokens for shard in shards),
                bytes=sum(shard.bytes for shard in shards),
                shards=tuple(shards),
                sources=tuple(
                    SourceRecord(
                        path=source.path,
                        bytes=source.size_bytes,
                        documents=tally.documents,
                        empty_documents=tally.empty,
                        bad_documents=tally.bad,
                    )
                    for number, source in enumerate(self._sources)
                    if options.num_slices == 1 or number in state.tallies
                    for tally in [state.tallies.get(number, _SourceTally())]
                ),
                split=SplitRecord(
                    part=part,
                    held_out_fraction=options.held_out_fraction,
                    held_out_max_documents=options.held_out_max_documents,
                )
                if options.held_out_fraction
                else None,
                filters=tuple(
                    FilterRecord(where=where, removed_documents=documents, removed_bytes=num_bytes)
                    for where, (documents, num_bytes) in zip(options.where, state.removed, strict=True)
                ),
                slice=SliceRecord(index=options.index, num_slices=options.num_slices, build=self._shared())
                if options.num_slices > 1
                else None,
            )
        for part, manifest in manifests.items():
            manifest.write(self.folder(part))
        for part in manifests:
            (self.folder(part) / UNFINISHED).unlink()
        return manifests

    def _shared(self) -> str:
        """What all slices of a build have in common: a hash of the names and sizes of the input, and of the options."""
        files = [(PurePosixPath(source.path).name, source.size_bytes) for source in self._sources]
        described = repr((files if self._options.divide_input else None, replace(self._options, index=0, engine=None)))
        return hashlib.sha256(described.encode()).hexdigest()

    def interrupt(self) -> None:
        """Leave whole shards for the next build, and nothing if there are none."""
        for shard in self._open.values():
            shard.writer.discard()
        self._open.clear()
        if not any(self.state.shards.values()):
            for part in self._options.parts:
                _sweep(self.folder(part))

    def _room(self, part: Part, lengths: NDArray[np.int64]) -> int:
        """How many of the documents of these lengths fit into the part's shard."""
        written = self._open[part].writer.num_tokens if part in self._open else 0
        left_tokens = self._options.max_tokens_per_shard - written
        return int(np.searchsorted(np.cumsum(lengths), left_tokens, side="right"))

    def _append(self, part: Part, block: TokenizedBlock, chosen: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        if part not in self._open:
            name = _SHARD_NAME.format(len(self.state.shards[part]))
            self._open[part] = _OpenShard(ShardWriter(self.folder(part) / name, self._dtype))
        shard = self._open[part]
        first, last = int(chosen[0]), int(chosen[-1]) + 1
        ids = block.ids[ends[first] : ends[last]]
        if chosen.size < last - first:
            is_chosen = np.zeros(last - first, np.bool_)
            is_chosen[chosen - first] = True
            ids = ids[np.repeat(is_chosen, block.lengths[first:last])]
        shard.writer.add_documents(ids, block.lengths[chosen])
        shard.text_bytes += int(block.text_bytes[chosen].sum())
        if block.columns is not None:
            shard.columns.append(block.columns.take(chosen))

    def _cut(self, num_documents: int) -> None:
        """Complete all open shards, and note that the build can go on from here."""
        for part, shard in self._open.items():
            writer = shard.writer
            columns = (self._write_columns(writer.prefix, shard.columns),) if shard.columns else ()
            writer.close()
            self.state.shards[part].append(
                ShardRecord(
                    file=writer.prefix.name,
                    documents=writer.num_documents,
                    tokens=writer.num_tokens,
                    bytes=shard.text_bytes,
                    bin_sha256=writer.bin_sha256,
                    idx_sha256=writer.idx_sha256,
                    columns=columns,
                )
            )
        self._open.clear()
        self.state.num_documents = num_documents
        self._store()

    def _write_columns(self, prefix: Path, tables: list[pyarrow.Table]) -> ColumnsRecord:
        try:
            table = pyarrow.concat_tables(tables, promote_options="permissive").combine_chunks()
        except pyarrow.ArrowException as error:
            raise _mixed(", ".join(source.path for source in self._sources), error) from None
        content = pyarrow.BufferOutputStream()
        parquet.write_table(table, content, compression="zstd")
        with AtomicFile(prefix.with_name(f"{prefix.name}.parquet")) as file:
            file.write(memoryview(content.getvalue()))
        return ColumnsRecord(file=file.path.name, names=tuple(table.column_names), sha256=file.sha256)

    def _store(self) -> None:
        for part in self._options.parts:
            with AtomicFile(self.folder(part) / UNFINISHED) as file:
                file.write(self.state.model_dump_json().encode())

    def _nothing_in(self, part: Part) -> DataError:
        num_documents = self.state.total.documents - self.state.total.empty
        if not num_documents:
            where = ", ".join(source.path for source in self._sources)
            return DataError("the input holds no documents with text", where=where)
        removed = sum(documents for documents, _ in self.state.removed)
        if removed == num_documents:
            found = f"{num_documents:,} documents, none left"
            hint = "Loosen --where; its names are keys or columns of the input."
            return DataError("the conditions remove every document", found=found, hint=hint)
        found = f"{num_documents - removed:,} documents"
        return DataError(f"no document falls into the part {part!r}", found=found, hint="Change the share held out.")


def join_slices(output: str | os.PathLike[str], overwrite: bool = False) -> dict[Path, Manifest]:
    """Make one folder of the slices that builds with `num_slices` left below it; only a manifest is written.

    Returns:
        The manifests by folder: of the output itself, or of its parts.

    Raises:
        DataError: a slice is missing or unfinished, or they are of different builds.
    """
    output = Path(output)
    pattern = f"slice_*/{FILE_NAME}"
    folders = [folder for folder in (output, output / TRAIN, output / HELD_OUT) if any(folder.glob(pattern))]
    if not folders:
        hint = "Build them with --shard-index and --num-shards."
        raise DataError("there are no finished slices here", where=str(output), hint=hint)
    manifests = {folder: _joined(folder, overwrite) for folder in folders}
    for folder, manifest in manifests.items():
        manifest.write(folder)
    return manifests


def _joined(folder: Path, overwrite: bool) -> Manifest:
    if (folder / FILE_NAME).exists() and not overwrite:
        raise DataError("the slices are joined already", where=str(folder), hint="Join them again with --overwrite.")
    found = {path.parent.name: read_manifest(path.parent) for path in sorted(folder.glob(f"slice_*/{FILE_NAME}"))}
    first_name, first = next(iter(found.items()))
    num_slices = first.slice.num_slices if first.slice else 0
    names = [SLICE_NAME.format(index, num_slices) for index in range(num_slices)]
    if missing := [name for name in names if name not in found]:
        hint = "Build the missing ones first."
        raise DataError(f"slices are missing: {', '.join(missing)}", where=str(folder), hint=hint)
    for name in found:
        if name not in names:
            raise DataError("this slice is of another build", where=str(folder / name), expected=names[-1])

    def build_of(manifest: Manifest) -> tuple[Any, ...]:
        tokenizer = manifest.tokenizer.model_copy(update={"engine": None})
        build = manifest.slice and manifest.slice.build
        return tokenizer, manifest.split, [entry.where for entry in manifest.filters], build

    for name in names:
        if build_of(found[name]) != build_of(first):
            hint = "Build all slices of the same input with the same options."
            raise DataError(f"this slice was built otherwise than {first_name}", where=str(folder / name), hint=hint)
    slices = [(name, found[name]) for name in names]
    shards = tuple(
        shard.model_copy(
            update={
                "file": f"{name}/{shard.file}",
                "columns": tuple(
                    columns.model_copy(update={"file": f"{name}/{columns.file}"}) for columns in shard.columns
                ),
            }
        )
        for name, manifest in slices
        for shard in manifest.shards
    )
    if not shards:
        raise DataError("no slice holds documents", where=str(folder))
    sources: dict[str, SourceRecord] = {}
    for source in (source for _, manifest in slices for source in manifest.sources):
        before = sources.get(source.path)
        sources[source.path] = source if before is None else _sum(before, source)
    return first.model_copy(
        update={
            "documents": sum(shard.documents for shard in shards),
            "tokens": sum(shard.tokens for shard in shards),
            "bytes": sum(shard.bytes for shard in shards),
            "shards": shards,
            "sources": tuple(sources.values()),
            "filters": tuple(
                FilterRecord(
                    where=same[0].where,
                    removed_documents=sum(entry.removed_documents for entry in same),
                    removed_bytes=sum(entry.removed_bytes for entry in same),
                )
                for same in zip(*(manifest.filters for _, manifest in slices), strict=True)
            ),
            "slice": None,
        }
    )


def _sum(one: SourceRecord, other: SourceRecord) -> SourceRecord:
    counts = ("documents", "empty_documents", "bad_documents")
    return one.model_copy(update={count: getattr(one, count) + getattr(other, count) for count in counts})


def _blocks_of_slice(sources: Sequence[Source], options: BuildOptions) -> Iterator[tuple[int, Block]]:
    """(source, block) in order: all of them, or those of a slice.

    The input's bytes are cut into equal slices; a block belongs to where it begins. A source that is read from front to
    back only is not divided.
    """
    *offsets, total_bytes = accumulate((max(source.size_bytes, 1) for source in sources), initial=0)

    def is_mine(begin: int) -> bool:
        return not options.divide_input or begin * options.num_slices // total_bytes == options.index

    for number, (source, offset) in enumerate(zip(sources, offsets, strict=True)):
        if not source.is_divisible and not is_mine(offset):
            continue

        def is_wanted(begin: int, offset: int = offset) -> bool:
            return is_mine(offset + begin)

        for block in read_blocks(source, options.text_key, options.documents, options.read_columns, is_wanted):
            yield number, block


def engine_for(
    tokenizer: Tokenizer, sources: Sequence[Source], options: BuildOptions
) -> tuple[Tokenizer, EngineRecord]:
    """What encodes the documents of a build, and how it was found."""
    if options.engine == "own":
        return tokenizer, EngineRecord(name=tokenizer.library, reason="asked for")
    is_large = any(s.kind == HUB_DATASET for s in sources) or sum(s.size_bytes for s in sources) >= SMALL_BYTES
    if options.engine == "fastest" or is_large:
        return fastest(tokenizer, _sampled_texts(sources, options))
    return tokenizer, EngineRecord(name=tokenizer.library, reason="the input is small")


def _sampled_texts(sources: Sequence[Source], options: BuildOptions) -> Iterator[str]:
    """About a MiB of documents, from the beginnings of some sources."""
    sampled = sources[:: -(-len(sources) // _SAMPLED_SOURCES)]
    for source in sampled:
        left_bytes = _SAMPLE_BYTES // len(sampled)
        for block in read_blocks(source, options.text_key, options.documents):
            for text in block.documents(options.text_key).texts:
                yield text[:left_bytes]
                left_bytes -= len(text[:left_bytes])
                if not left_bytes:
                    break
            if not left_bytes:
                break


def _in_order(
    tokenize: BlockTokenizer,
    tokenizer: str | os.PathLike[str],
    engine: EngineRecord,
    blocks: Iterable[tuple[int, Block]],
    num_workers: int,
) -> Generator[tuple[int, Block, TokenizedBlock]]:
    """(source, block, ids) of every block in the order given, a few blocks per worker at a time."""
    if num_workers == 1:
        for source, block in blocks:
            yield source, block, tokenize(block)
        return
    pool = ProcessPoolExecutor(
        num_workers,
        multiprocessing.get_context("spawn"),
        _start_worker,
        (tokenizer, engine, tokenize.options, tokenize.bos_id, tokenize.eos_id),
    )
    pending: deque[tuple[int, Block, Future[TokenizedBlock]]] = deque()
    try:
        for source, block in blocks:
            pending.append((source, block, pool.submit(_work, block)))
            if len(pending) == _BLOCKS_PER_WORKER * num_workers:
                yield _result(pending)
        while pending:
            yield _result(pending)
    except BrokenProcessPool:
        hint = "The system may have run out of memory: use fewer workers, or cut very long documents."
        raise DataError("a worker process died", hint=hint) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _result(pending: deque[tuple[int, Block, Future[TokenizedBlock]]]) -> tuple[int, Block, TokenizedBlock]:
    source, block, future = pending.popleft()
    return source, block, future.result()


def _start_worker(tokenizer: str | os.PathLike[str], engine: EngineRecord, *settings: Any) -> None:
    """Open the tokenizer in a fresh process, leave Ctrl-C to the parent, and end when the parent ends."""
    global _tokenize
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    _tokenize = BlockTokenizer(reopened(open_tokenizer(tokenizer), engine), *settings)


def _end_with_parent() -> None:
    """A pool's workers wait for work for ever when the parent is killed: each holds the other end of the queue open."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(block: Block) -> TokenizedBlock:
    return _tokenize(block)


def _table(block: Block, columns: dict[str, Any]) -> pyarrow.Table:
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError) as error:
            raise _mixed(f"{block.path}: column {name}", error) from None
    return pyarrow.table(arrays)


def _mixed(where: str, error: Exception) -> DataError:
    hint = "A column holds values of one kind: numbers (of 64 bits at most), text, or true and false. Make them alike."
    return DataError("a column mixes kinds of values", where=where, found=str(error).splitlines()[0], hint=hint)


def _surround(
    ids: NDArray, lengths: NDArray[np.int64], bos_id: int | None, eos_id: int | None, dtype: np.dtype
) -> tuple[NDArray, NDArray[np.int64]]:
    """Put BOS before and EOS after every document, where they are given."""
    if bos_id is None and eos_id is None:
        return ids.astype(dtype), lengths
    surrounded_lengths = lengths + (bos_id is not None) + (eos_id is not None)
    ends = np.cumsum(surrounded_lengths)
    surrounded = np.empty(int(surrounded_lengths.sum()), dtype)
    begin = 0
    for first, length in zip(
        (ends - surrounded_lengths + (bos_id is not None)).tolist(), lengths.tolist(), strict=True
    ):
        surrounded[first : first + length] = ids[begin : begin + length]
        begin += length
    if bos_id is not None:
        surrounded[ends - surrounded_lengths] = bos_id
    if eos_id is not None:
        surrounded[ends - 1] = eos_id
    return surrounded, surrounded_lengths


def _tokenizer_record(path: str | os.PathLike[str], tokenizer: Tokenizer, options: BuildOptions) -> TokenizerRecord:
    """The tokenizer and the convention for BOS and EOS: by their spelling where given, else the tokenizer's own.

    Raises:
        DataError: a token that the tokenizer does not have, or does not name although it is to be used.
    """
    adds_bos = tokenizer.adds_bos if options.add_bos is None else options.add_bos

    def special_id(name: str, spelling: str | None, own_id: int | None, is_used: bool) -> int | None:
        token_id = own_id if spelling is None else tokenizer.token_id(spelling)
        if token_id is None and spelling is not None:
            raise DataError(f"the tokenizer has no token {spelling!r}", where=str(path))
        if token_id is None and is_used:
            hint = f"Spell it with --{name}-token, or build with --no-{'add' if name == 'bos' else 'append'}-{name}."
            raise DataError(f"the tokenizer does not say which token is {name.upper()}", where=str(path), hint=hint)
        return token_id

    return TokenizerRecord(
        kind=tokenizer.kind,
        name=str(path),
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        bos_id=special_id("bos", options.bos_token, tokenizer.bos_id, adds_bos),
        eos_id=special_id("eos", options.eos_token, tokenizer.eos_id, options.append_eos),
        adds_bos=adds_bos,
        adds_eos=options.append_eos,
    )


def _stored_state(folder: Path) -> _State | None:
    """What an interrupted build left there; None where there is none that can be read."""
    with suppress(OSError, ValidationError):
        return _State.model_validate_json((folder / UNFINISHED).read_bytes())
    return None


def _clear(folders: Sequence[Path], overwrite: bool) -> None:
    """Make room for a build: sweep away what a killed one left, and a finished one only when told to.

    Raises:
        DataError: there are shards of a finished build, or of someone else.
    """
    folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    for folder in folders:
        is_ours = (folder / UNFINISHED).exists()
        is_finished = (folder / FILE_NAME).exists() and not is_ours
        if is_finished and not overwrite:
            hint = "Choose another folder, or replace it with --overwrite."
            raise DataError("the output folder holds finished shards", where=str(folder), hint=hint)
        if not is_finished and not is_ours and any(_shard_files(folder)):
            hint = "Choose another folder, or remove them."
            raise DataError("the output folder holds shards that no build of ours left", where=str(folder), hint=hint)
    for folder in folders:
        if (folder / FILE_NAME).exists() or (folder / UNFINISHED).exists():
            _sweep(folder)


def _sweep(folder: Path) -> None:
    """Remove a build from its folder, the manifest first."""
    for file in (folder / FILE_NAME, *_shard_files(folder), folder / UNFINISHED):
        file.unlink(missing_ok=True)


def _is_output(path: str, output: str | os.PathLike[str]) -> bool:
    """Whether an input file is one of the columns that this build, or another slice of it, keeps below its output."""
    file = Path(path).absolute()
    is_below = file.match("shard_*.parquet") and file.is_relative_to(Path(output).absolute())
    return is_below and any((file.parent / mark).exists() for mark in (FILE_NAME, UNFINISHED))


def _shard_files(folder: Path) -> list[Path]:
    return [file for pattern in _SHARD_FILES for file in folder.glob(pattern)]
