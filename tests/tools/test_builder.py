"""The build: the same bytes for any number of workers, every document once, and no half build that looks whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from megacpt.data.corpus import open_corpus
from megacpt.data.manifest import EngineRecord, Manifest, verify
from megacpt.data.view import Subset, select
from megacpt.errors import DataError
from megacpt_tools import builder, inputs
from megacpt_tools.builder import BlockTokenizer, BuildOptions, BuildProgress, build_shards, join_slices
from megacpt_tools.fast_tokenizers import FastokensTokenizer
from megacpt_tools.tokenizer import HuggingFaceTokenizer, open_tokenizer
from tests.tools.conftest import TEXTS

MANY = [f"{text} {number}" for number in range(40) for text in TEXTS]


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "number": at}) + "\n" for at, text in enumerate(texts)))
    return path


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of many tiny shards spend their time in fsync, and no test here cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "input.jsonl", MANY)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def documents_of(folder: Path) -> list[list[int]]:
    corpus = open_corpus(folder)
    starts = [*corpus.document_starts(0, corpus.num_tokens), corpus.num_tokens]
    return [corpus.read(int(start), int(end - start)).tolist() for start, end in pairwise(starts)]


def texts_of(folder: Path, tokenizer: Path) -> list[str]:
    """The documents as text, without the EOS that ends each."""
    opened = open_tokenizer(tokenizer)
    return [opened.decode(document[:-1]) for document in documents_of(folder)]


@pytest.mark.parametrize(
    ("kind", "dtype"), [("bpe_folder", "uint16"), ("sentencepiece_model", "uint16"), ("llama3_ranks", "int32")]
)
def test_documents_are_the_tokenizers_ids_between_bos_and_eos(
    kind: str, dtype: str, tmp_path: Path, jsonl: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(kind)
    manifest = build_shards([jsonl], path, tmp_path / "out")["train"]
    tokenizer = open_tokenizer(path)
    ids, lengths = tokenizer.encode(MANY)
    bos = [tokenizer.bos_id] if tokenizer.adds_bos else []
    texts = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
    assert documents_of(tmp_path / "out") == [[*bos, *text, tokenizer.eos_id] for text in texts]
    assert manifest.dtype == dtype
    assert manifest.bytes == sum(len(text.encode()) for text in MANY)
    assert manifest.tokenizer.fingerprint == tokenizer.fingerprint
    assert verify(tmp_path / "out") == manifest


def test_output_does_not_depend_on_workers(
    tmp_path: Path, jsonl: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 500)
    (tmp_path / "second.txt").write_text("another file\n")
    for num_workers in (1, 2):
        build_shards(
            [jsonl, tmp_path / "second.txt"],
            bpe_folder,
            tmp_path / f"with_{num_workers}",
            num_workers=num_workers,
            max_tokens_per_shard=700,
            held_out_fraction=0.2,
        )
    assert len(contents(tmp_path / "with_1")) > 10
    assert contents(tmp_path / "with_1") == contents(tmp_path / "with_2")


def test_output_does_not_depend_on_where_blocks_are_cut(
    tmp_path: Path, jsonl: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for block_bytes in (40, 500, 1 << 20):
        monkeypatch.setattr(inputs, "BLOCK_BYTES", block_bytes)
        build_shards([jsonl], bpe_folder, tmp_path / str(block_bytes), max_tokens_per_shard=700)
    assert contents(tmp_path / "40") == contents(tmp_path / "500") == contents(tmp_path / str(1 << 20))


def test_shards_are_cut_before_the_document_that_would_not_fit(tmp_path: Path, bpe_folder: Path) -> None:
    tokenizer = open_tokenizer(bpe_folder)
    texts = ["a", "heart " * 50, "a", "a", "a"]
    tokens = [len(tokenizer.encode([text])[0]) + 1 for text in texts]
    assert tokens[1] > 6 and tokens[0] == 2
    manifest = build_shards(
        [write_lines(tmp_path / "a.jsonl", texts)], bpe_folder, tmp_path / "out", max_tokens_per_shard=4
    )["train"]
    assert [shard.tokens for shard in manifest.shards] == [2, tokens[1], 4, 2]
    assert [shard.bytes for shard in manifest.shards] == [1, 300, 2, 1]


def test_bos_and_eos_can_be_chosen(tmp_path: Path, bpe_folder: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", ["a"])
    (a,), _ = open_tokenizer(bpe_folder).encode(["a"])

    def build(name: str, **choices: object) -> tuple[list[list[int]], Manifest]:
        manifests = build_shards([source], bpe_folder, tmp_path / name, **choices)  # type: ignore[arg-type]
        return documents_of(tmp_path / name), manifests["train"]

    assert build("default")[0] == [[a, 0]]
    assert build("bare", append_eos=False)[0] == [[a]]
    documents, manifest = build("both", add_bos=True, bos_token="<|begin|>", eos_token="<|begin|>")
    assert documents == [[1, a, 1]]
    record = manifest.tokenizer
    assert (record.adds_bos, record.bos_id, record.adds_eos, record.eos_id) == (True, 1, True, 1)
    with pytest.raises(DataError, match=r"does not say which token is BOS.*--bos-token.*--no-add-bos"):
        build("none", add_bos=True)
    with pytest.raises(DataError, match="no token '</s>'"):
        build("wrong", eos_token="</s>")
    assert not (tmp_path / "none").exists()


def test_documents_without_text_are_left_out_and_counted(tmp_path: Path, bpe_folder: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", ["a", "", " \n", "b"])
    second = write_lines(tmp_path / "b.jsonl", [])
    manifest = build_shards([first, second], bpe_folder, tmp_path / "out")["train"]
    assert manifest.documents == 2
    assert [(source.documents, source.empty_documents) for source in manifest.sources] == [(4, 2), (0, 0)]
    assert texts_of(tmp_path / "out", bpe_folder) == ["a", "b"]


@pytest.mark.parametrize("texts", [[], ["", " "]])
def test_input_without_documents_is_refused(texts: list[str], tmp_path: Path, bpe_folder: Path) -> None:
    source = write_lines(tmp_path / "empty.jsonl", texts)
    with pytest.raises(DataError, match=r"empty\.jsonl: the input holds no documents"):
        build_shards([source], bpe_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_split_is_by_the_text_alone(tmp_path: Path, jsonl: Path, bpe_folder: Path) -> None:
    build_shards([jsonl], bpe_folder, tmp_path / "all")
    build_shards([jsonl], bpe_folder, tmp_path / "split", held_out_fraction=0.2)
    turned = write_lines(tmp_path / "turned.jsonl", [*reversed(MANY), *MANY])
    build_shards([turned], bpe_folder, tmp_path / "turned", held_out_fraction=0.2)
    parts = {part: texts_of(tmp_path / "split" / part, bpe_folder) for part in ("train", "held_out")}

    assert sorted(parts["train"] + parts["held_out"]) == sorted(texts_of(tmp_path / "all", bpe_folder))
    assert 0.1 < len(parts["held_out"]) / len(MANY) < 0.3
    for part, texts in parts.items():
        assert set(texts_of(tmp_path / "turned" / part, bpe_folder)) == set(texts)
        assert (verify(tmp_path / "split" / part).split or pytest.fail()).part == part


@pytest.mark.parametrize("held_out_by", ["text_hash", "text"])
def test_a_split_of_finished_shards_is_that_of_a_build(
    tmp_path: Path, jsonl: Path, bpe_folder: Path, held_out_by: str
) -> None:
    build_shards([jsonl], bpe_folder, tmp_path / "split", held_out_fraction=0.2)
    build_shards([jsonl], bpe_folder, tmp_path / "whole", keep_columns=(held_out_by,))
    corpus = open_corpus(tmp_path / "whole")
    for part in ("train", "held_out"):
        built = open_corpus(tmp_path / "split" / part)
        subset = Subset(held_out_share=0.2, held_out_by=held_out_by, is_held_out=part == "held_out")
        viewed = select(corpus, subset)
        assert viewed.num_documents == built.num_documents
        assert np.array_equal(viewed.read(0, viewed.num_tokens), built.read(0, built.num_tokens))


def test_the_held_out_part_can_be_capped(tmp_path: Path, jsonl: Path, bpe_folder: Path) -> None:
    build_shards([jsonl], bpe_folder, tmp_path / "free", held_out_fraction=0.2)
    manifests = build_shards([jsonl], bpe_folder, tmp_path / "capped", held_out_fraction=0.2, held_out_max_documents=5)
    free = texts_of(tmp_path / "free/held_out", bpe_folder)
    assert texts_of(tmp_path / "capped/held_out", bpe_folder) == free[:5]
    assert manifests["train"].documents == len(MANY) - 5


def test_a_part_without_documents_is_refused(tmp_path: Path, bpe_folder: Path) -> None:
    with pytest.raises(DataError, match="no document falls into the part 'held_out'"):
        build_shards([write_lines(tmp_path / "a.jsonl", ["a"])], bpe_folder, tmp_path / "out", held_out_fraction=1e-9)
    assert not (tmp_path / "out/train").exists()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_fault_in_the_input_leaves_nothing_that_can_be_read(
    num_workers: int, tmp_path: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 500)
    source = write_lines(tmp_path / "a.jsonl", MANY)
    with source.open("a") as file:
        file.write("{torn\n")
    where = rf"a\.jsonl:{len(MANY) + 1}: the line is not JSON"
    with pytest.raises(DataError, match=where):
        build_shards([source], bpe_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=where):
        build_shards([source], bpe_folder, tmp_path / "out", num_workers=num_workers, max_tokens_per_shard=500)
    for path in (tmp_path / "out", tmp_path / "out/shard_00000"):
        with pytest.raises(DataError, match=r"did not finish|unfinished build"):
            open_corpus(path)


def test_bad_lines_are_tolerated_counted_and_named(
    tmp_path: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 20)
    lines = ['{"text": "a"}', "{torn", "", '{"body": "b"}', '{"text": "c"}', '{"text": 1}', '{"text": "d"}']
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(lines))
    seen: list[str] = []

    def build(max_bad_lines: int) -> Manifest:
        out, note = tmp_path / "out", lambda error: seen.append(str(error))
        return build_shards([source], bpe_folder, out, max_bad_lines=max_bad_lines, on_bad_line=note)["train"]

    with pytest.raises(DataError, match=r"a\.jsonl:6: 'text' is not text, the last of more than 2 such lines"):
        build(2)
    seen.clear()
    manifest = build(3)
    assert [text.split(": ")[0] for text in seen] == [f"{source}:{number}" for number in (2, 4, 6)]
    assert texts_of(tmp_path / "out", bpe_folder) == ["a", "c", "d"]
    assert (manifest.sources[0].documents, manifest.sources[0].bad_documents) == (3, 3)


def test_a_document_that_the_tokenizer_gives_up_on_is_named(tmp_path: Path, llama3_ranks: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", ["fine", "", " " * 2_000_000 + "x"])
    with pytest.raises(DataError, match=r"a\.jsonl:3: the tokenizer gives up on this document"):
        build_shards([source], llama3_ranks, tmp_path / "out")


def test_a_folder_is_of_one_build_at_a_time(tmp_path: Path, jsonl: Path, bpe_folder: Path) -> None:
    refusals: list[str] = []

    def build_again(progress: BuildProgress) -> None:
        for overwrite in (False, True):
            with pytest.raises(DataError, match=r"another build writes into this folder.*--shard-index") as refused:
                build_shards([jsonl], bpe_folder, tmp_path / "out", overwrite=overwrite)
            refusals.append(str(refused.value))

            with pytest.raises(DataError, match="another build writes into this folder"):
                build_shards([jsonl], bpe_folder, tmp_path / "out", overwrite=overwrite, held_out_fraction=0.2)

    build_shards([jsonl], bpe_folder, tmp_path / "out", on_progress=build_again)
    assert refusals
    build_shards([jsonl], bpe_folder, tmp_path / "alone")
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_a_build_without_parts_takes_the_place_of_one_with_them(tmp_path: Path, jsonl: Path, bpe_folder: Path) -> None:
    build_shards([jsonl], bpe_folder, tmp_path / "out", held_out_fraction=0.2)
    build_shards([jsonl], bpe_folder, tmp_path / "out", overwrite=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "manifest.json",
        "shard_00000.bin",
        "shard_00000.idx",
    }


def test_finished_shards_are_replaced_only_when_told_to(tmp_path: Path, jsonl: Path, bpe_folder: Path) -> None:
    build_shards([jsonl], bpe_folder, tmp_path / "out", max_tokens_per_shard=700)
    before = contents(tmp_path / "out")
    other = write_lines(tmp_path / "other.jsonl", ["a"])
    with pytest.raises(DataError, match=r"holds finished shards.*--overwrite"):
        build_shards([other], bpe_folder, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    build_shards([other], bpe_folder, tmp_path / "out", overwrite=True)
    assert sorted(contents(tmp_path / "out")) == ["manifest.json", "shard_00000.bin", "shard_00000.idx"]
    assert verify(tmp_path / "out").documents == 1


def test_shards_of_someone_else_are_left_alone(tmp_path: Path, jsonl: Path, bpe_folder: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/shard_00000.bin").write_bytes(b"precious")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="shards that no build of ours left"):
            build_shards([jsonl], bpe_folder, tmp_path / "out", overwrite=overwrite)
    assert contents(tmp_path / "out") == {"shard_00000.bin": b"precious"}


def test_progress_reaches_the_totals(
    tmp_path: Path, jsonl: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 500)
    seen: list[BuildProgress] = []
    manifest = build_shards([jsonl, jsonl], bpe_folder, tmp_path / "out", on_progress=seen.append)["train"]
    size_bytes = 2 * jsonl.stat().st_size
    assert seen[-1] == BuildProgress(size_bytes, size_bytes, manifest.documents, manifest.tokens)
    assert [progress.done_bytes for progress in seen] == sorted(progress.done_bytes for progress in seen)


def test_an_interrupted_build_goes_on_where_it_was_cut(
    tmp_path: Path, jsonl: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after every number of blocks, in turn, until it is through: the bytes of a build in one go."""
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 2000)
    options: dict[str, Any] = {
        "max_tokens_per_shard": 300,
        "held_out_fraction": 0.2,
        "held_out_max_documents": 20,
        "keep_columns": ("number",),
        "where": ("number != 7",),
    }
    build_shards([jsonl], bpe_folder, tmp_path / "whole", **options)
    first_bytes: list[int] = []
    for _ in range(100):
        seen: list[int] = []

        def stop_at_the_third(progress: BuildProgress, seen: list[int] = seen) -> None:
            seen.append(progress.done_bytes)
            if len(seen) == 3:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            build_shards([jsonl], bpe_folder, tmp_path / "cut", on_progress=stop_at_the_third, **options)
            break
        first_bytes.append(seen[0])
    assert len(first_bytes) > 3
    assert first_bytes == sorted(set(first_bytes))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_another_build_does_not_go_on_from_an_interrupted_one(
    tmp_path: Path, jsonl: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 500)

    def stop(progress: BuildProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_shards([jsonl], bpe_folder, tmp_path / "out", max_tokens_per_shard=50, on_progress=stop)
    assert (tmp_path / "out/shard_00000.idx").exists()
    for out in ("out", "fresh"):
        build_shards([jsonl], bpe_folder, tmp_path / out, max_tokens_per_shard=50, append_eos=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_columns_are_kept_in_the_order_of_documents_and_conditions_counted(
    tmp_path: Path, jsonl: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 500)
    conditions = ("number >= 10 and text_bytes > 1", "number not in (20, 21)")
    manifests = build_shards(
        [jsonl],
        bpe_folder,
        tmp_path / "out",
        keep_columns=("number", "nowhere"),
        where=conditions,
        held_out_fraction=0.3,
        max_tokens_per_shard=500,
    )
    removed = [(text, number) for number, text in enumerate(MANY) if number < 10 or number in (20, 21)]
    seen = []
    for part, manifest in manifests.items():
        folder = tmp_path / "out" / part
        assert verify(folder) == manifest
        assert len(manifest.shards) > 1
        columns = manifest.read_columns(folder, ["number", "text_bytes"])
        texts = texts_of(folder, bpe_folder)
        assert columns["text_bytes"].to_pylist() == [len(text.encode()) for text in texts]
        assert [MANY[number] for number in columns["number"].to_pylist()] == texts
        seen += columns["number"].to_pylist()
        assert [entry.where for entry in manifest.filters] == [*conditions]
        assert [entry.removed_documents for entry in manifest.filters] == [10, 2]
        assert sum(entry.removed_bytes for entry in manifest.filters) == sum(len(t.encode()) for t, _ in removed)
    assert sorted(seen) == [number for number in range(10, len(MANY)) if number not in (20, 21)]


@pytest.mark.parametrize("value", ['"one"', str(2**63), "{}"])
def test_a_column_of_mixed_kinds_is_refused(value: str, tmp_path: Path, bpe_folder: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(f'{{"text": "a", "x": 1}}\n{{"text": "b", "x": {value}}}\n')
    with pytest.raises(DataError, match=r"a\.jsonl: column x: a column mixes kinds of values"):
        build_shards([source], bpe_folder, tmp_path / "out", keep_columns=("x",))


def test_columns_that_no_document_has_are_said(
    tmp_path: Path, jsonl: Path, bpe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_shards([jsonl], bpe_folder, tmp_path / "kept", keep_columns=("number", "yaer"))
    assert f"{jsonl}: none of the first {len(MANY)} documents has a value of yaer" in capsys.readouterr().err
    hashed = build_shards([jsonl], bpe_folder, tmp_path / "hashed", where=("text_hash is not None and text_bytes > 0",))
    assert hashed["train"].documents == len(MANY)
    with pytest.raises(DataError, match=r"the conditions remove every document.*keys or columns of the input"):
        build_shards([jsonl], bpe_folder, tmp_path / "chosen", where=("scroe > 1",))
    assert "a value of scroe" in capsys.readouterr().err


def test_slices_joined_hold_what_one_build_holds(
    tmp_path: Path, jsonl: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 500)
    (tmp_path / "second.txt").write_text("another file\n")
    rows = pyarrow.table({"text": [f"row {number}" for number in range(60)], "number": range(60)})
    parquet.write_table(rows, tmp_path / "third.parquet", row_group_size=7)
    files = [jsonl, tmp_path / "second.txt", tmp_path / "third.parquet"]
    options: dict[str, Any] = {"held_out_fraction": 0.2, "keep_columns": ("number",)}
    build_shards(files, bpe_folder, tmp_path / "whole", **options)
    for index in (2, 0):
        build_shards(files, bpe_folder, tmp_path / "sliced", index=index, num_slices=3, **options)
    with pytest.raises(DataError, match=r"slices are missing: slice_00001_of_00003"):
        join_slices(tmp_path / "sliced")
    second = {"index": 1, "num_slices": 3, **options}
    build_shards([*files, tmp_path / "second.txt"], bpe_folder, tmp_path / "sliced", **second)
    with pytest.raises(DataError, match=r"slice_00001_of_00003: this slice was built otherwise .*of the same input"):
        join_slices(tmp_path / "sliced")
    build_shards(files, bpe_folder, tmp_path / "sliced", overwrite=True, **second)
    joined = join_slices(tmp_path / "sliced")
    for part in ("train", "held_out"):
        folder, whole = tmp_path / "sliced" / part, tmp_path / "whole" / part
        manifest = verify(folder)
        assert manifest == joined[folder]
        assert len(manifest.shards) == 3
        assert documents_of(folder) == documents_of(whole)
        names = ["number", "text_bytes"]
        columns, whole_columns = manifest.read_columns(folder, names), verify(whole).read_columns(whole, names)
        assert columns.select(names).equals(whole_columns.select(names))
        assert manifest.sources == verify(whole).sources
    with pytest.raises(DataError, match=r"joined already"):
        join_slices(tmp_path / "sliced")


def test_a_build_does_not_read_its_own_columns(tmp_path: Path, bpe_folder: Path) -> None:
    """Where the output lies in the input's folder, the second slice finds files there that the first did not."""
    given, out = tmp_path / "given", tmp_path / "given/out"
    given.mkdir()
    write_lines(given / "a.jsonl", MANY)
    parquet.write_table(pyarrow.table({"text": ["the heart"]}), given / "shard_1.parquet")
    for index in (0, 1):
        build_shards([given], bpe_folder, out, keep_columns=("text",), index=index, num_slices=2)
    join_slices(out)
    columns = verify(out).read_columns(out, ["text"])
    assert columns.column("text").to_pylist() == [*MANY, "the heart"]


def test_a_tokenizer_json_runs_on_a_faster_library_where_that_is_proven_equal(
    tmp_path: Path, jsonl: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = build_shards([jsonl], bpe_folder, tmp_path / "slow")["train"].tokenizer.engine
    assert small == EngineRecord(name="tokenizers", reason="the input is small")
    monkeypatch.setattr(builder, "SMALL_BYTES", 0)
    monkeypatch.setattr("megacpt_tools.engine._PLANES", ((0x0000, 0x0400),))
    engine = build_shards([jsonl], bpe_folder, tmp_path / "fast", num_workers=2)["train"].tokenizer.engine
    assert engine is not None
    assert (engine.name, engine.checked_documents) == ("fastokens", len(MANY))
    assert documents_of(tmp_path / "fast") == documents_of(tmp_path / "slow")


def test_a_difference_behind_the_sample_ends_the_build(
    tmp_path: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = FastokensTokenizer.encode

    def differs(self: FastokensTokenizer, texts: list[str]) -> object:
        return encode(self, [text.replace("heart", "hart") for text in texts])

    monkeypatch.setattr(FastokensTokenizer, "encode", differs)
    monkeypatch.setattr(builder, "_SAMPLE_BYTES", 100)
    monkeypatch.setattr(builder, "CHECKED_SHARE", 1.0)
    monkeypatch.setattr("megacpt_tools.engine._adversities", lambda tokenizer: ["a"])
    source = write_lines(tmp_path / "a.jsonl", ["blood " * 60, *["the heart"] * 9])
    with pytest.raises(DataError, match=r"a\.jsonl: fastokens makes other ids .*\(found the heart\).*--engine own"):
        build_shards([source], bpe_folder, tmp_path / "out", engine="fastest")
    manifest = build_shards([source], bpe_folder, tmp_path / "out", engine="own")["train"]
    assert manifest.tokenizer.engine == EngineRecord(name="tokenizers", reason="asked for")
    assert texts_of(tmp_path / "out", bpe_folder)[1:] == ["the heart"] * 9


def test_a_small_share_of_the_text_is_checked_on_the_way(
    tmp_path: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of single documents as of many together, of short ones as of long ones."""
    checked: list[int] = []

    def is_exact(self: FastokensTokenizer, text: str) -> bool:
        checked.append(len(text))
        return True

    monkeypatch.setattr(FastokensTokenizer, "is_exact", is_exact)
    tokenizer = open_tokenizer(bpe_folder)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    tokenize = BlockTokenizer(FastokensTokenizer(tokenizer), BuildOptions(), None, None)
    random = np.random.default_rng(0)
    for num_texts, num_characters in ((1, 50), (1, 20_000), (200, 50), (200, 20_000)):
        checked.clear()
        num_blocks = 4_000_000 // (num_texts * num_characters) + 400
        for _ in range(num_blocks):
            text = random.integers(97, 123, num_characters, np.uint8).tobytes().decode()
            tokenize._check_engine([text] * num_texts, "a.jsonl")
        share = sum(checked) / (num_blocks * num_texts * num_characters)
        assert 0 < share < 2 * builder.CHECKED_SHARE, (num_texts, num_characters)
        assert max(checked) <= builder.CHECKED_CHARACTERS


KILLED = """
import multiprocessing, os, signal, sys
from megacpt_tools import inputs
from megacpt_tools.builder import build_shards

inputs.BLOCK_BYTES = 500

def kill(progress):
    if progress.tokens > 3000:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

source, tokenizer, output = sys.argv[1:]
build_shards([source], tokenizer, output, num_workers=2, max_tokens_per_shard=700, on_progress=kill)
"""


def test_a_killed_build_is_never_taken_for_a_finished_one(
    tmp_path: Path, jsonl: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 500)
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(jsonl), str(bpe_folder), str(out)]
    killed = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert (out / "shard_00000.idx").exists()
    with pytest.raises(DataError, match="no manifest"):
        verify(out)

    workers = [int(pid) for pid in killed.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 60
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "workers outlive the build"
        time.sleep(0.05)

    build_shards([jsonl], bpe_folder, out, max_tokens_per_shard=700)
    build_shards([jsonl], bpe_folder, tmp_path / "whole", max_tokens_per_shard=700)
    assert contents(out) == contents(tmp_path / "whole")
    assert verify(out).documents == len(MANY)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


_PEAK_OF_A_BUILD = """
import sys
from pathlib import Path
from megacpt_tools import builder, inputs

inputs.BLOCK_BYTES, builder.SMALL_BYTES = 1 << 16, 1 << 40
builder.build_shards([sys.argv[1]], sys.argv[2], sys.argv[3])
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_a_file(tmp_path: Path, bpe_folder: Path) -> None:
    peaks_kib = []
    for num_lines in (2_000, 12_000):
        text = write_lines(
            tmp_path / f"{num_lines}.jsonl", [f"{number} {'the heart pumps ' * 60}" for number in range(num_lines)]
        )
        command = [sys.executable, "-c", _PEAK_OF_A_BUILD, str(text), str(bpe_folder), str(tmp_path / f"{num_lines}")]
        peaks_kib.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    # The second file is 9.8 MB larger, and larger again as strings and ids. The allocator's own noise is below 2 MiB.
    assert peaks_kib[1] - peaks_kib[0] < 4 * 1024
