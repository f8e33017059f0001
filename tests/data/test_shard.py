"""The bytes of a shard, what it says of its documents, and what is refused."""

from __future__ import annotations

import os
import pickle
import struct
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megacpt.data import shard as shard_module
from megacpt.data.shard import AtomicFile, Shard, ShardWriter, dtype_for
from megacpt.errors import DataError

DOCUMENTS = [[5, 6, 7], [8], [], [9, 10, 11, 12], [13, 14]]


def write(prefix: Path, documents: list[list[int]], dtype: str = "u2") -> Shard:
    with ShardWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add_document(document)
    return Shard(prefix)


def write_by_hand(
    prefix: Path,
    tokens: list[int],
    lengths: list[int],
    document_indices: list[int],
    *,
    magic: bytes = b"MMIDIDX\0\0",
    version: int = 1,
    code: int = 8,
    pointers: list[int] | None = None,
) -> Path:
    """The two files as Megatron's description has them, spelled out field by field; ids are uint16."""
    starts = [2 * sum(lengths[:at]) for at in range(len(lengths))] if pointers is None else pointers
    index = magic + struct.pack("<QBQQ", version, code, len(lengths), len(document_indices))
    index += struct.pack(f"<{len(lengths)}i", *lengths) + struct.pack(f"<{len(starts)}q", *starts)
    index += struct.pack(f"<{len(document_indices)}q", *document_indices)
    Path(f"{prefix}.idx").write_bytes(index)
    Path(f"{prefix}.bin").write_bytes(struct.pack(f"<{len(tokens)}H", *tokens))
    return prefix


def test_files_are_byte_for_byte_megatrons(tmp_path: Path) -> None:
    write(tmp_path / "ours", DOCUMENTS)
    write_by_hand(tmp_path / "theirs", [*range(5, 15)], [3, 1, 0, 4, 2], [0, 1, 2, 3, 4, 5])
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()


@given(
    st.lists(st.lists(st.integers(0, 250), max_size=6), max_size=30),
    st.sampled_from(["u1", "i2", "u2", "i4", "i8"]),
    st.data(),
)
def test_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], dtype: str, data: st.DataObject
) -> None:
    documents = [[token % 128 for token in document] for document in documents]
    shard = write(tmp_path_factory.mktemp("shard") / "a", documents, dtype)
    tokens = [token for document in documents for token in document]
    starts = [sum(map(len, documents[:at])) for at in range(len(documents) + 1)]
    first = data.draw(st.integers(0, len(tokens)))
    stop = data.draw(st.integers(first, len(tokens)))

    assert shard.num_documents == len(documents)
    assert shard.num_tokens == len(tokens)
    assert shard.dtype == np.dtype(dtype)
    assert shard.read(first, stop - first).tolist() == tokens[first:stop]
    assert shard.document_offsets().tolist() == starts
    expected = sorted({start for start, document in zip(starts, documents, strict=False) if document})
    assert shard.document_starts(first, stop).tolist() == [start for start in expected if first <= start < stop]
    shard.verify(vocab_size=128)


def test_a_document_may_be_several_sequences(tmp_path: Path) -> None:
    shard = Shard(write_by_hand(tmp_path / "a", [*range(10)], [2, 3, 0, 1, 4], [0, 2, 3, 5, 5]))
    assert shard.num_documents == 4
    assert shard.document_offsets().tolist() == [0, 5, 5, 10, 10]
    assert shard.document_offsets(1, 3).tolist() == [5, 5, 10]
    assert shard.document_starts(0, 10).tolist() == [0, 5]
    shard.verify()


def test_documents_added_together_equal_documents_added_singly(tmp_path: Path) -> None:
    write(tmp_path / "single", DOCUMENTS)
    with ShardWriter(tmp_path / "together", "u2") as writer:
        writer.add_documents(np.arange(5, 15), [3, 1, 0, 4, 2])
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"single.{suffix}").read_bytes() == (tmp_path / f"together.{suffix}").read_bytes()


LENGTHS = st.integers(0, 6)


@given(
    documents=st.lists(st.lists(LENGTHS, min_size=1, max_size=1), max_size=30)
    | st.lists(st.lists(LENGTHS, max_size=3)),
    ranges=st.lists(st.tuples(st.integers(0, 180), st.integers(0, 20)), max_size=30),
)
@example(documents=[[2], [3], []], ranges=[(0, 5), (1, 3)])
def test_many_ranges_are_found_as_each_alone(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], ranges: list[tuple[int, int]]
) -> None:
    lengths = [length for document in documents for length in document]
    first_sequences = [sum(map(len, documents[:at])) for at in range(len(documents) + 1)]
    prefix = tmp_path_factory.mktemp("shard") / "a"
    shard = Shard(write_by_hand(prefix, [7] * sum(lengths), lengths, first_sequences))
    starts = np.array([min(start, shard.num_tokens) for start, _ in ranges], dtype=np.int64)
    stops = np.minimum(starts + np.array([length for _, length in ranges], dtype=np.int64), shard.num_tokens)
    offsets, counts = shard.document_starts_many(starts, stops)
    begins = {sum(map(sum, documents[:at])) for at, document in enumerate(documents) if any(document)}
    expected = [sorted(d for d in begins if start <= d < stop) for start, stop in zip(starts, stops, strict=True)]
    assert offsets.tolist() == [offset for each in expected for offset in each]
    assert counts.tolist() == [len(each) for each in expected]


@pytest.mark.parametrize("long_tokens", [1, 50_000, 3_000_000])
def test_documents_beside_one_of_many_times_the_mean_length_are_found(tmp_path: Path, long_tokens: int) -> None:
    lengths = np.random.default_rng(0).integers(0, 20, 8000)
    lengths[[17, 4000, 4001]] = long_tokens
    with ShardWriter(tmp_path / "a", "u1") as writer:
        writer.add_documents(np.zeros(lengths.sum(), np.uint8), lengths)
    starts = np.random.default_rng(1).integers(0, lengths.sum() - 64, 2000)
    offsets, counts = Shard(tmp_path / "a").document_starts_many(starts, starts + 64)
    begins = np.unique(np.cumsum(lengths[:-1]))
    first, last = np.searchsorted(begins, starts), np.searchsorted(begins, starts + 64)
    assert counts.tolist() == (last - first).tolist()
    assert offsets.tolist() == [begin for one, other in zip(first, last, strict=True) for begin in begins[one:other]]


def test_few_shards_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_module, "_open", lru_cache(maxsize=3)(shard_module._OpenShard))
    shards = [write(tmp_path / f"{number}", [[number, number + 1]]) for number in range(40)]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert [shard.read(0, 2).tolist() for shard in shards] == [[n, n + 1] for n in range(40)]
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * 3


def test_a_file_that_shrinks_under_a_run_is_named(tmp_path: Path) -> None:
    shard = write(tmp_path / "a", DOCUMENTS)
    os.truncate(tmp_path / "a.bin", 6)
    with pytest.raises(DataError, match=r"a\.bin: the shard became shorter while it was read"):
        shard.read(0, 10)


def test_a_digest_tells_shards_apart(tmp_path: Path) -> None:
    digest = write(tmp_path / "a", DOCUMENTS).digest()
    assert write(tmp_path / "same", DOCUMENTS).digest() == digest
    assert write(tmp_path / "other", DOCUMENTS[::-1]).digest() != digest
    assert write(tmp_path / "longer", [*DOCUMENTS, [1]]).digest() != digest


def test_a_pickled_shard_is_its_path(tmp_path: Path) -> None:
    shard = write(tmp_path / "a", [[1] * 10_000])
    pickled = pickle.dumps(shard)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).read(0, 10_000).tolist() == [1] * 10_000


def test_reads_outside_the_shard_are_refused(tmp_path: Path) -> None:
    shard = write(tmp_path / "a", DOCUMENTS)
    with pytest.raises(IndexError):
        shard.read(8, 3)
    with pytest.raises(IndexError):
        shard.document_starts(-1, 3)


def test_nothing_has_its_name_before_close(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "a", "u2")
    writer.add_document([1, 2, 3])
    assert not (tmp_path / "a.bin").exists()
    assert not (tmp_path / "a.idx").exists()
    writer.close()
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "a.idx"]


@pytest.mark.parametrize("num_bytes", [1, 1 << 20], ids=["buffered", "not buffered"])
def test_a_full_disk_is_named_and_nothing_left(num_bytes: int, tmp_path: Path) -> None:
    file = AtomicFile(tmp_path / "a")
    file._file.close()
    file._file = Path("/dev/full").open("wb")  # noqa: SIM115
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/a'"), file:
        file.write(bytes(num_bytes))
    assert not list(tmp_path.iterdir())


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "a", "u2") as writer:
        writer.add_document([1, 2, 3])
        raise RuntimeError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_499, "<u2"), (65_500, "<i4"), (128_256, "<i4")])
def test_dtype_follows_the_vocabulary(vocab_size: int, dtype: str) -> None:
    assert dtype_for(vocab_size) == np.dtype(dtype)


@pytest.mark.parametrize("ids", [[65_536], [-1]])
def test_ids_that_do_not_fit_the_dtype_are_refused(tmp_path: Path, ids: list[int]) -> None:
    writer = ShardWriter(tmp_path / "a", "u2")
    with pytest.raises(DataError, match="does not fit the shard's dtype"):
        writer.add_document(ids)
    writer.discard()


def test_a_dtype_that_holds_no_ids_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot store this dtype"):
        ShardWriter(tmp_path / "a", "f4")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_a_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "a", DOCUMENTS)
    (tmp_path / f"a.{suffix}").unlink()
    with pytest.raises(DataError, match=rf"a\.{suffix}: half of the shard is missing"):
        Shard(tmp_path / "a")


@pytest.mark.parametrize(("size_bytes", "fault"), [(19, "is cut short"), (0, "is cut short"), (22, "is longer than")])
def test_the_size_of_the_bin_is_held_against_the_index(tmp_path: Path, size_bytes: int, fault: str) -> None:
    write(tmp_path / "a", DOCUMENTS)
    os.truncate(tmp_path / "a.bin", size_bytes)
    with pytest.raises(DataError, match=rf"{fault}.*found {size_bytes} bytes, expected 20"):
        Shard(tmp_path / "a")


def test_an_index_cut_short_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", DOCUMENTS)
    os.truncate(tmp_path / "a.idx", 100)
    with pytest.raises(DataError, match="the index is cut short"):
        Shard(tmp_path / "a")


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        ({"magic": b"NOTMAGIC\0"}, "no IndexedDataset index"),
        ({"version": 2}, "another format version"),
        ({"code": 42}, "unknown dtype code"),
        ({"code": 7}, "holds no token ids"),
    ],
)
def test_a_header_that_is_not_ours_is_refused(tmp_path: Path, header: dict[str, object], fault: str) -> None:
    write_by_hand(tmp_path / "a", [1, 2, 3], [3], [0, 1], **header)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=fault):
        Shard(tmp_path / "a")


@pytest.mark.parametrize("document_indices", [[], [0], [0, 1], [1, 2], [0, 3]])
def test_documents_must_cover_the_sequences(tmp_path: Path, document_indices: list[int]) -> None:
    with pytest.raises(DataError, match="documents do not cover the sequences"):
        Shard(write_by_hand(tmp_path / "a", [1, 2, 3], [2, 1], document_indices))


def test_verify_finds_a_pointer_that_skips(tmp_path: Path) -> None:
    shard = Shard(write_by_hand(tmp_path / "a", [1, 2, 3, 4], [1, 1, 2], [0, 1, 2, 3], pointers=[0, 0, 4]))
    with pytest.raises(DataError, match="sequence 1 does not begin where the one before it ends"):
        shard.verify()


def test_verify_finds_falling_document_indices(tmp_path: Path) -> None:
    shard = Shard(write_by_hand(tmp_path / "a", [1, 2, 3], [1, 1, 1], [0, 2, 1, 3]))
    with pytest.raises(DataError, match="document 1 ends before it begins"):
        shard.verify()


def test_verify_finds_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    shard = write(tmp_path / "a", DOCUMENTS)
    shard.verify(vocab_size=15)
    with pytest.raises(DataError, match=r"outside the vocabulary .found 14, expected 0 to 13"):
        shard.verify(vocab_size=14)
    with pytest.raises(DataError, match="found -3"):
        write(tmp_path / "b", [[1, -3]], "i4").verify()


def test_megatron_reads_ours_and_we_read_megatrons(tmp_path: Path) -> None:
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    import torch

    ours = write(tmp_path / "ours", DOCUMENTS, "i4")
    theirs = megatron.IndexedDataset(str(tmp_path / "ours"))
    assert [sequence.tolist() for sequence in theirs[:]] == DOCUMENTS
    assert theirs.document_indices.tolist() == [0, 1, 2, 3, 4, 5]

    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.int32)
    for document in DOCUMENTS:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()

    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "sentences.bin"), dtype=np.uint16)
    builder.add_document(torch.arange(5), [2, 3])
    builder.add_document(torch.arange(5, 9), [1, 1, 2])
    builder.finalize(str(tmp_path / "sentences.idx"))
    sentences = Shard(tmp_path / "sentences")
    assert sentences.document_offsets().tolist() == [0, 5, 9]
    assert sentences.read(0, 9).tolist() == [*range(9)]
    assert ours.num_tokens == 10
