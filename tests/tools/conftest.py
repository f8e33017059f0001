"""Real tokenizers of each kind, small, made here."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from megacpt_tools import engine
from megacpt_tools.tokenizer import LLAMA3_NUM_RANKS

TEXTS = [
    "The heart pumps blood through the arteries.",
    "Das Herz pumpt Blut durch die Arterien.\n\nZweiter Absatz, mit <|endoftext|> darin.",
    "def heart(rate: int) -> float:\n\treturn 60 / rate  # seconds\n",
    "心臓は血液を送り出す。 🫀",
    "a",
    " leading and trailing spaces   \n",
]


@pytest.fixture
def few_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing engines over all of Unicode takes seconds."""
    monkeypatch.setattr(engine, "_PLANES", ((0x0000, 0x0400),))


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: byte-level BPE of 400 ids, EOS <|endoftext|> (id 0), no BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    return folder


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model with byte fallback, BOS 1 and EOS 2."""
    return train_sentencepiece(tmp_path_factory.mktemp("sentencepiece"))


def train_sentencepiece(folder: Path, **settings: Any) -> Path:
    """A SentencePiece model of the texts, as Llama 2's if the settings say nothing else."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    defaults: dict[str, Any] = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS * 5),
        model_writer=model,
        vocab_size=340,
        hard_vocab_limit=False,
        minloglevel=2,
        **defaults | settings,
    )
    path = folder / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def llama3_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as Llama 3's: every byte, a few merges, and tokens that no text reaches up to 128,000 ranks."""
    tokens = [bytes([byte]) for byte in range(256)] + [b" t", b"th", b"he", b" the", b"ar", b"eart"]
    tokens += [b"\0\1" + number.to_bytes(3, "big") for number in range(LLAMA3_NUM_RANKS - len(tokens))]
    path = tmp_path_factory.mktemp("llama3") / "tokenizer.model"
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)))
    return path
