"""A faster library makes the ids only where they are the tokenizer's own; whatever differs is found."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megacpt.data.manifest import EngineRecord
from megacpt_tools.engine import fastest, reopened
from megacpt_tools.fast_tokenizers import FastokensTokenizer, GigatokenTokenizer
from megacpt_tools.tokenizer import FasterTokenizer, HuggingFaceTokenizer, open_tokenizer
from tests.tools.conftest import TEXTS, train_sentencepiece

pytestmark = pytest.mark.usefixtures("few_characters")

SPELLED = "text <|endoftext|> and <|begin|>more<|end_of_text|> <s>[INST] the </s> [/INST]\u2581<0x0A>"


@pytest.fixture(scope="module")
def symbols_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model as Mistral's, with symbols that are found before anything else."""
    return train_sentencepiece(tmp_path_factory.mktemp("symbols"), user_defined_symbols=["[INST]", "[/INST]"])


@pytest.fixture(scope="module")
def byte_fallback_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json as Llama 2's: no pre-tokenizer, spaces as U+2581, bytes for what is no token."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers

    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["\u2581", "t", "h", "e", "a", "r", "th", "the", "\u2581the", "ea", "\u2581\u2581"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("e", "a"), ("\u2581", "\u2581")]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("[INST]", normalized=False)])
    path = tmp_path_factory.mktemp("byte_fallback") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize(
    ("path", "library"),
    [
        ("bpe_folder", "fastokens"),
        pytest.param("llama3_ranks", "fastokens", marks=pytest.mark.slow),
        ("sentencepiece_model", "gigatoken"),
        ("symbols_model", "gigatoken"),
        ("byte_fallback_json", "gigatoken"),
    ],
)
def test_a_faster_library_makes_the_tokenizers_ids(path: str, library: str, request: pytest.FixtureRequest) -> None:
    tokenizer = open_tokenizer(request.getfixturevalue(path))
    fast, record = fastest(tokenizer, TEXTS)
    assert isinstance(fast, FasterTokenizer)
    assert (fast.library, record.name, record.reason) == (library, library, None)
    assert (record.checked_documents, record.checked_tokens) == (len(TEXTS), tokenizer.encode(TEXTS)[0].size)
    assert EngineRecord.model_validate_json(record.model_dump_json()) == record
    for texts in ([], ["", *TEXTS, SPELLED, ""]):
        for made in (fast, reopened(tokenizer, record)):
            for ours, theirs in zip(made.encode(texts), tokenizer.encode(texts), strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert fast.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "unigram"}, "cannot run it (only BPE"),
        ({"byte_fallback": False}, "cannot run it (only byte_fallback"),
        ({"user_defined_symbols": ["\u2581\u2581"]}, "cannot run it (user-defined symbols of white space)"),
        ({"user_defined_symbols": ["a"], "normalization_rule_name": "nfkc"}, "cannot run it (user-defined symbols in"),
        ({"remove_extra_whitespaces": True}, "encodes some characters differently"),
    ],
)
def test_other_sentencepiece_models_stay_with_their_library(
    settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    tokenizer = open_tokenizer(train_sentencepiece(tmp_path, **settings))
    same, record = fastest(tokenizer, TEXTS)
    assert same is tokenizer
    assert record.name == "sentencepiece"
    assert str(record.reason).startswith(f"gigatoken: {reason}")


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
    monkeypatch.setitem(sys.modules, "fastokens", None)
    tokenizer = open_tokenizer(bpe_folder)
    fast, record = fastest(tokenizer, TEXTS)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert (record.name, record.reason) == ("tiktoken", "fastokens: is not installed")
    assert type(reopened(tokenizer, record)) is type(fast)


@pytest.mark.parametrize(
    ("path", "made_by"), [("bpe_folder", FastokensTokenizer), ("sentencepiece_model", GigatokenTokenizer)]
)
def test_what_it_gives_up_on_the_own_library_encodes(
    path: str, made_by: Callable[[Any], FasterTokenizer], request: pytest.FixtureRequest
) -> None:
    tokenizer = open_tokenizer(request.getfixturevalue(path))
    fast = made_by(tokenizer)
    vars(fast)["_library"] = None
    np.testing.assert_array_equal(fast.encode(TEXTS)[0], tokenizer.encode(TEXTS)[0])
