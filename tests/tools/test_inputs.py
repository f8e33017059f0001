"""Every format gives the same documents, wherever blocks are cut, and a fault is named by file and line."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from megacpt.errors import DataError
from megacpt_tools import inputs
from megacpt_tools.inputs import Block, DocumentBorder, find_inputs, other_files, read_blocks

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


def blocks_of(path: Path | str, border: DocumentBorder = "file") -> list[Block]:
    return [block for source in find_inputs([path]) for block in read_blocks(source, "text", border, ["id"])]


def read(path: Path | str, border: DocumentBorder = "file") -> list[str]:
    return [text for block in blocks_of(path, border) for text in block.documents("text").texts]


def faults(path: Path, border: DocumentBorder = "file") -> list[str]:
    """Every line that cannot be read, by its place in the file, and what is wrong with it."""
    found = []
    num_lines = 0
    for block in blocks_of(path, border):
        documents = block.documents("text")
        found += [f"{block.where(num_lines, fault.line)}: {fault.message}, {fault.found}" for fault in documents.faults]
        num_lines += documents.num_lines
    return found


@pytest.mark.parametrize("block_bytes", [1, 40, 1 << 20])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_documents(
    name: str, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", block_bytes)
    WRITERS[name](tmp_path / name)
    assert read(tmp_path / name) == TEXTS
    ids = [block.documents("text", ["id", "none"]).columns for block in blocks_of(tmp_path / name)]
    assert [number for columns in ids for number in columns["id"]] == [*range(len(TEXTS))]
    assert {value for columns in ids for value in columns["none"]} == {None}


def test_progress_reaches_the_end_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 40)
    for name, write in WRITERS.items():
        write(tmp_path / name)
        positions = [block.end for block in blocks_of(tmp_path / name)]
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
        (b'{"text": "torn', r"the line is not JSON, .*, column \d+"),
        (b"[1, 2]", "the line is no JSON object, list"),
        (b'{"id": 1, "body": "x"}', "the line has no key 'text', id, body"),
        (b'{"text": null}', "'text' is not text, null"),
    ],
)
def test_a_faulty_line_is_named_by_its_number(
    line: bytes, fault: str, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", block_bytes)
    (tmp_path / "a.jsonl").write_bytes(LINES + b"\n" + line + b"\n" + LINES)
    (found,) = faults(tmp_path / "a.jsonl")
    assert re.fullmatch(rf".*a\.jsonl:{len(TEXTS) + 2}: {fault}", found)
    assert read(tmp_path / "a.jsonl") == TEXTS + TEXTS


def test_the_line_of_a_document_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n" + LINES)
    (block,) = blocks_of(tmp_path / "a.jsonl")
    assert block.where(10, block.line(TEXTS[2], 2, "text")).endswith("a.jsonl:14")
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo\n")
    (block,) = blocks_of(tmp_path / "a.txt", "blank-line")
    assert block.line("two", 1, "text") == 2


def test_a_parquet_row_without_text_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["x", "y", None])
    assert faults(tmp_path / "a.parquet") == [f"{tmp_path}/a.parquet, row 3: 'text' is not text, None"]
    assert read(tmp_path / "a.parquet") == ["x", "y"]
    stored = pyarrow.array([b"x", "caf\xe9".encode("latin1"), b"y"], pyarrow.binary())
    claimed = pyarrow.Array.from_buffers(pyarrow.string(), 3, stored.buffers())
    parquet.write_table(pyarrow.table({"id": range(3), "text": claimed}), tmp_path / "a.parquet")
    (found,) = faults(tmp_path / "a.parquet")
    assert found.startswith(f"{tmp_path}/a.parquet, row 2: the text is not UTF-8, 0xe9")
    assert read(tmp_path / "a.parquet") == ["x", "y"]


def test_blocks_of_rows_are_bounded_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent to a worker is a part of the rows that were read, not all of them."""
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 4000)
    texts = [chr(ord("a") + number) * 1000 for number in range(16)]
    write_parquet(tmp_path / "a.parquet", [*texts])
    for path in (tmp_path / "a.parquet", f"hf-dataset:{tmp_path}"):
        blocks = blocks_of(path)
        assert [text for block in blocks for text in block.documents("text").texts] == texts
        assert max(len(pickle.dumps(block)) for block in blocks) < 6000


def test_a_parquet_file_without_the_column_says_which_it_has(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["x"])
    with pytest.raises(DataError, match=r"no column 'body' .found id, text.\. Name the column"):
        list(read_blocks(find_inputs([tmp_path / "a.parquet"])[0], "body", "file"))


def test_text_that_is_not_utf8_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo \xff\n")
    assert faults(tmp_path / "a.txt") == [f"{tmp_path}/a.txt:2: the text is not UTF-8, 0xff, byte 5 of the line"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_cut_short_is_refused(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-20])
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        read(tmp_path / name)


@pytest.mark.parametrize("documents", ["file", "blank-line"])
def test_a_document_too_large_is_refused(
    documents: DocumentBorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 8)
    monkeypatch.setattr(inputs, "MAX_DOCUMENT_BYTES", 64)
    (tmp_path / "a.txt").write_bytes(b"a line of text\n" * 10)
    with pytest.raises(DataError, match="too large to be tokenized"):
        read(tmp_path / "a.txt", documents)


@pytest.mark.parametrize("block_bytes", [1, 40, 1 << 20])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_line_too_large_is_named_and_left_out(
    name: str, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(inputs, "MAX_DOCUMENT_BYTES", 256)
    WRITERS[name](tmp_path / name)  # the fifth document has 300 bytes
    (found,) = faults(tmp_path / name)
    assert re.search(r"(:|, row )5: the document is too large to be tokenized, more than", found)
    assert read(tmp_path / name) == [text for text in TEXTS if len(text) < 256]
    assert read(tmp_path / name)[-1] == "last"


def test_a_folder_stands_for_its_files_in_order(tmp_path: Path) -> None:
    hidden = (".cache/x.jsonl", "sub/.ipynb_checkpoints/b.jsonl", ".y.txt")
    for name in ("b.jsonl", "a.txt", "sub/c.parquet", "sub/ignored.csv", "d.jsonl.gz", "e.tar.gz", *hidden):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_inputs([tmp_path / "b.jsonl", tmp_path])
    assert [str(Path(source.path).relative_to(tmp_path)) for source in found] == [
        "b.jsonl",
        "a.txt",
        "b.jsonl",
        "d.jsonl.gz",
        "sub/c.parquet",
    ]
    assert other_files([tmp_path]) == {".csv": 1, ".gz": 1}


def test_links_in_a_folder_are_followed_once(tmp_path: Path) -> None:
    for folder in ("corpus/a", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "b.jsonl").touch()
    for link, target in (("loop", "corpus"), ("linked", "elsewhere"), ("twice", "elsewhere")):
        (tmp_path / "corpus/a" / link).symlink_to(tmp_path / target)
    found = [str(Path(source.path).relative_to(tmp_path / "corpus/a")) for source in find_inputs([tmp_path / "corpus"])]
    assert found == ["b.jsonl", "linked/b.jsonl"]


def test_inputs_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling/a.jsonl").symlink_to("gone.jsonl")
    latin1 = os.fsdecode(b"caf\xe9.jsonl")
    (tmp_path / latin1).touch()
    for path, fault in (
        ("nowhere.jsonl", "no such input file"),
        ("a.csv", "kind of file is unknown"),
        ("empty", "the folder holds no input files"),
        ("dangling", r"dangling/a\.jsonl: the link leads nowhere .found gone\.jsonl"),
        ("dangling/*", "the link leads nowhere"),
        (latin1, r"caf\\xe9\.jsonl: the name of a file is not UTF-8"),
    ):
        with pytest.raises(DataError, match=fault):
            find_inputs([tmp_path / path])


@pytest.mark.parametrize("block_bytes", range(1, 40))
def test_byte_ranges_cover_every_line_once(block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", block_bytes)
    texts = ["", "a", "bc" * 20, "d", ""]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(["", *(json.dumps({"text": text}) for text in texts), "", ""]))
    assert read(path) == texts
    assert sum(block.documents("text").num_lines for block in blocks_of(path)) == len(texts) + 2


def test_patterns_and_urls_stand_for_files(tmp_path: Path) -> None:
    import fsspec

    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        WRITERS[name](tmp_path / name)
        with fsspec.open(f"memory://{tmp_path.name}/{name}", "wb") as file:
            file.write((tmp_path / name).read_bytes())
    assert read(f"{tmp_path}/*.jsonl*") == TEXTS * 2
    assert read(f"memory://{tmp_path.name}/*.jsonl") == TEXTS
    assert read(f"memory://{tmp_path.name}") == TEXTS * 3
    for name in (".cache/a.jsonl", "sub/b.jsonl"):
        with fsspec.open(f"memory://{tmp_path.name}/{name}", "wb") as file:
            file.write(LINES)
    assert read(f"memory://{tmp_path.name}") == TEXTS * 4
    assert read(f"memory://{tmp_path.name}/sub/**") == TEXTS
    with pytest.raises(DataError, match="no input files here"):
        find_inputs([f"memory://{tmp_path.name}/*.txt"])
    with pytest.raises(DataError, match=r"nosuch://x: the URL cannot be read"):
        find_inputs(["nosuch://x"])


def test_the_errors_of_a_store_name_the_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def fail(*_: object) -> None:
        raise LookupError("no such bucket\nand much more")

    url = f"memory://{tmp_path.name}/a.jsonl"
    with fsspec.open(url, "wb") as file:
        file.write(LINES)
    (source,) = find_inputs([url])
    monkeypatch.setattr(fsspec, "open", fail)
    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(DataError, match=r"a\.jsonl: the URL cannot be read .found no such bucket\)"):
        find_inputs([url])
    with pytest.raises(DataError, match=r"a\.jsonl: the URL cannot be read .found no such bucket\)"):
        [block.documents("text") for block in read_blocks(source, "text", "file")]


def test_a_dataset_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes a folder of parquet files for a dataset, as it does a repository of the hub."""
    write_parquet(tmp_path / "train.parquet", [*TEXTS])
    write_parquet(tmp_path / "validation.parquet", ["v"])
    assert read(f"hf-dataset:{tmp_path}") == TEXTS
    assert read(f"hf-dataset:{tmp_path}::validation") == ["v"]
    (block,) = blocks_of(f"hf-dataset:{tmp_path}")
    assert block.documents("text", ["id"]).columns == {"id": [*range(len(TEXTS))]}
    for name, fault in ((f"{tmp_path}::test", "the dataset cannot be read"), ("a:b:c:d", "names no dataset")):
        with pytest.raises(DataError, match=fault):
            read(f"hf-dataset:{name}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"the package for datasets of the hub is missing .*pip install"):
        read(f"hf-dataset:{tmp_path}")
