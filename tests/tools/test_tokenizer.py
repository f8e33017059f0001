"""Ids are the library's own, special tokens in text stay text, and a fingerprint knows a tokenizer from another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models

from megacpt.errors import DataError
from megacpt_tools.tokenizer import Tokenizer, open_tokenizer
from tests.tools.conftest import TEXTS

KINDS = ("bpe_folder", "sentencepiece_model", "llama3_ranks")


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def ids_of_each(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    ids, lengths = tokenizer.encode(texts)
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def test_ids_decode_to_the_text(path: Path) -> None:
    tokenizer = open_tokenizer(path)
    texts = [text for text in TEXTS if text.strip() == text]
    assert [tokenizer.decode(ids) for ids in ids_of_each(tokenizer, texts)] == texts


def test_ids_lie_in_the_vocabulary_and_are_never_special(path: Path) -> None:
    tokenizer = open_tokenizer(path)
    ids, lengths = tokenizer.encode([*TEXTS, "<|end_of_text|><|endoftext|></s><s>"])
    assert lengths.sum() == ids.size
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    assert not np.isin(ids, [special for special in (tokenizer.bos_id, tokenizer.eos_id) if special is not None]).any()


@pytest.mark.parametrize("last", ["", "<|reserved_special_token_250|> is text here"])
def test_texts_together_have_the_ids_of_each_alone(path: Path, last: str) -> None:
    tokenizer, texts = open_tokenizer(path), ["", *TEXTS, last]
    assert ids_of_each(tokenizer, texts) == [tokenizer.encode([text])[0].tolist() for text in texts]


def test_no_texts_have_no_ids(path: Path) -> None:
    ids, lengths = open_tokenizer(path).encode([])
    assert (ids.size, lengths.size) == (0, 0)


def test_the_fingerprint_does_not_know_the_path(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
    assert open_tokenizer(copy).fingerprint == open_tokenizer(path).fingerprint


def test_hugging_face_ids_are_the_librarys(bpe_folder: Path) -> None:
    from tokenizers import Tokenizer as Library

    library = Library.from_file(str(bpe_folder / "tokenizer.json"))
    texts = [text for text in TEXTS if "<|" not in text]
    assert ids_of_each(open_tokenizer(bpe_folder), texts) == [library.encode(text).ids for text in texts]


def test_sentencepiece_ids_are_the_librarys(sentencepiece_model: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    library = SentencePieceProcessor(model_file=str(sentencepiece_model))
    assert ids_of_each(open_tokenizer(sentencepiece_model), TEXTS) == [library.Encode(text) for text in TEXTS]


def test_tiktoken_merges_by_rank_and_numbers_its_special_tokens_as_llama_3(llama3_ranks: Path) -> None:
    tokenizer = open_tokenizer(llama3_ranks)
    assert ids_of_each(tokenizer, ["the heart", " the"]) == [[257, 101, 32, 258, 260, 116], [259]]
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (
        128_256,
        128_000,
        128_001,
        True,
    )
    assert tokenizer.token_id("<|reserved_special_token_4|>") == 128_008
    assert tokenizer.token_id("<|eot_id|>") == 128_009
    assert tokenizer.token_id("<|reserved_special_token_250|>") == 128_255
    assert tokenizer.decode([128_000, 259, 128_001]) == "<|begin_of_text|> the<|end_of_text|>"


def test_bos_is_added_where_the_tokenizer_does(bpe_folder: Path, sentencepiece_model: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers.processors import TemplateProcessing

    assert not open_tokenizer(bpe_folder).adds_bos
    assert open_tokenizer(sentencepiece_model).adds_bos

    library = Library.from_file(str(bpe_folder / "tokenizer.json"))
    library.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 1)])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.adds_bos, tokenizer.eos_id) == (1, True, None)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false, "eos_token": "<|endoftext|>"}')
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.adds_bos, tokenizer.eos_id) == (1, False, 0)


def test_special_tokens_may_come_from_the_models_config(bpe_folder: Path, tmp_path: Path) -> None:
    shutil.copy(bpe_folder / "tokenizer.json", tmp_path)
    (tmp_path / "config.json").write_text('{"bos_token_id": 1, "eos_token_id": [0, 7]}')
    tokenizer = open_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 0)


def test_the_fingerprint_ignores_what_does_not_decide_ids(bpe_folder: Path, tmp_path: Path) -> None:
    description = json.loads((bpe_folder / "tokenizer.json").read_text())
    description["padding"] = {"strategy": {"Fixed": 8}}
    description["truncation"] = {"max_length": 8}
    description["version"] = "2.0"
    description["model"]["merges"] = [" ".join(merge) for merge in description["model"]["merges"]]
    del description["model"]["byte_fallback"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(dict(reversed(description.items()))))
    assert open_tokenizer(bpe_folder).fingerprint == _fingerprint(tmp_path)

    description["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    assert open_tokenizer(bpe_folder).fingerprint != _fingerprint(tmp_path)


def test_the_fingerprint_knows_what_false_means(tmp_path: Path) -> None:
    def fingerprint(**described: object) -> str:
        (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, **described}))
        return _fingerprint(tmp_path)

    for kind, key in (("Metaspace", "split"), ("ByteLevel", "use_regex")):
        steps = [{"type": kind, **stated} for stated in ({}, {key: True}, {key: False})]
        absent, true, false = (
            fingerprint(pre_tokenizer={"type": "Sequence", "pretokenizers": [step]}) for step in steps
        )
        assert absent == true != false
        assert len({fingerprint(pre_tokenizer=step) for step in steps}) == 2
    bert = [fingerprint(normalizer={"type": "BertNormalizer", "strip_accents": strip}) for strip in (None, True, False)]
    assert len(set(bert)) == 3
    assert fingerprint(pre_tokenizer=None) == fingerprint()


def _fingerprint(folder: Path) -> str:
    """The fingerprint of a description that the library need not be able to load."""
    from megacpt.data.tokenizer_fingerprint import hugging_face_fingerprint

    return hugging_face_fingerprint(folder / "tokenizer.json")


def test_a_folder_with_only_a_model_file_opens_that(sentencepiece_model: Path) -> None:
    assert open_tokenizer(sentencepiece_model.parent).kind == "sentencepiece"


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such tokenizer"):
        open_tokenizer(tmp_path / "nowhere")
    with pytest.raises(DataError, match="the folder holds no tokenizer"):
        open_tokenizer(tmp_path)
    (tmp_path / "noise.model").write_bytes(b"\x00\x01noise")
    with pytest.raises(DataError, match=r"noise\.model: this is no tokenizer"):
        open_tokenizer(tmp_path / "noise.model")
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(DataError, match=r"tokenizer\.json: this is no tokenizer\.json"):
        open_tokenizer(tmp_path)


def test_a_tokenizer_that_draws_its_merges_is_refused(tmp_path: Path) -> None:
    model = models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.1)
    LibraryTokenizer(model).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"tokenizer\.json: the tokenizer leaves out merges at random.*dropout to null"):
        open_tokenizer(tmp_path)


def test_another_models_ranks_are_refused(llama3_ranks: Path, tmp_path: Path) -> None:
    lines = llama3_ranks.read_bytes().splitlines(keepends=True)
    (tmp_path / "fewer.model").write_bytes(b"".join(lines[:1000]))
    with pytest.raises(DataError, match=r"not Llama 3's .found 1,000 ranks, expected 128,000"):
        open_tokenizer(tmp_path / "fewer.model")
    (tmp_path / "torn.model").write_bytes(b"".join(lines[:10]) + b"IQ=")
    with pytest.raises(DataError, match=r"torn\.model:11: this is no line of tiktoken ranks"):
        open_tokenizer(tmp_path / "torn.model")
