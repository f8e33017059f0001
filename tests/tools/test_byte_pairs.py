"""tiktoken runs a tokenizer.json only where the ids are proven equal; each way in which they could differ is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacpt_tools.byte_pairs import BytePairs, BytePairTokenizer, byte_pairs, unproven
from megacpt_tools.engine import fastest
from megacpt_tools.tokenizer import HuggingFaceTokenizer, open_tokenizer
from tests.tools.conftest import TEXTS

Change = Callable[[dict[str, Any]], object]
REGEX = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def opened(bpe_folder: Path, tmp_path: Path, change: Change) -> HuggingFaceTokenizer:
    description = json.loads((bpe_folder / "tokenizer.json").read_text())
    change(description)
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    tokenizer = open_tokenizer(tmp_path)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return tokenizer


def split_by(regex: str) -> Change:
    steps = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
        BYTE_LEVEL | {"use_regex": False},
    ]
    return lambda it: it.update(pre_tokenizer={"type": "Sequence", "pretokenizers": steps})


def digits(it: dict[str, Any]) -> None:
    steps = [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL | {"use_regex": True}]
    it["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}


def nfc(it: dict[str, Any]) -> None:
    it["normalizer"] = {"type": "NFC"}


def without_a_byte(it: dict[str, Any]) -> None:
    del it["model"]["vocab"]["Ä"]  # 0x04, a control character


@pytest.mark.parametrize("change", [dict.copy, split_by(REGEX), digits, nfc, without_a_byte])
@settings(max_examples=20, deadline=None)
@given(
    text=st.text(
        alphabet=st.one_of(
            st.sampled_from(" \n\tthearsoumlut'1234.\u0301\x04"), st.characters(exclude_categories=["Cs"])
        )
    )
)
def test_ids_are_the_librarys(
    bpe_folder: Path, tmp_path_factory: pytest.TempPathFactory, change: Change, text: str
) -> None:
    tokenizer = opened(bpe_folder, tmp_path_factory.mktemp("changed"), change)
    pairs = byte_pairs(tokenizer.description)
    assert isinstance(pairs, BytePairs)
    assert unproven(pairs, tokenizer.description) is None
    fast = BytePairTokenizer(tokenizer, pairs)
    texts = [text, text * 3, *TEXTS]
    assert [ids.tolist() for ids in fast.encode(texts)] == [ids.tolist() for ids in tokenizer.encode(texts)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda it: it.update(normalizer={"type": "Lowercase"}), "the normalizer is Lowercase"),
        (lambda it: it["pre_tokenizer"].update(add_prefix_space=True), "no single pattern"),
        (lambda it: it["added_tokens"][1].update(special=False), "some added tokens are not special"),
        (lambda it: it["model"]["merges"].reverse(), "not in the order of their tokens"),
        (lambda it: it["model"]["merges"].pop(), "tiktoken would merge pairs that the tokenizer does not"),
        (split_by(r"\p{L}+|(?<=a)x?|\P{L}+"), "tiktoken"),
    ],
)
def test_what_differs_is_found(change: Change, reason: str, bpe_folder: Path, tmp_path: Path) -> None:
    tokenizer = opened(bpe_folder, tmp_path, change)
    engine, record = fastest(tokenizer, TEXTS, ["tiktoken"])
    assert engine is tokenizer
    assert record.name == "tokenizers"
    assert reason in (record.reason or "")
