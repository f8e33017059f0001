"""A faster library makes the ids only where they are the tokenizer's own; whatever differs is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megacpt_tools import engine as module
from megacpt_tools.engine import FastokensTokenizer, fastest, reopened
from megacpt_tools.tokenizer import HuggingFaceTokenizer, TiktokenTokenizer, open_tokenizer
from tests.tools.conftest import TEXTS

SPELLED = "text <|endoftext|> and <|begin|>more<|end_of_text|>"


@pytest.fixture(autouse=True)
def few_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing all of Unicode takes seconds."""
    monkeypatch.setattr(module, "_PLANES", ((0x0000, 0x0400),))


@pytest.mark.parametrize("path", ["bpe_folder", pytest.param("llama3_ranks", marks=pytest.mark.slow)])
def test_fastokens_makes_the_librarys_ids(path: str, request: pytest.FixtureRequest) -> None:
    tokenizer = open_tokenizer(request.getfixturevalue(path))
    fast, record = fastest(tokenizer, TEXTS)
    assert isinstance(fast, FastokensTokenizer)
    assert (record.name, record.reason, record.checked_documents) == ("fastokens", None, len(TEXTS))
    assert record.checked_tokens == tokenizer.encode(TEXTS)[0].size
    for texts in ([], ["", *TEXTS, SPELLED, ""]):
        for made in (fast, reopened(tokenizer, record)):
            for ours, theirs in zip(made.encode(texts), tokenizer.encode(texts), strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert fast.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("text", "reason"),
    [("\u0301", "some characters"), ("the heart", "documents of the input"), (SPELLED, "some characters")],
)
def test_one_difference_is_enough(bpe_folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str) -> None:
    """An engine that encodes texts with `text` in them as others."""
    encode = FastokensTokenizer.encode

    def differs(self: FastokensTokenizer, texts: list[str]) -> object:
        spelled = "<|endoftext|>" if text == SPELLED else text
        return encode(self, [each.replace(spelled, "other") for each in texts])

    monkeypatch.setattr(FastokensTokenizer, "encode", differs)
    tokenizer = open_tokenizer(bpe_folder)
    engine, record = fastest(tokenizer, ["a", "the heart"], ["fastokens"])
    assert engine is tokenizer
    assert (record.name, record.reason) == ("tokenizers", f"fastokens: encodes {reason} differently")


def test_without_fastokens_the_next_is_tried(bpe_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    tokenizer = open_tokenizer(bpe_folder)
    fast, record = fastest(tokenizer, TEXTS)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert (record.name, record.reason) == ("tiktoken", "fastokens: is not installed")
    assert type(reopened(tokenizer, record)) is type(fast)


def test_what_it_gives_up_on_the_own_library_encodes(bpe_folder: Path) -> None:
    tokenizer = open_tokenizer(bpe_folder)
    assert isinstance(tokenizer, HuggingFaceTokenizer | TiktokenTokenizer)
    fast = FastokensTokenizer(tokenizer)
    fast._library = None
    np.testing.assert_array_equal(fast.encode(TEXTS)[0], tokenizer.encode(TEXTS)[0])
