"""Text to shards: tokenized once, offline, by all cores, with the same bytes for any number of them.

    files -> blocks of a MiB (parent) -> ids (workers, one block each) -> shards (parent, in the order of the input)

The parent only cuts files and writes shards; parsing and tokenizing are the workers'. A few blocks per worker are in
flight, so memory grows with neither the input nor the output. Nothing a worker does depends on its number, and blocks
are committed in order.

The manifest is written last, so a build that is killed leaves a folder that does not verify. A file `.unfinished` marks
the folder as ours from the first byte to the manifest: the next build sweeps such leftovers away, and nothing else.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from megacpt.data.manifest import FILE_NAME, Manifest, ShardRecord, SourceRecord, SplitRecord, TokenizerRecord
from megacpt.data.shard import ShardWriter, dtype_for
from megacpt.errors import DataError
from megacpt_tools.inputs import Block, Documents, find_inputs, read_blocks
from megacpt_tools.tokenizer import Tokenizer, open_tokenizer

Part = Literal["train", "held_out"]
TRAIN: Part = "train"
HELD_OUT: Part = "held_out"
_SHARD_NAME = "shard_{:05}"
_SHARD_FILES = ("shard_*.bin", "shard_*.idx", ".shard_*.partial")
_UNFINISHED = ".unfinished"
_BLOCKS_PER_WORKER = 3

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
    """What a worker makes of a block: the ids of its documents end to end, and a column per document."""

    ids: NDArray
    lengths: NDArray[np.int64]
    text_bytes: NDArray[np.int64]
    is_held_out: NDArray[np.bool_]
    num_empty: int

    def of(self, chosen: NDArray[np.bool_]) -> TokenizedBlock:
        """The chosen documents alone."""
        if chosen.all():
            return self
        return TokenizedBlock(
            ids=self.ids[np.repeat(chosen, self.lengths)],
            lengths=self.lengths[chosen],
            text_bytes=self.text_bytes[chosen],
            is_held_out=self.is_held_out[chosen],
            num_empty=0,
        )


@dataclass(frozen=True)
class BlockTokenizer:
    """Turns blocks into ids; the same in the parent and in a worker.

    Attributes:
        tokenizer: what makes the ids.
        text_key: key or column of the text.
        bos_id, eos_id: what goes before and after every document, None for nothing.
        held_out_fraction: share of documents marked as held out, by a hash of their text.
    """

    tokenizer: Tokenizer
    text_key: str
    bos_id: int | None
    eos_id: int | None
    held_out_fraction: float

    def __call__(self, block: Block) -> TokenizedBlock:
        texts = block.texts(self.text_key)
        kept = [text for text in texts if text and not text.isspace()]
        try:
            ids, lengths = self.tokenizer.encode(kept)
        except ValueError:
            raise self._fault(block, texts) from None
        ids, lengths = _surround(ids, lengths, self.bos_id, self.eos_id)
        encoded = [text.encode() for text in kept]
        return TokenizedBlock(
            ids=ids.astype(dtype_for(self.tokenizer.vocab_size)),
            lengths=lengths,
            text_bytes=np.fromiter(map(len, encoded), np.int64, len(encoded)),
            is_held_out=_is_held_out(encoded, self.held_out_fraction),
            num_empty=len(texts) - len(kept),
        )

    def _fault(self, block: Block, texts: list[str]) -> DataError:
        """The error for the first document that the tokenizer gives up on."""
        for at, text in enumerate(texts):
            try:
                self.tokenizer.encode([text])
            except ValueError as error:
                return DataError("the tokenizer gives up on this document", where=block.where(at), found=error)
        raise AssertionError("every document can be encoded")


def build_shards(
    inputs: Sequence[str | os.PathLike[str]],
    tokenizer: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    text_key: str = "text",
    documents: Documents = "file",
    append_eos: bool = True,
    add_bos: bool | None = None,
    bos_token: str | None = None,
    eos_token: str | None = None,
    held_out_fraction: float = 0.0,
    held_out_max_documents: int | None = None,
    max_tokens_per_shard: int = 1_000_000_000,
    num_workers: int = 1,
    overwrite: bool = False,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> dict[Part, Manifest]:
    """Tokenize files into a folder of shards with a manifest.

    Args:
        inputs: files or folders of files; see `megacpt_tools.inputs.KNOWN_SUFFIXES`.
        tokenizer: see `megacpt_tools.tokenizer.open_tokenizer`.
        output: folder to make. With a held-out part it gets two, `train` and `held_out`.
        text_key: key of a JSON line, or column of a parquet file, that holds the text.
        documents: what a document is in plain text.
        append_eos: end every document with EOS.
        add_bos: begin every document with BOS; None does what the tokenizer itself does.
        bos_token, eos_token: spelling of the tokens to use instead of the tokenizer's own.
        held_out_fraction: share of documents to hold out. A hash of the text alone decides, so that equal documents
            fall on the same side, in any order and in any later build.
        held_out_max_documents: hold out no more than these, the first in the order of input; the others train.
        max_tokens_per_shard: a shard is cut before the document that would exceed it.
        num_workers: processes; the output does not depend on it. With one, the calling process does the work.
        overwrite: replace a finished build.
        on_progress: called after each block.

    Returns:
        The manifests by part: {"train": ...} or {"train": ..., "held_out": ...}.

    Raises:
        DataError: input, tokenizer or output that cannot be used; the output folder then holds nothing of this build.
    """
    files = find_inputs(inputs)
    opened = open_tokenizer(tokenizer)
    record = _tokenizer_record(tokenizer, opened, append_eos, add_bos, bos_token, eos_token)
    tokenize = BlockTokenizer(
        tokenizer=opened,
        text_key=text_key,
        bos_id=record.bos_id if record.adds_bos else None,
        eos_id=record.eos_id if record.adds_eos else None,
        held_out_fraction=held_out_fraction,
    )
    output = Path(output)
    _clear(output, overwrite)
    names = (HELD_OUT, TRAIN) if held_out_fraction else (TRAIN,)
    tally = _Tally([file.stat().st_size for file in files])
    blocks = ((source, block) for source, file in enumerate(files) for block in read_blocks(file, text_key, documents))

    with ExitStack() as stack:
        parts: dict[Part, _PartWriter] = {}
        for part in names:
            writer = _PartWriter(
                output / part if held_out_fraction else output, opened.vocab_size, max_tokens_per_shard
            )
            parts[part] = stack.enter_context(writer)
        in_order = stack.enter_context(closing(_in_order(tokenize, tokenizer, blocks, num_workers)))
        for source, position_bytes, block in in_order:
            is_held_out = block.is_held_out
            if held_out_fraction and held_out_max_documents is not None:
                already = parts[HELD_OUT].num_documents
                is_held_out = is_held_out & (already + np.cumsum(is_held_out) <= held_out_max_documents)
            parts[TRAIN].add(block.of(~is_held_out))
            if is_held_out.any():
                parts[HELD_OUT].add(block.of(is_held_out))
            tally.add(source, position_bytes, block)
            if on_progress is not None:
                on_progress(tally.progress())
        for part, writer in parts.items():
            if not writer.num_documents:
                raise _nothing_in(part, files, tally)
        shards = {part: writer.finish() for part, writer in parts.items()}

    manifests: dict[Part, Manifest] = {}
    for part, records in shards.items():
        manifests[part] = Manifest(
            tokenizer=record,
            dtype=dtype_for(opened.vocab_size).name,
            documents=sum(shard.documents for shard in records),
            tokens=sum(shard.tokens for shard in records),
            bytes=sum(shard.bytes for shard in records),
            shards=tuple(records),
            sources=tally.sources(files),
            split=SplitRecord(
                part=part, held_out_fraction=held_out_fraction, held_out_max_documents=held_out_max_documents
            )
            if held_out_fraction
            else None,
        )
        manifests[part].write(parts[part].folder)
        (parts[part].folder / _UNFINISHED).unlink()
    return manifests


class _Tally:
    """What was read of each source, and written of all."""

    def __init__(self, sizes_bytes: list[int]) -> None:
        self._sizes_bytes = sizes_bytes
        self._done_bytes = [0] * len(sizes_bytes)
        self._documents = [0] * len(sizes_bytes)
        self._empty = [0] * len(sizes_bytes)
        self._tokens = 0

    def add(self, source: int, position_bytes: int, block: TokenizedBlock) -> None:
        self._done_bytes[source] = position_bytes
        self._documents[source] += block.lengths.size + block.num_empty
        self._empty[source] += block.num_empty
        self._tokens += block.ids.size

    @property
    def num_documents(self) -> int:
        """Documents with text, of all sources."""
        return sum(self._documents) - sum(self._empty)

    def progress(self) -> BuildProgress:
        return BuildProgress(sum(self._done_bytes), sum(self._sizes_bytes), self.num_documents, self._tokens)

    def sources(self, files: Sequence[Path]) -> tuple[SourceRecord, ...]:
        columns = zip(files, self._sizes_bytes, self._documents, self._empty, strict=True)
        return tuple(
            SourceRecord(path=str(file), bytes=size, documents=documents, empty_documents=empty)
            for file, size, documents, empty in columns
        )


class _PartWriter:
    """A folder of shards, each cut before the document that would exceed its size; on an exception nothing stays."""

    def __init__(self, folder: Path, vocab_size: int, max_tokens_per_shard: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _UNFINISHED).touch()
        self.folder = folder
        self._dtype = dtype_for(vocab_size)
        self._max_tokens = max_tokens_per_shard
        self._writer: ShardWriter | None = None
        self._text_bytes = 0
        self._finished: list[ShardRecord] = []
        self.num_documents = 0

    def add(self, block: TokenizedBlock) -> None:
        ends = np.cumsum(block.lengths)
        at = begin = 0
        while at < block.lengths.size:
            writer = self._writer = self._writer or self._next_writer()
            stop = int(np.searchsorted(ends, begin + self._max_tokens - writer.num_tokens, side="right"))
            if stop <= at and writer.num_documents:
                self._finish_shard(writer)
                continue
            stop = max(stop, at + 1)
            end = int(ends[stop - 1])
            writer.add_documents(block.ids[begin:end], block.lengths[at:stop])
            self._text_bytes += int(block.text_bytes[at:stop].sum())
            at, begin = stop, end
        self.num_documents += block.lengths.size

    def finish(self) -> list[ShardRecord]:
        """Complete the last shard; returns all of them."""
        if self._writer is not None:
            self._finish_shard(self._writer)
        return self._finished

    def _next_writer(self) -> ShardWriter:
        return ShardWriter(self.folder / _SHARD_NAME.format(len(self._finished)), self._dtype)

    def _finish_shard(self, writer: ShardWriter) -> None:
        writer.close()
        self._finished.append(
            ShardRecord(
                file=writer.prefix.name,
                documents=writer.num_documents,
                tokens=writer.num_tokens,
                bytes=self._text_bytes,
                bin_sha256=writer.bin_sha256,
                idx_sha256=writer.idx_sha256,
            )
        )
        self._writer, self._text_bytes = None, 0

    def __enter__(self) -> _PartWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            if self._writer is not None:
                self._writer.discard()
            _sweep(self.folder)


def _in_order(
    tokenize: BlockTokenizer,
    tokenizer: str | os.PathLike[str],
    blocks: Iterable[tuple[int, Block]],
    num_workers: int,
) -> Generator[tuple[int, int, TokenizedBlock]]:
    """(source, position in it, ids) of every block in the order given, a few blocks per worker at a time."""
    if num_workers == 1:
        for source, block in blocks:
            yield source, block.position_bytes, tokenize(block)
        return
    pool = ProcessPoolExecutor(
        num_workers,
        multiprocessing.get_context("spawn"),
        _start_worker,
        (tokenizer, tokenize.text_key, tokenize.bos_id, tokenize.eos_id, tokenize.held_out_fraction),
    )
    pending: deque[tuple[int, int, Future[TokenizedBlock]]] = deque()
    try:
        for source, block in blocks:
            pending.append((source, block.position_bytes, pool.submit(_work, block)))
            if len(pending) == _BLOCKS_PER_WORKER * num_workers:
                source, position_bytes, future = pending.popleft()
                yield source, position_bytes, future.result()
        for source, position_bytes, future in pending:
            yield source, position_bytes, future.result()
    except BrokenProcessPool:
        hint = "The system may have run out of memory: use fewer workers, or cut very long documents."
        raise DataError("a worker process died", hint=hint) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(tokenizer: str | os.PathLike[str], *settings: Any) -> None:
    """Open the tokenizer in a fresh process, leave Ctrl-C to the parent, and end when the parent ends."""
    global _tokenize
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()
    _tokenize = BlockTokenizer(open_tokenizer(tokenizer), *settings)


def _end_with_parent() -> None:
    """A pool's workers wait for work for ever when the parent is killed: each holds the other end of the queue open."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(block: Block) -> TokenizedBlock:
    return _tokenize(block)


def _surround(
    ids: NDArray, lengths: NDArray[np.int64], bos_id: int | None, eos_id: int | None
) -> tuple[NDArray, NDArray[np.int64]]:
    """Put BOS before and EOS after every document, where they are given."""
    lengths = lengths + (bos_id is not None) + (eos_id is not None)
    ends = np.cumsum(lengths)
    surrounded = np.empty(int(lengths.sum()), ids.dtype)
    is_text = np.ones(surrounded.size, np.bool_)
    for places, special_id in ((ends - lengths, bos_id), (ends - 1, eos_id)):
        if special_id is not None:
            surrounded[places] = special_id
            is_text[places] = False
    surrounded[is_text] = ids
    return surrounded, lengths


def _is_held_out(texts: list[bytes], fraction: float) -> NDArray[np.bool_]:
    """Which texts have a hash (the first 8 bytes of BLAKE2b, little-endian) in the lowest `fraction` of its range."""
    if not fraction:
        return np.zeros(len(texts), np.bool_)
    hashes = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(hashes, "<u8") < fraction * 2.0**64


def _tokenizer_record(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer,
    append_eos: bool,
    add_bos: bool | None,
    bos_token: str | None,
    eos_token: str | None,
) -> TokenizerRecord:
    """The tokenizer and the convention for BOS and EOS: by their spelling where given, else the tokenizer's own.

    Raises:
        DataError: a token that the tokenizer does not have, or does not name although it is to be used.
    """
    adds_bos = tokenizer.adds_bos if add_bos is None else add_bos

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
        bos_id=special_id("bos", bos_token, tokenizer.bos_id, adds_bos),
        eos_id=special_id("eos", eos_token, tokenizer.eos_id, append_eos),
        adds_bos=adds_bos,
        adds_eos=append_eos,
    )


def _nothing_in(part: Part, files: Sequence[Path], tally: _Tally) -> DataError:
    if not tally.num_documents:
        return DataError("the input holds no documents with text", where=", ".join(map(str, files)))
    found = f"{tally.num_documents:,} documents"
    return DataError(f"no document falls into the part {part!r}", found=found, hint="Change the share held out.")


def _clear(output: Path, overwrite: bool) -> None:
    """Make room for a build: sweep away what a killed one left, and a finished one only when told to.

    Raises:
        DataError: there are shards of a finished build, or of someone else.
    """
    folders = [folder for folder in (output, output / TRAIN, output / HELD_OUT) if folder.is_dir()]
    for folder in folders:
        is_finished, is_ours = (folder / FILE_NAME).exists(), (folder / _UNFINISHED).exists()
        if is_finished and not overwrite:
            hint = "Choose another folder, or replace it with --overwrite."
            raise DataError("the output folder holds finished shards", where=str(folder), hint=hint)
        if not is_finished and not is_ours and any(_shard_files(folder)):
            hint = "Choose another folder, or remove them."
            raise DataError("the output folder holds shards that no build of ours left", where=str(folder), hint=hint)
    for folder in folders:
        if (folder / FILE_NAME).exists() or (folder / _UNFINISHED).exists():
            _sweep(folder)


def _sweep(folder: Path) -> None:
    """Remove a build from its folder, the manifest first, and the folder if nothing else is in it."""
    for file in (folder / FILE_NAME, *_shard_files(folder), folder / _UNFINISHED):
        file.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _shard_files(folder: Path) -> list[Path]:
    return [file for pattern in _SHARD_FILES for file in folder.glob(pattern)]
