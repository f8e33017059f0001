"""Tokenizers run by a library that is faster than their own.

    FastokensTokenizer   fastokens: byte pairs of text that is split by a known pattern, as GPT-2, Llama 3 and Qwen have
    GigatokenTokenizer   gigatoken: byte pairs of whole text, with byte fallback, as Llama 2, Mistral and Gemma have

Whether the ids are the same, `engine` finds out.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacpt_tools.byte_pairs import llama3_description
from megacpt_tools.tokenizer import (
    FasterTokenizer,
    HuggingFaceTokenizer,
    Library,
    SentencePieceTokenizer,
    TiktokenTokenizer,
    joined,
)

_SPACE = "\u2581"
"""What SentencePiece writes for a space."""


class FastokensTokenizer(FasterTokenizer):
    """A byte-pair tokenizer whose ids fastokens makes.

    Raises:
        ValueError: fastokens does not understand it.
    """

    library: Library = "fastokens"

    def __init__(self, tokenizer: HuggingFaceTokenizer | TiktokenTokenizer) -> None:
        # One process a core is the build's parallelism. It is read once, when the library first encodes.
        os.environ["FASTOKENS_BPE_THREADS"] = "1"
        from fastokens import Tokenizer as Fast

        super().__init__(tokenizer)
        if isinstance(tokenizer, TiktokenTokenizer):
            description = llama3_description(tokenizer.ranks)
        else:
            description = tokenizer.description
            if '"Digits"' in json.dumps(description.get("pre_tokenizer")):
                raise ValueError("digits are a step of their own, where it is no faster")
        self._library = Fast.from_json_str(json.dumps(description | {"truncation": None, "padding": None}))

    def encode(self, texts: list[str]) -> tuple[NDArray, NDArray[np.int64]]:
        try:
            ids, offsets = self._library.encode_batch_flat(texts, split_special_tokens=True)
        except Exception:  # whatever it gives up on is the slower library's
            return self._slow.encode(texts)
        ends = np.frombuffer(offsets, np.int64)
        return np.frombuffer(ids, np.int32), ends[1:] - ends[:-1]


class GigatokenTokenizer(FasterTokenizer):
    """A tokenizer of byte pairs with byte fallback whose ids gigatoken makes.

    gigatoken reads a SentencePiece model as Hugging Face's conversion does, which looks for control and user-defined
    symbols in the text first. SentencePiece never finds the former, so they are given spellings that no merge makes. A
    text with one of the latter goes through its own library.

    Raises:
        ValueError: gigatoken does not understand it.
    """

    library: Library = "gigatoken"

    def __init__(self, tokenizer: HuggingFaceTokenizer | SentencePieceTokenizer) -> None:
        from gigatoken import Tokenizer as Fast

        super().__init__(tokenizer)
        self._symbols: list[str] = []
        try:
            if isinstance(tokenizer, SentencePieceTokenizer):
                model, self._symbols = _without_symbols(tokenizer.model)
                self._library = Fast.from_sentencepiece(model)
            else:
                self._library = Fast.from_json(json.dumps(_without_special_tokens(tokenizer.description)))
        except RuntimeError as error:
            raise ValueError(str(error).splitlines()[0]) from None

    def encode(self, texts: list[str]) -> tuple[NDArray, NDArray[np.int64]]:
        return joined([self._encode(text) for text in texts])

    def _encode(self, text: str) -> NDArray:
        if not any(symbol in text for symbol in self._symbols):
            with suppress(Exception):  # whatever it gives up on is the slower library's
                return self._library.encode(text).view(np.int32)
        return self._slow.encode([text])[0]


def _without_symbols(model: bytes) -> tuple[bytes, list[str]]:
    """A SentencePiece model with control, unknown and user-defined symbols out of the text's way; the last of them."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto.FromString(model)
    kinds = ModelProto.SentencePiece
    symbols = [piece.piece for piece in proto.pieces if piece.type == kinds.USER_DEFINED]
    if symbols and proto.normalizer_spec.precompiled_charsmap:
        raise ValueError("user-defined symbols in normalised text")
    if any(symbol.split() != [symbol] or _SPACE in symbol for symbol in symbols):
        raise ValueError("user-defined symbols of white space")
    for token_id, piece in enumerate(proto.pieces):
        if piece.type in (kinds.CONTROL, kinds.UNKNOWN, kinds.USER_DEFINED):
            piece.piece = f"\0{token_id}"
        if piece.type in (kinds.CONTROL, kinds.USER_DEFINED):
            piece.type = kinds.UNUSED
        if piece.type == kinds.UNKNOWN:
            proto.trainer_spec.unk_piece = piece.piece
    return proto.SerializeToString(), symbols


def _without_special_tokens(description: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json that does not find special tokens in text, and does nothing after the model."""
    if description["model"].get("type", "BPE") != "BPE" or not description["model"].get("byte_fallback"):
        raise ValueError("the model is no BPE with byte fallback")
    added = [token for token in description.get("added_tokens", []) if not token["special"]]
    return description | {"added_tokens": added, "truncation": None, "padding": None, "post_processor": None}
