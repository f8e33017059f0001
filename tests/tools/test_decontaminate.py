"""Overlaps are those that a search by sets of tuples finds, document by document."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from megacpt.data.corpus import open_corpus
from megacpt.data.manifest import verify
from megacpt.data.view import Subset, select
from megacpt.errors import DataError
from megacpt_tools import decontaminate as module
from megacpt_tools.builder import build_shards
from megacpt_tools.cli import main
from megacpt_tools.decontaminate import EvaluationGrams, decontaminate
from megacpt_tools.tokenizer import open_tokenizer

N = 4


def write_lines(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def grams(ids: list[int]) -> list[tuple[int, ...]]:
    return [tuple(ids[at : at + N]) for at in range(len(ids) - N + 1)]


@pytest.fixture
def corpus(tmp_path: Path, bpe_folder: Path) -> tuple[Path, dict[str, list[str]]]:
    """300 random documents in several shards, and two sets that share runs of characters with them."""
    generator = np.random.default_rng(5)
    texts = ["".join(generator.choice(list("abc "), generator.integers(1, 40))) for _ in range(300)]
    sets = {
        "one": [write_lines(tmp_path / "one.jsonl", ["abcabcabc", texts[7], "zzzz", "a"])],
        "two": [write_lines(tmp_path / "two.jsonl", [texts[3][:9] + texts[11][:9]])],
    }
    build_shards([write_lines(tmp_path / "a.jsonl", texts)], bpe_folder, tmp_path / "out", max_tokens_per_shard=900)
    return tmp_path / "out", sets


@pytest.mark.parametrize("window_tokens", [7, 1 << 20])
def test_every_shared_run_is_found(
    window_tokens: int,
    corpus: tuple[Path, dict[str, list[str]]],
    bpe_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_WINDOW_TOKENS", window_tokens)
    folder, sets = corpus
    tokenizer = open_tokenizer(bpe_folder)
    report = decontaminate(folder, EvaluationGrams(sets, tokenizer, num_tokens=N), write_column=True)

    opened = open_corpus(folder)
    documents = [opened.read(a, b - a).tolist() for a, b in pairwise(opened.document_offsets().tolist())]
    trained = {gram for document in documents for gram in grams(document)}
    wanted = set()
    for found, paths in zip(report.sets, sets.values(), strict=True):
        texts = [json.loads(line)["text"] for line in Path(paths[0]).read_text().splitlines()]
        evaluated = [grams(tokenizer.encode([text])[0].tolist()) for text in texts]
        wanted |= {gram for document in evaluated for gram in document}
        shares = [sum(gram in trained for gram in each) / max(len(each), 1) for each in evaluated]
        assert (found.documents, found.found_documents) == (len(texts), sum(share > 0 for share in shares))
        assert found.found_share == pytest.approx(np.mean(shares))
    overlaps = [sum(gram in wanted for gram in grams(each)) / max(len(each) - N + 1, 1) for each in documents]
    assert report.documents == sum(overlap > 0 for overlap in overlaps)
    assert report.tokens == sum(len(each) for each, overlap in zip(documents, overlaps, strict=True) if overlap > 0)

    assert len(verify(folder).shards) > 2
    column = open_corpus(folder).columns(["overlap"])["overlap"].to_pylist()
    assert column == pytest.approx(overlaps, rel=1e-6)
    assert select(open_corpus(folder), Subset(where="overlap == 0")).num_documents == len(overlaps) - report.documents


def test_the_command_reports_and_writes(
    corpus: tuple[Path, dict[str, list[str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, sets = corpus
    against = [f"{name}={paths[0]}" for name, paths in sets.items()]
    report = tmp_path / "report.json"
    options = ["--ngram", "4", "--write-column", "--json", str(report)]
    for _ in range(2):
        assert main(["shards", "decontaminate", str(folder), "--against", *against, *options]) == 0
    assert "one: 2 of 4 documents are found in part" in capsys.readouterr().out
    assert json.loads(report.read_text())[0]["sets"][1]["name"] == "two"
    assert {len(shard.columns) for shard in verify(folder).shards} == {1}
    assert main(["shards", "decontaminate", str(folder), "--against", "nameless.jsonl"]) == 2
    (tmp_path / "torn.jsonl").write_text('{"text": "a"}\n{"text')
    assert main(["shards", "decontaminate", str(folder), "--against", f"torn={tmp_path}/torn.jsonl"]) == 2
    assert "torn.jsonl:2: the line is not JSON" in capsys.readouterr().err
    (tmp_path / "torn.jsonl").write_text("")
    assert main(["shards", "decontaminate", str(folder), "--against", *against, f"torn={tmp_path}/torn.jsonl"]) == 2
    assert "torn.jsonl: the evaluation set holds no documents" in capsys.readouterr().err
    assert main(["shards", "decontaminate", str(folder), "--against", *against, "--ngram", "1000"]) == 2
    assert "no evaluation document has 1000 tokens" in capsys.readouterr().err


def test_a_set_that_the_tokenizer_gives_up_on_is_named(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"heart": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    sets = {"mine": [write_lines(tmp_path / "a.jsonl", ["heart", "lung"])]}
    with pytest.raises(DataError, match=r"mine: the tokenizer gives up on a document .*UNK"):
        EvaluationGrams(sets, open_tokenizer(tmp_path))
