"""What the files of a tokenizer's folder say documents begin and end with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megacpt.data.special_tokens import SpecialTokens, open_library, special_tokens
from megacpt.errors import DataError

TOKENIZER = {
    "added_tokens": [
        {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for number, content in enumerate(["<begin>", "<end>", "<turn>"])
    ],
    "model": {"type": "BPE", "vocab": {"<begin>": 0, "<end>": 1, "<turn>": 2, "a": 3}, "merges": []},
}


def read(folder: Path, **files: object) -> SpecialTokens:
    for name, content in ({"tokenizer": TOKENIZER} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    path = folder / "tokenizer.json"
    return special_tokens(path, open_library(path))


def test_a_tokenizer_alone_names_nothing(tmp_path: Path) -> None:
    assert read(tmp_path) == SpecialTokens(None, None, False, frozenset())


def test_the_first_file_names_the_end_and_every_file_may_name_another(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        tokenizer_config={"bos_token": {"content": "<begin>"}, "eos_token": "<turn>", "add_bos_token": True},
        config={"bos_token_id": 7, "eos_token_id": 2},
        generation_config={"eos_token_id": [2, 1]},
    )
    assert found == SpecialTokens(bos_id=0, eos_id=2, adds_bos=True, end_ids=frozenset({1, 2}))


def test_a_bos_that_is_there_is_not_always_added(tmp_path: Path) -> None:
    assert read(tmp_path, config={"bos_token_id": 0, "eos_token_id": 1}) == SpecialTokens(0, 1, False, frozenset({1}))


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json: this is no tokenizer\.json"):
        read(tmp_path, tokenizer={"model": 1})
