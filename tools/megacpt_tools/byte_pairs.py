"""A tokenizer.json of byte-level BPE, run by tiktoken: the same ids at several times the speed.

tiktoken merges whatever two neighbours make a token, the lowest rank first; Hugging Face merges the pairs that its list
names, in the list's order. These are the same when three things hold, and all three are checked here for the tokenizer
at hand, not assumed:

1. The description says nothing else: no normalizer but NFC, one pattern that splits the text, no added tokens but
   special ones (which are text to a build anyway).
2. Merges. Merging a token's own bytes by rank either ends in that token, its last merge joining a pair (l, r), or never
   forms it. Say all such pairs are in the list, in the order of their tokens' ranks. Then both algorithms take the same
   steps on any text. Proof: take two neighbours in a state that tiktoken reaches, making token t. No merge has crossed
   the borders of t, or they would be gone; so the merges inside them were those that t's bytes alone go through, in the
   same order; so the neighbours are t's pair (l, r). Hence the pairs that can ever be merged are the checked ones, both
   know them all and rank them alike, and both take the leftmost of equals.
3. Where the text is split depends on the character classes of two regular expression engines. That is compared, not
   proven (see `engine`).

A document that tiktoken gives up on (it limits backtracking), that NFC changes, or with a character whose bytes are no
tokens (the library drops it), goes through the tokenizers library.
"""

from __future__ import annotations

import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacpt_tools.tokenizer import (
    LLAMA3_PATTERN,
    FasterTokenizer,
    HuggingFaceTokenizer,
    Library,
    encode_together,
)

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel(use_regex) splits by; OpenAI's GPT-2, alternatives in the order of the library."""
_SINGLE_DIGITS_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
"""Digits(individual_digits) and then the former: space before a digit ends a piece."""
_BORDER = "<megacpt:border>"
"""What stands between documents that are encoded together; its id is no document's."""


@dataclass(frozen=True)
class BytePairs:
    """What tiktoken needs."""

    ranks: dict[bytes, int]
    pattern: str
    is_composed: bool
    """The tokenizer brings text to NFC first."""
    absent: tuple[str, ...]
    """ASCII characters that are no tokens."""
    absent_beyond_ascii: str
    """A regular expression for such characters of two bytes or more, and with NFC for those that this Python does not
    know (a newer Unicode may compose them); empty if there are none."""


class BytePairTokenizer(FasterTokenizer):
    """A Hugging Face tokenizer whose ids tiktoken makes."""

    library: Library = "tiktoken"

    def __init__(self, tokenizer: HuggingFaceTokenizer, pairs: BytePairs) -> None:
        import tiktoken

        super().__init__(tokenizer)
        self._is_composed = pairs.is_composed
        self._absent = pairs.absent
        self._absent_beyond_ascii = re.compile(pairs.absent_beyond_ascii) if pairs.absent_beyond_ascii else None
        border_id = max(pairs.ranks.values()) + 1
        self._library = tiktoken.Encoding(
            "tokenizer.json", pat_str=pairs.pattern, mergeable_ranks=pairs.ranks, special_tokens={_BORDER: border_id}
        )

    def encode(self, texts: list[str]) -> tuple[NDArray, NDArray[np.int64]]:
        if not any(map(self._needs_library, texts)):
            with suppress(ValueError):  # it limits backtracking
                return encode_together(self._library, texts, _BORDER)
        arrays = [self._encode(text) for text in texts]
        lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
        return np.concatenate(arrays) if arrays else np.empty(0, np.int32), lengths

    def _encode(self, text: str) -> NDArray:
        if not self._needs_library(text):
            with suppress(ValueError):
                return self._library.encode_to_numpy(text, disallowed_special=()).view(np.int32)
        return self._slow.encode([text])[0]

    def _needs_library(self, text: str) -> bool:
        if any(character in text for character in self._absent):
            return True
        if text.isascii():
            return False
        if self._absent_beyond_ascii is not None and self._absent_beyond_ascii.search(text):
            return True
        return self._is_composed and unicodedata.normalize("NFC", text) != text


def byte_pairs(description: dict[str, Any]) -> BytePairs | str:
    """What tiktoken needs to run a tokenizer.json, or why it cannot."""
    model = description["model"]
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        return f"the model is {model.get('type')}, not BPE"
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            return f"the model has {key}"
    normalizer = description.get("normalizer")
    if normalizer is not None and normalizer != {"type": "NFC"}:
        return f"the normalizer is {normalizer['type']}"
    pattern = _pattern(description.get("pre_tokenizer") or {})
    if pattern is None:
        return "the pre-tokenizer is no single pattern"
    added = {token["content"]: token["special"] for token in description.get("added_tokens", [])}
    if not all(added.values()):
        return "some added tokens are not special"
    byte_of = {character: byte for byte, character in enumerate(_byte_characters())}
    try:
        ranks = {
            bytes(byte_of[character] for character in token): rank
            for token, rank in model["vocab"].items()
            if token not in added
        }
    except KeyError:
        return "some tokens are not spelled in bytes"
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if any(0x80 <= byte < 0xC0 for byte in missing):
        return "some bytes inside characters are no tokens"
    absent = tuple(chr(byte) for byte in missing if byte < 0x80)
    beyond_ascii = "".join(_led_by(byte) for byte in missing if 0xC2 <= byte < 0xF5)
    if normalizer is not None:
        beyond_ascii += _unassigned()
    pairs = BytePairs(ranks, pattern, normalizer is not None, absent, f"[{beyond_ascii}]" if beyond_ascii else "")
    if not model.get("ignore_merges"):
        # tiktoken takes a piece that is a token for that token. What no merges form must not be there.
        for token in [token for token in ranks if len(token) > 1 and _last_pair(token, ranks) is None]:
            del ranks[token]
    return pairs


def unproven(pairs: BytePairs, description: dict[str, Any]) -> str | None:
    """Where the merges of the two algorithms differ (see the module, 2), or None where they do not."""
    byte_of = {character: byte for byte, character in enumerate(_byte_characters())}
    order: dict[tuple[bytes, ...], int] = {}
    for place, merge in enumerate(description["model"]["merges"]):
        halves = merge.split(" ", 1) if isinstance(merge, str) else merge
        try:
            pair = tuple(bytes(byte_of[character] for character in half) for half in halves)
        except KeyError:
            return "some merges are not spelled in bytes"
        order[pair] = place
    last_pairs = (
        _last_pair(token, pairs.ranks)
        for token, _ in sorted(pairs.ranks.items(), key=lambda item: item[1])
        if len(token) > 1
    )
    places = [order.get(pair, -1) for pair in last_pairs if pair is not None]
    if any(place < 0 for place in places):
        return "tiktoken would merge pairs that the tokenizer does not"
    if any(later < earlier for earlier, later in pairwise(places)):
        return "the merges are not in the order of their tokens"
    return None


def llama3_description(ranks: dict[bytes, int]) -> dict[str, Any]:
    """Llama 3's ranks as the tokenizer.json that has the same ids: the pairs of the proof above are all its merges."""
    characters = _byte_characters()

    def spelled(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    last_pairs = (_last_pair(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1)
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {spelled(token): rank for token, rank in ranks.items()},
            "merges": [[spelled(half) for half in pair] for pair in last_pairs if pair is not None],
        },
    }


def _last_pair(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that merging by rank joins last into this one; None if it never forms."""
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        lowest, place = None, -1
        for at in range(len(parts) - 1):
            rank = ranks.get(parts[at] + parts[at + 1])
            if rank is not None and (lowest is None or rank < lowest):
                lowest, place = rank, at
        if lowest is None:
            return None
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


def _pattern(pre_tokenizer: dict[str, Any]) -> str | None:
    """The regular expression that a pre-tokenizer amounts to, None if to none that is known."""
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    *before, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    uses_regex = last.get("use_regex", True)
    if not before:
        return GPT2_PATTERN if uses_regex else None
    first, *others = before
    if others:
        return None
    if first == {"type": "Digits", "individual_digits": True} and uses_regex:
        return _SINGLE_DIGITS_PATTERN
    is_plain_split = (
        first.get("type") == "Split" and first.get("behavior") == "Isolated" and not first.get("invert", False)
    )
    return first["pattern"].get("Regex") if is_plain_split and not uses_regex else None


def _byte_characters() -> list[str]:
    """The character that byte-level BPE writes for each byte: itself where that is printable, else one from 256 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _led_by(byte: int) -> str:
    """The range of characters whose UTF-8 begins with a byte, as in a regular expression."""
    num_following = 1 if byte < 0xE0 else 2 if byte < 0xF0 else 3
    first = (byte & (0x3F >> num_following)) << 6 * num_following
    last = min(first + (1 << 6 * num_following) - 1, 0x10FFFF)
    return f"\\U{first:08x}-\\U{last:08x}"


@cache
def _unassigned() -> str:
    """The ranges of characters that this Python's Unicode does not assign, as in a regular expression."""
    codes = np.array([code for code in range(0x80, 0x110000) if unicodedata.category(chr(code)) == "Cn"])
    runs = np.split(codes, np.flatnonzero(np.diff(codes) > 1) + 1)
    return "".join(f"\\U{run[0]:08x}-\\U{run[-1]:08x}" for run in runs)
