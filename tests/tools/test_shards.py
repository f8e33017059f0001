"""`megacpt shards` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megacpt.data.manifest import read_manifest, verify
from megacpt_tools.cli import main
from tests.tools.conftest import TEXTS


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    path = tmp_path / "input.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in [*TEXTS, ""]))
    return path


@pytest.fixture
def shards(tmp_path: Path, jsonl: Path, bpe_folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert build(jsonl, bpe_folder, tmp_path / "shards", "--text-key", "body") == 0
    capsys.readouterr()
    return tmp_path / "shards"


def build(source: Path, tokenizer: Path, output: Path, *more: str) -> int:
    where = ["--input", str(source), "--tokenizer", str(tokenizer), "--output", str(output)]
    return main(["shards", "build", *where, "--workers", "1", *more])


def test_build_says_what_it_made(
    tmp_path: Path, jsonl: Path, bpe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(jsonl, bpe_folder, tmp_path / "shards", "--text-key", "body") == 0
    out = capsys.readouterr().out
    assert f"{len(TEXTS)} documents" in out
    assert "left out: 1 document without text" in out


def test_build_hands_every_option_on(tmp_path: Path, jsonl: Path, bpe_folder: Path) -> None:
    options = "--text-key body --no-append-eos --add-bos --bos-token <|begin|> --max-tokens-per-shard 0.02K"
    assert build(jsonl, bpe_folder, tmp_path / "out", *options.split(), "--held-out", "40%") == 0
    manifest = verify(tmp_path / "out/train")
    assert (manifest.tokenizer.adds_bos, manifest.tokenizer.bos_id, manifest.tokenizer.adds_eos) == (True, 1, False)
    assert len(manifest.shards) > 1
    assert manifest.split is not None
    assert manifest.split.held_out_fraction == 0.4
    assert manifest.documents + verify(tmp_path / "out/held_out").documents == len(TEXTS)


def test_slices_are_built_with_columns_and_conditions_and_joined(
    tmp_path: Path, jsonl: Path, bpe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--text-key", "body", "--keep-columns", "source, year", "--where", "text_bytes > 1", "--num-shards", "2"]
    with jsonl.open("a") as file:
        file.write("{torn\n")
    for index in ("0", "1"):
        assert build(jsonl, bpe_folder, out, *options, "--shard-index", index, "--max-bad-lines", "1") == 0
    captured = capsys.readouterr()
    assert f"left out: {jsonl}:8: the line is not JSON" in captured.err
    assert "--where 'text_bytes > 1' removed 1 document, 1 byte" in captured.out
    assert main(["shards", "join", str(out)]) == 0
    assert main(["shards", "inspect", str(out)]) == 0
    assert "columns: source, year, text_bytes" in capsys.readouterr().out
    assert verify(out).documents == len(TEXTS) - 1
    assert build(jsonl, bpe_folder, out, "--shard-index", "2") == 2


def test_plain_text_can_be_cut_at_blank_lines(tmp_path: Path, bpe_folder: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree\n")
    assert build(tmp_path / "a.txt", bpe_folder, tmp_path / "lines", "--documents", "blank-line") == 0
    assert build(tmp_path / "a.txt", bpe_folder, tmp_path / "file") == 0
    assert read_manifest(tmp_path / "lines").documents == 3
    assert read_manifest(tmp_path / "file").documents == 1


def test_inspect_prints_the_manifest_and_documents(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "inspect", str(shards), "--documents", "2"]) == 0
    out = capsys.readouterr().out
    assert f"{len(TEXTS)} documents" in out
    assert "text, EOS 0" in out
    assert TEXTS[0] + "<|endoftext|>" in out
    assert TEXTS[1] in out
    assert TEXTS[2] not in out


def test_inspect_refuses_another_tokenizer(
    shards: Path, sentencepiece_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shards", "inspect", str(shards), "--tokenizer", str(sentencepiece_model)]) == 2
    assert "this tokenizer did not make these shards" in capsys.readouterr().err


def test_inspect_reads_a_plain_megatron_shard(
    shards: Path, bpe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shards / "manifest.json").unlink()
    assert main(["shards", "inspect", str(shards / "shard_00000.bin")]) == 0
    assert "Give --tokenizer" in capsys.readouterr().out
    assert main(["shards", "inspect", str(shards / "shard_00000"), "--tokenizer", str(bpe_folder)]) == 0
    assert TEXTS[0] in capsys.readouterr().out


def test_verify_passes_sound_shards(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "verify", str(shards), str(shards / "shard_00000")]) == 0
    assert [line.count(", ok") + line.count(": ok") for line in capsys.readouterr().out.splitlines()] == [1, 1, 1]


def test_verify_fails_on_a_changed_byte(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shards / "shard_00000.bin"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    assert main(["shards", "verify", str(shards)]) == 2
    assert "shard_00000.bin: the file has changed since it was built" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "fault"),
    [("{torn", "input.jsonl:8: the line is not JSON"), ('{"x": 1}', "input.jsonl:8: the line has no key")],
)
def test_bad_input_is_one_line(
    line: str, fault: str, tmp_path: Path, jsonl: Path, bpe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with jsonl.open("a") as file:
        file.write(line)
    assert build(jsonl, bpe_folder, tmp_path / "out", "--text-key", "body") == 2
    error = capsys.readouterr().err
    assert fault in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("option", [["--held-out", "100%"], ["--max-tokens-per-shard", "0"], ["--workers", "some"]])
def test_options_out_of_range_are_refused(
    option: list[str], tmp_path: Path, jsonl: Path, bpe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        build(jsonl, bpe_folder, tmp_path / "out", *option)
    assert exit.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_a_cap_without_a_share_is_refused(
    tmp_path: Path, jsonl: Path, bpe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(jsonl, bpe_folder, tmp_path / "out", "--held-out-max-documents", "3") == 2
    assert "--held-out 1%" in capsys.readouterr().err
