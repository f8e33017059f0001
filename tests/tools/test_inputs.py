"""Every format gives the same documents, wherever blocks are cut, and a fault is named by file and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from megacpt.errors import DataError
from megacpt_tools import inputs
from megacpt_tools.inputs import Documents, find_inputs, read_blocks

TEXTS = ["one\ntwo", "drei - ü 心", "", 'quote " and \\', "x" * 300, "last"]
LINES = "".join(json.dumps({"id": at, "text": text}) + "\n" for at, text in enumerate(TEXTS)).encode()


def write_parquet(path: Path, texts: list[str | None]) -> None:
    parquet.write_table(pyarrow.table({"id": range(len(texts)), "text": texts}), path, row_group_size=4)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.ndjson": lambda path: path.write_bytes(LINES.rstrip(b"\n")),
    "crlf.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n")),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES[:50]) + gzip.compress(LINES[50:])),
    "a.jsonl.zst": lambda path: path.write_bytes(zstandard.compress(LINES[:50]) + zstandard.compress(LINES[50:])),
    "a.parquet": lambda path: write_parquet(path, [*TEXTS]),
}


def read(path: Path, documents: Documents = "file") -> list[str]:
    return [text for block in read_blocks(path, "text", documents) for text in block.texts("text")]


@pytest.mark.parametrize("block_bytes", [1, 40, 1 << 20])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_documents(
    name: str, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", block_bytes)
    WRITERS[name](tmp_path / name)
    assert read(tmp_path / name) == TEXTS


def test_progress_reaches_the_end_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 40)
    for name, write in WRITERS.items():
        write(tmp_path / name)
        positions = [block.position_bytes for block in read_blocks(tmp_path / name, "text", "file")]
        assert positions == sorted(positions)
        assert positions[-1] == (tmp_path / name).stat().st_size


def test_plain_text_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "a.md.gz").write_bytes(gzip.compress(b"# three\n"))
    assert read(tmp_path / "a.txt") == ["one\n\ntwo\n"]
    assert read(tmp_path / "a.md.gz") == ["# three\n"]


@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
def test_blank_lines_part_documents(block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", block_bytes)
    (tmp_path / "a.txt").write_bytes(b" \t\n\none\ntwo\r\n\r\n \n\nthree\n   \n four\n\n\n\n")
    assert read(tmp_path / "a.txt", "blank-line") == ["one\ntwo", "three", " four"]


@pytest.mark.parametrize("block_bytes", [1, 40, 1 << 20])
@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"text": "torn', r"the line is not JSON .found .*, column \d+"),
        (b"[1, 2]", "the line is no JSON object .found list"),
        (b'{"id": 1, "body": "x"}', "the line has no key 'text' .found id, body"),
        (b'{"text": null}', "'text' is not text .found b'null'"),
    ],
)
def test_a_faulty_line_is_named_by_its_number(
    line: bytes, fault: str, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", block_bytes)
    (tmp_path / "a.jsonl").write_bytes(LINES + b"\n" + line + b"\n" + LINES)
    with pytest.raises(DataError, match=rf"a\.jsonl:{len(TEXTS) + 2}: {fault}"):
        read(tmp_path / "a.jsonl")


def test_where_names_the_line_of_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n" + LINES)
    (block,) = read_blocks(tmp_path / "a.jsonl", "text", "file")
    assert block.where(2).endswith("a.jsonl:4")


def test_a_parquet_row_without_text_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["x", "y", None])
    with pytest.raises(DataError, match=r"a\.parquet, row 3: 'text' is not text"):
        read(tmp_path / "a.parquet")


def test_a_parquet_file_without_the_column_says_which_it_has(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["x"])
    with pytest.raises(DataError, match=r"no column 'body' .found id, text.\. Name the column"):
        list(read_blocks(tmp_path / "a.parquet", "body", "file"))


def test_text_that_is_not_utf8_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo \xff\n")
    with pytest.raises(DataError, match=r"a\.txt:2: the text is not UTF-8 .found byte 0xff"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_cut_short_is_refused(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-20])
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        read(tmp_path / name)


@pytest.mark.parametrize("documents", ["file", "blank-line"])
def test_a_document_too_large_is_refused(documents: Documents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 8)
    monkeypatch.setattr(inputs, "MAX_DOCUMENT_BYTES", 64)
    (tmp_path / "a.txt").write_bytes(b"a line of text\n" * 10)
    with pytest.raises(DataError, match="too large to be tokenized"):
        read(tmp_path / "a.txt", documents)


def test_a_folder_stands_for_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.txt", "sub/c.parquet", "sub/ignored.csv", "d.jsonl.gz", "e.tar.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_inputs([tmp_path / "b.jsonl", tmp_path])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "b.jsonl",
        "a.txt",
        "b.jsonl",
        "d.jsonl.gz",
        "sub/c.parquet",
    ]


def test_inputs_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    for path, fault in (
        ("nowhere.jsonl", "no such input file"),
        ("a.csv", "kind of file is unknown"),
        (".", "no input"),
    ):
        with pytest.raises(DataError, match=fault):
            find_inputs([tmp_path / path])
