"""The build: the same bytes for any number of workers, every document once, and no half build that looks whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from megacpt.data.corpus import open_corpus
from megacpt.data.manifest import Manifest, verify
from megacpt.errors import DataError
from megacpt_tools import inputs
from megacpt_tools.builder import BuildProgress, build_shards
from megacpt_tools.tokenizer import open_tokenizer
from tests.tools.conftest import TEXTS

MANY = [f"{text} {number}" for number in range(40) for text in TEXTS]


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


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
    for num_workers in (1, 3):
        build_shards(
            [jsonl, tmp_path / "second.txt"],
            bpe_folder,
            tmp_path / f"with_{num_workers}",
            num_workers=num_workers,
            max_tokens_per_shard=700,
            held_out_fraction=0.2,
        )
    assert len(contents(tmp_path / "with_1")) > 10
    assert contents(tmp_path / "with_1") == contents(tmp_path / "with_3")


def test_output_does_not_depend_on_where_blocks_are_cut(
    tmp_path: Path, jsonl: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for block_bytes in (1, 500, 1 << 20):
        monkeypatch.setattr(inputs, "BLOCK_BYTES", block_bytes)
        build_shards([jsonl], bpe_folder, tmp_path / str(block_bytes), max_tokens_per_shard=700)
    assert contents(tmp_path / "1") == contents(tmp_path / "500") == contents(tmp_path / str(1 << 20))


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
def test_a_fault_in_the_input_leaves_nothing(
    num_workers: int, tmp_path: Path, bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 500)
    source = write_lines(tmp_path / "a.jsonl", MANY)
    with source.open("a") as file:
        file.write("{torn\n")
    with pytest.raises(DataError, match=rf"a\.jsonl:{len(MANY) + 1}: the line is not JSON"):
        build_shards([source], bpe_folder, tmp_path / "out", num_workers=num_workers, max_tokens_per_shard=500)
    assert not (tmp_path / "out").exists()


def test_a_document_that_the_tokenizer_gives_up_on_is_named(tmp_path: Path, llama3_ranks: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", ["fine", "", " " * 2_000_000 + "x"])
    with pytest.raises(DataError, match=r"a\.jsonl:3: the tokenizer gives up on this document"):
        build_shards([source], llama3_ranks, tmp_path / "out")


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


def test_a_killed_build_is_never_taken_for_a_finished_one(tmp_path: Path, jsonl: Path, bpe_folder: Path) -> None:
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

    build_shards([jsonl], bpe_folder, out)
    assert sorted(os.listdir(out)) == ["manifest.json", "shard_00000.bin", "shard_00000.idx"]
    assert verify(out).documents == len(MANY)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
