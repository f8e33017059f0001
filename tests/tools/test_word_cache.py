"""Words whose ids are kept have the ids that the tokenizers library gives the text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    BertWordPieceTokenizer,
    Regex,
    SentencePieceUnigramTokenizer,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from megacpt_tools import word_cache as module
from megacpt_tools.engine import fastest
from megacpt_tools.tokenizer import HuggingFaceTokenizer
from megacpt_tools.word_cache import WordCacheTokenizer
from tests.tools.conftest import TEXTS, train_sentencepiece

pytestmark = pytest.mark.usefixtures("few_characters")

UNKNOWN, EOS = "<unk>", "</s>"
PLAIN = "Plain text, in \t lines\n\nand two  spaces.\n"
SPACES = (" ", "  ", "\n", " a", "a ", "a  b", "a\tb", "\u2581", "\u2581a", "a \u2581", "\x1c", "a\x1cb", "\xa0")
PARTS = (*SPACES, *TEXTS, "``", "Heart", "heart", ",", "e\u0301")


def unigram(folder: Path) -> Tokenizer:
    """As the library trains it: Nmt, NFKC, spaces in a row are one, a word begins with its space."""
    trained = SentencePieceUnigramTokenizer()
    trained.train_from_iterator(TEXTS * 5, 200, show_progress=False, special_tokens=[UNKNOWN, EOS], unk_token=UNKNOWN)
    tokenizer: Tokenizer = trained._tokenizer
    return tokenizer


def t5(folder: Path) -> Tokenizer:
    """A Unigram as T5's: rules compiled by SentencePiece, the end stripped, spaces in a row become one U+2581."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    path = train_sentencepiece(folder, model_type="unigram", normalization_rule_name="nmt_nfkc")
    rules = normalizers.Precompiled(ModelProto.FromString(path.read_bytes()).normalizer_spec.precompiled_charsmap)
    spaces = normalizers.Replace(Regex(" {2,}"), "\u2581")
    tokenizer = unigram(folder)
    tokenizer.normalizer = normalizers.Sequence([rules, normalizers.Strip(left=False), spaces])
    return tokenizer


def xlm_roberta(folder: Path) -> Tokenizer:
    """A Unigram whose words are cut out first and get their space then, under rules that the cache does not know."""
    tokenizer = unigram(folder)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return tokenizer


def spaces_kept(folder: Path) -> Tokenizer:
    """A Unigram that normalises nothing: spaces in a row are tokens."""
    tokenizer = unigram(folder)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def word_piece(folder: Path, lowercase: bool = True) -> Tokenizer:
    """As BERT's."""
    trained = BertWordPieceTokenizer(lowercase=lowercase)
    trained.train_from_iterator(TEXTS * 5, 200, show_progress=False)
    tokenizer: Tokenizer = trained._tokenizer
    return tokenizer


def cased_word_piece(folder: Path) -> Tokenizer:
    return word_piece(folder, lowercase=False)


def word_level(folder: Path) -> Tokenizer:
    """Whole words, cut at whatever is no letter."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=[UNKNOWN]))
    return tokenizer


def gpt(folder: Path) -> Tokenizer:
    """Byte pairs of words that end in a mark, as the first GPT's."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=[UNKNOWN], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    return tokenizer


KINDS = (unigram, t5, xlm_roberta, spaces_kept, word_piece, cased_word_piece, word_level, gpt)


def opened(tokenizer: Tokenizer, folder: Path) -> HuggingFaceTokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    return HuggingFaceTokenizer(folder / "tokenizer.json")


@pytest.fixture(scope="module", params=KINDS, ids=lambda make: make.__name__)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    folder = tmp_path_factory.mktemp("word_cache")
    return opened(request.param(folder), folder)


def assert_same(cached: WordCacheTokenizer, tokenizer: HuggingFaceTokenizer, texts: list[str]) -> None:
    for ours, theirs in zip(cached.encode(texts), tokenizer.encode(texts), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_it_is_found_to_make_the_tokenizers_ids(tokenizer: HuggingFaceTokenizer) -> None:
    cached, record = fastest(tokenizer, TEXTS)
    assert isinstance(cached, WordCacheTokenizer)
    assert record.name == "word-cache"
    assert_same(cached, tokenizer, ["", *TEXTS, PLAIN, ""])
    assert_same(cached, tokenizer, [])


@given(data=st.data())
def test_any_texts_in_any_batches_have_the_tokenizers_ids(tokenizer: HuggingFaceTokenizer, data: st.DataObject) -> None:
    part = st.one_of(st.sampled_from(PARTS), st.text(max_size=4))
    cached = WordCacheTokenizer(tokenizer)
    for texts in data.draw(st.lists(st.lists(st.lists(part).map("".join), max_size=3), max_size=3)):
        assert_same(cached, tokenizer, texts)


def test_the_library_sees_a_word_once(tokenizer: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = WordCacheTokenizer(tokenizer)
    first = cached.encode(TEXTS)
    monkeypatch.setattr(cached._known, "_library", None)
    for _ in range(2):
        for again, once in zip(cached.encode(TEXTS), first, strict=True):
            np.testing.assert_array_equal(again, once)


def test_a_full_cache_is_begun_anew(tokenizer: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CHARACTERS", 100)
    cached = WordCacheTokenizer(tokenizer)
    num_words = []
    for text in TEXTS * 3:
        assert_same(cached, tokenizer, [text])
        num_words.append(len(cached._known))
        assert sum(map(len, cached._known)) <= 100
    assert max(num_words) > 5


@pytest.mark.parametrize("make", [unigram, t5, word_piece, cased_word_piece, gpt])
def test_plain_text_does_without_the_rules(
    make: Callable[[Path], Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = opened(make(tmp_path), tmp_path)
    rules = tokenizer.normalized
    normalized = []

    def noted(text: str) -> str:
        normalized.append(text)
        return rules(text)

    monkeypatch.setattr(tokenizer, "normalized", noted)
    cached = WordCacheTokenizer(tokenizer)
    normalized.clear()
    assert_same(cached, tokenizer, [PLAIN, "na\xefve"])
    assert normalized == ["na\xefve"]


def no_spaces(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)


def no_first_space(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")


def other_cuts(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Digits()


def no_cuts(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = None


def first_word_differs(tokenizer: Tokenizer) -> None:
    after = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), after])


def first_word_differs_deep_down(tokenizer: Tokenizer) -> None:
    after = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True}
    steps = [{"type": "WhitespaceSplit"}, {"type": "Sequence", "pretokenizers": [after]}]
    described = json.loads(tokenizer.to_str()) | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    tokenizer.pre_tokenizer = Tokenizer.from_str(json.dumps(described)).pre_tokenizer


def first_character_may_go(tokenizer: Tokenizer) -> None:
    """Under "first" no space is put before a text whose first character the rules took away."""
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    assert tokenizer.encode("\x0bheart").ids != tokenizer.encode("heart").ids


def tokens_in_text(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("heart")])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (no_spaces, "text is cut elsewhere"),
        (no_first_space, "text is cut elsewhere"),
        (other_cuts, "text is cut elsewhere"),
        (no_cuts, "text is cut elsewhere"),
        (first_word_differs, "the first word is cut otherwise"),
        (first_word_differs_deep_down, "the first word is cut otherwise"),
        (first_character_may_go, "the first word is cut otherwise"),
        (tokens_in_text, "tokens are looked for"),
    ],
)
def test_others_stay_with_their_library(change: Callable[[Tokenizer], None], reason: str, tmp_path: Path) -> None:
    changed = unigram(tmp_path)
    change(changed)
    tokenizer = opened(changed, tmp_path)
    same, record = fastest(tokenizer, TEXTS)
    assert same is tokenizer
    assert str(record.reason).startswith(f"word-cache: cannot run it ({reason}")


def test_what_the_library_gives_up_on_is_named_and_forgotten(tmp_path: Path) -> None:
    """Whole words without an unknown token: the library raises where it meets another."""
    words = Tokenizer(models.WordLevel({"heart": 0, "blood": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = opened(words, tmp_path)
    cached = WordCacheTokenizer(tokenizer)
    for _ in range(2):
        with pytest.raises(ValueError, match="UNK"):
            cached.encode(["heart lung blood"])
        assert_same(cached, tokenizer, ["heart blood heart"])
    assert fastest(tokenizer, ["heart blood", "lung"])[1].name == "word-cache"
