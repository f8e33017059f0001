"""What makes a tokenizer's ids: the fastest that is installed and proves to make the same.

    gigatoken   byte pairs with byte fallback (Llama 2, Mistral, Gemma), of SentencePiece or Hugging Face
    fastokens   byte-level BPE and Llama 3's ranks; several times as fast as tiktoken on text that is split by one of
                the patterns it knows (GPT-2's, Llama 3's, Qwen's, o200k, ...)
    tiktoken    byte-level BPE, with a proof for its merges (`byte_pairs`)
    word-cache  what is cut at spaces (WordPiece, most Unigram): its own library, once for each word

Where none is faster and exact, the tokenizer's own library does it.

Proof is by comparison with that library, for the tokenizer and the input at hand: every character of Unicode's used
planes, all kinds of characters in pairs and in random mixtures, long runs of one, the whole vocabulary spelled out as
text in a random order, a few tokens over and over, and documents of the input, alone and as one. At one difference an
engine is not used.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import product
from typing import Any

import numpy as np

from megacpt.data.manifest import EngineRecord
from megacpt_tools.byte_pairs import BytePairTokenizer, byte_pairs, unproven
from megacpt_tools.fast_tokenizers import FastokensTokenizer, GigatokenTokenizer
from megacpt_tools.tokenizer import FasterTokenizer, HuggingFaceTokenizer, Library, Tokenizer
from megacpt_tools.word_cache import WordCacheTokenizer

_PLANES = ((0x0000, 0xD800), (0xE000, 0x32000), (0xE0000, 0xE0200))
"""Every plane of Unicode with assigned characters, surrogates left out."""
_KINDS = (
    *("\n", "\r\n", "\t", " ", "  ", "\x00", "\x85", "\xa0", "\u2028", "\u3000"),
    *("'", "'s", "'LL", "'ve", "/", "-", "_", ".", ",", "!", "=", "<", "{", "\U0001f600", "\u200d"),
    *("a", "A", "z", "S", "the", " The", "\xe9", "\u0130", "\u01c5", "\u02b0", "\xaa", "\u0301", "\u0308"),
    *("\u2581", " \u2581", "\u2581\u2581", "\u2581the", "<s>", "</s>", "<unk>", "<0x0A>"),
    *("\u4e2d", "\u3042", "\uac00", "\u0e33", "\U00020000", "0", "1", "9", "12345", "\u0661", "\u2167", "\xbd"),
)
"""What patterns tell apart: letters by case, marks, numbers, white space, line ends, contractions, scripts; and what
SentencePiece writes for spaces, special tokens and bytes."""
_RUN_CHARACTERS = 1 << 16
_NUM_SEQUENCES = 256
"""Of few tokens each, where ways to cut a text tie; one in 300 tells one library's Unigram from another's."""
_FASTER: dict[str, Callable[[Any], FasterTokenizer]] = {
    "fastokens": FastokensTokenizer,
    "gigatoken": GigatokenTokenizer,
    "word-cache": WordCacheTokenizer,
}


def candidates(tokenizer: Tokenizer) -> tuple[Library, ...]:
    """What may run a tokenizer, the fastest first."""
    if tokenizer.kind == "tiktoken":
        return ("fastokens",)
    if tokenizer.kind == "sentencepiece":
        return ("gigatoken",)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    model = tokenizer.description["model"]
    if model.get("type", "BPE") != "BPE":
        return ("word-cache",)
    if model.get("byte_fallback"):
        return ("gigatoken", "fastokens", "word-cache")
    return ("fastokens", "tiktoken", "word-cache")


def fastest(
    tokenizer: Tokenizer, texts: Iterable[str], engines: Sequence[Library] | None = None
) -> tuple[Tokenizer, EngineRecord]:
    """The tokenizer, run by the first engine that is there and proves equal, and how that was found.

    Args:
        tokenizer: as opened.
        texts: documents of the input, which are encoded by both.
        engines: what may run it, in this order; `candidates` if None.
    """
    reasons = []
    sample = list(texts)
    for engine in candidates(tokenizer) if engines is None else engines:
        fast = _opened(tokenizer, engine)
        if isinstance(fast, str):
            reasons.append(f"{engine}: {fast}")
        elif not all(map(fast.is_exact, _adversities(tokenizer))):
            reasons.append(f"{engine}: encodes some characters differently")
        elif not all(map(fast.is_exact, [*sample, "\n".join(sample)])):
            reasons.append(f"{engine}: encodes documents of the input differently")
        else:
            reason = "; ".join(reasons) or None
            num_tokens = []
            for text in sample:
                with suppress(ValueError):  # its own library gives up on it, too
                    num_tokens.append(int(fast.encode([text])[1].sum()))
            return fast, EngineRecord(
                name=engine, reason=reason, checked_documents=len(num_tokens), checked_tokens=sum(num_tokens)
            )
    return tokenizer, EngineRecord(name=tokenizer.library, reason="; ".join(reasons) or None)


def reopened(tokenizer: Tokenizer, engine: EngineRecord) -> Tokenizer:
    """A tokenizer opened again, under the engine that `fastest` found for it; nothing is checked again."""
    if engine.name == tokenizer.library:
        return tokenizer
    opened = _opened(tokenizer, engine.name, is_proven=True)
    assert not isinstance(opened, str)
    return opened


def _opened(tokenizer: Tokenizer, engine: Library, is_proven: bool = False) -> FasterTokenizer | str:
    """The tokenizer under an engine, or why it cannot run it."""
    if engine == "tiktoken":
        assert isinstance(tokenizer, HuggingFaceTokenizer)
        pairs = byte_pairs(tokenizer.description)
        if isinstance(pairs, str):
            return pairs
        fault = None if is_proven else unproven(pairs, tokenizer.description)
        return fault or BytePairTokenizer(tokenizer, pairs)
    try:
        return _FASTER[engine](tokenizer)
    except ImportError:
        return "is not installed"
    except ValueError as error:
        return f"cannot run it ({error})"


def _adversities(tokenizer: Tokenizer) -> Iterator[str]:
    """Texts that two ways to split text most easily treat differently."""
    for start, stop in _PLANES:
        for first in range(start, stop, 4096):
            characters = [chr(code) for code in range(first, min(first + 4096, stop))]
            yield "".join(f"a{character}1 {character} " for character in characters)
            yield unicodedata.normalize("NFD", "".join(characters))
    yield from map("".join, product(_KINDS, repeat=2))
    random = np.random.default_rng(0)
    for _ in range(32):
        yield "".join(_KINDS[kind] for kind in random.integers(0, len(_KINDS), 4096))
    for character in " \na1=\u00e9\u2581":
        yield character * _RUN_CHARACTERS + "b"
    order = random.permutation(tokenizer.vocab_size).tolist()
    for tokens in ([tokenizer.spelling(each) for each in order], [tokenizer.decode([each]) for each in order]):
        yield "".join(tokens)
        yield " ".join(tokens)
        for _ in range(_NUM_SEQUENCES):
            few = [" ", *(tokens[each] for each in random.integers(0, len(tokens), 4))]
            yield "".join(few[each] for each in random.integers(0, len(few), 512))
