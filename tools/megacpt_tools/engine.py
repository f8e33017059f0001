"""Which library makes a tokenizer's ids: the fastest that is installed and proves to make the same.

    fastokens   byte-pair tokenizers and Llama 3's ranks; several times as fast as tiktoken on text that is split by one
                of the patterns it knows (GPT-2's, Llama 3's, Qwen's, o200k, ...)
    tiktoken    byte-level BPE, with a proof for its merges (`byte_pairs`)

Proof is by comparison with the tokenizer's own library, for the tokenizer and the input at hand: every character of
Unicode's used planes, random mixtures of all kinds of characters, long runs of one, special tokens spelled out as text,
and documents of the input, alone and as one. At one difference a library is not used.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from megacpt.data.manifest import EngineRecord
from megacpt_tools.byte_pairs import BytePairTokenizer, byte_pairs, llama3_description, unproven
from megacpt_tools.tokenizer import HuggingFaceTokenizer, Library, TiktokenTokenizer, Tokenizer

ENGINES: tuple[Library, ...] = ("fastokens", "tiktoken")
"""The fastest first."""
_PLANES = ((0x0000, 0xD800), (0xE000, 0x32000), (0xE0000, 0xE0200))
"""Every plane of Unicode with assigned characters, surrogates left out."""
_KINDS = (
    *("\n", "\r\n", "\t", " ", "  ", "\x00", "\x85", "\xa0", "\u2028", "\u3000"),
    *("'", "'s", "'LL", "'ve", "/", "-", "_", ".", ",", "!", "=", "<", "{", "\U0001f600", "\u200d"),
    *("a", "A", "z", "S", "the", " The", "\xe9", "\u0130", "\u01c5", "\u02b0", "\xaa", "\u0301", "\u0308"),
    *("\u4e2d", "\u3042", "\uac00", "\u0e33", "\U00020000", "0", "1", "9", "12345", "\u0661", "\u2167", "\xbd"),
)
"""What patterns tell apart: letters by case, marks, numbers, white space, line ends, contractions, scripts."""
_RUN_CHARACTERS = 1 << 16


class FastokensTokenizer:
    """A byte-pair tokenizer whose ids fastokens makes.

    Raises:
        ValueError: fastokens does not understand it.
    """

    library: Library = "fastokens"

    def __init__(self, tokenizer: HuggingFaceTokenizer | TiktokenTokenizer) -> None:
        # One process a core is the build's parallelism. It is read once, when the library first encodes.
        os.environ["FASTOKENS_BPE_THREADS"] = "1"
        from fastokens import Tokenizer as Fast

        self._slow = tokenizer
        if isinstance(tokenizer, TiktokenTokenizer):
            description = llama3_description(tokenizer.ranks)
        else:
            description = tokenizer.description
        self._library = Fast.from_json_str(json.dumps(description | {"truncation": None, "padding": None}))
        self.kind = tokenizer.kind
        self.vocab_size = tokenizer.vocab_size
        self.bos_id, self.eos_id, self.adds_bos = tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos
        self.decode, self.token_id = tokenizer.decode, tokenizer.token_id

    @property
    def fingerprint(self) -> str:
        return self._slow.fingerprint

    def encode(self, texts: list[str]) -> tuple[NDArray, NDArray[np.int64]]:
        try:
            ids, offsets = self._library.encode_batch_flat(texts, split_special_tokens=True)
        except Exception:  # whatever it gives up on is the slower library's
            return self._slow.encode(texts)
        ends = np.frombuffer(offsets, np.int64)
        return np.frombuffer(ids, np.int32), ends[1:] - ends[:-1]


def fastest(
    tokenizer: Tokenizer, texts: Iterable[str], engines: Sequence[Library] = ENGINES
) -> tuple[Tokenizer, EngineRecord]:
    """The tokenizer, run by the first engine that is there and proves equal, and how that was found.

    Args:
        tokenizer: as opened.
        texts: documents of the input, which are encoded by both.
        engines: what may run it.
    """
    reasons = []
    if isinstance(tokenizer, HuggingFaceTokenizer | TiktokenTokenizer):
        sample = list(texts)
        for engine in engines:
            if engine == tokenizer.library:
                break
            fast = _opened(tokenizer, engine)
            if isinstance(fast, str):
                reasons.append(f"{engine}: {fast}")
            elif not _agree(tokenizer, fast, _adversities(tokenizer)):
                reasons.append(f"{engine}: encodes some characters differently")
            elif not _agree(tokenizer, fast, [*sample, "\n".join(sample)]):
                reasons.append(f"{engine}: encodes documents of the input differently")
            else:
                num_tokens = int(fast.encode(sample)[1].sum())
                reason = "; ".join(reasons) or None
                record = EngineRecord(
                    name=engine, reason=reason, checked_documents=len(sample), checked_tokens=num_tokens
                )
                return fast, record
    return tokenizer, EngineRecord(name=tokenizer.library, reason="; ".join(reasons) or None)


def reopened(tokenizer: Tokenizer, engine: EngineRecord) -> Tokenizer:
    """A tokenizer opened again, under the engine that `fastest` found for it; nothing is checked again."""
    if engine.name == tokenizer.library:
        return tokenizer
    assert isinstance(tokenizer, HuggingFaceTokenizer | TiktokenTokenizer)
    opened = _opened(tokenizer, engine.name, is_proven=True)
    assert not isinstance(opened, str)
    return opened


def _opened(
    tokenizer: HuggingFaceTokenizer | TiktokenTokenizer, engine: Library, is_proven: bool = False
) -> Tokenizer | str:
    """The tokenizer under an engine, or why it cannot run it."""
    if engine == "fastokens":
        if find_spec("fastokens") is None:
            return "is not installed"
        description = tokenizer.description if isinstance(tokenizer, HuggingFaceTokenizer) else {}
        if '"Digits"' in json.dumps(description.get("pre_tokenizer")):
            return "is no faster where digits are a step of their own"
        try:
            return FastokensTokenizer(tokenizer)
        except ValueError as error:
            return f"does not understand it ({error})"
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    pairs = byte_pairs(tokenizer.description)
    if isinstance(pairs, str):
        return pairs
    fault = None if is_proven else unproven(pairs, tokenizer.description)
    return fault or BytePairTokenizer(tokenizer, pairs)


def _adversities(tokenizer: HuggingFaceTokenizer | TiktokenTokenizer) -> Iterator[str]:
    """Texts that two ways to split text most easily treat differently."""
    for start, stop in _PLANES:
        for first in range(start, stop, 4096):
            characters = [chr(code) for code in range(first, min(first + 4096, stop))]
            yield "".join(f"a{character}1 {character}" for character in characters)
            yield unicodedata.normalize("NFD", "".join(characters))
    random = np.random.default_rng(0)
    for _ in range(32):
        yield "".join(_KINDS[kind] for kind in random.integers(0, len(_KINDS), 4096))
    for character in " \na1=\u00e9":
        yield character * _RUN_CHARACTERS + "b"
    if isinstance(tokenizer, HuggingFaceTokenizer):
        yield " ".join(f"a{token['content']}b {token['content']}" for token in tokenizer.description["added_tokens"])


def _agree(one: Tokenizer, other: Tokenizer, texts: Iterable[str]) -> bool:
    """Whether the two encode texts alike."""
    return all(np.array_equal(one.encode([text])[0], other.encode([text])[0]) for text in texts)
