"""What a folder of shards says about itself, and what is found when it lies."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from megacpt.data.manifest import (
    Manifest,
    ShardRecord,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
    read_manifest,
    verify,
)
from megacpt.data.shard import ShardWriter
from megacpt.errors import DataError


def tokenizer_record(**changes: object) -> TokenizerRecord:
    fields = {
        "kind": "huggingface",
        "name": "somewhere/tokenizer.json",
        "fingerprint": "f" * 64,
        "vocab_size": 100,
        "bos_id": None,
        "eos_id": 0,
        "adds_bos": False,
        "adds_eos": True,
    }
    return TokenizerRecord.model_validate(fields | changes)


def write_folder(folder: Path, shards: list[list[list[int]]], **tokenizer: object) -> Manifest:
    """A folder of uint16 shards with its manifest; a document counts 3 bytes a token."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number, documents in enumerate(shards):
        with ShardWriter(folder / f"shard_{number}", "u2") as writer:
            for document in documents:
                writer.add_document(document)
        records.append(
            ShardRecord(
                file=f"shard_{number}",
                documents=writer.num_documents,
                tokens=writer.num_tokens,
                bytes=3 * writer.num_tokens,
                bin_sha256=writer.bin_sha256,
                idx_sha256=writer.idx_sha256,
            )
        )
    manifest = Manifest(
        tokenizer=tokenizer_record(**tokenizer),
        dtype="uint16",
        documents=sum(record.documents for record in records),
        tokens=sum(record.tokens for record in records),
        bytes=sum(record.bytes for record in records),
        shards=tuple(records),
        sources=(SourceRecord(path="a.jsonl", bytes=10, documents=3, empty_documents=1),),
        split=SplitRecord(part="train", held_out_fraction=0.01, held_out_max_documents=None),
    )
    manifest.write(folder)
    return manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "shards", [[[1, 2], [3]], [[4, 5, 6]]])
    return tmp_path / "shards"


def edit(folder: Path, *keys: str | int, value: object) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    section = manifest
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    path.write_text(json.dumps(manifest))


def test_reads_what_was_written(tmp_path: Path) -> None:
    manifest = write_folder(tmp_path, [[[1]]])
    assert read_manifest(tmp_path) == manifest
    assert sorted(os.listdir(tmp_path)) == ["manifest.json", "shard_0.bin", "shard_0.idx"]


def test_a_sound_folder_verifies_shard_by_shard(folder: Path) -> None:
    seen: list[str] = []
    manifest = verify(folder, on_shard=lambda shard: seen.append(shard.file))
    assert seen == ["shard_0", "shard_1"]
    assert manifest.tokens == 6


def test_checksums_are_those_of_the_files(folder: Path) -> None:
    for record in read_manifest(folder).shards:
        assert record.bin_sha256 == hashlib.sha256((folder / f"{record.file}.bin").read_bytes()).hexdigest()
        assert record.idx_sha256 == hashlib.sha256((folder / f"{record.file}.idx").read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_verify_finds_a_changed_byte(folder: Path, suffix: str) -> None:
    path = folder / f"shard_1.{suffix}"
    content = bytearray(path.read_bytes())
    content[-1 if suffix == "bin" else -8] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"shard_1\.{suffix}"):
        verify(folder)


def test_verify_finds_ids_outside_the_tokenizer(tmp_path: Path) -> None:
    write_folder(tmp_path, [[[98, 99, 100]]])
    with pytest.raises(DataError, match="outside the vocabulary"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("keys", "value", "fault"),
    [
        (("shards", 1, "tokens"), 4, "shard shard_1: tokens: .*found 3 in the shards, expected 4 in the manifest"),
        (("shards", 0, "documents"), 1, "shard shard_0: documents"),
        (("dtype",), "int32", "shard shard_0: dtype"),
        (("tokens",), 7, "json: tokens"),
        (("bytes",), 1, "json: bytes"),
    ],
)
def test_a_manifest_that_contradicts_the_files_is_refused(
    folder: Path, keys: tuple[str | int, ...], value: object, fault: str
) -> None:
    edit(folder, *keys, value=value)
    with pytest.raises(DataError, match=fault):
        read_manifest(folder).open_shards(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "shard_1.bin").unlink()
    with pytest.raises(DataError, match=r"shard_1\.bin: half of the shard is missing"):
        read_manifest(folder).open_shards(folder)


@pytest.mark.parametrize(
    ("keys", "value", "fault"),
    [
        (("format_version",), 2, "format_version"),
        (("shards", 0, "tokens"), -1, r"shards\.0\.tokens"),
        (("surprise",), 1, "surprise"),
    ],
)
def test_a_key_that_cannot_be_read_is_named(
    folder: Path, keys: tuple[str | int, ...], value: object, fault: str
) -> None:
    edit(folder, *keys, value=value)
    with pytest.raises(DataError, match=fault):
        read_manifest(folder)


def test_a_file_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="no manifest of shards"):
        read_manifest(folder)


def test_a_folder_without_manifest_says_what_that_means(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.json.*did not finish"):
        read_manifest(tmp_path)
    write_folder(tmp_path / "train", [[[1]]])
    with pytest.raises(DataError, match=r"Give one of its parts: .*train"):
        read_manifest(tmp_path)
