"""A Hugging Face tokenizer whose library sees each word once.

    text -> normalised, as its tokenizer.json says -> words -> their numbers, looked up -> the ids of each, end to end

WordPiece, WordLevel and most Unigram tokenizers cut text at spaces before their model sees it, and what is around a
word makes no difference to its ids. Words repeat. Where none does, this takes up to twice the library's own time; the
new words of a block go through it together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from megacpt.data.shard import ranges
from megacpt_tools.tokenizer import FasterTokenizer, HuggingFaceTokenizer, Library, end_to_end

if TYPE_CHECKING:
    from tokenizers import Tokenizer as LibraryTokenizer

MAX_CHARACTERS = 1 << 23
"""A cache that has more in its words is begun anew: some 100 MiB."""
_NO_SPACE = r"[^ \n\r\t]+"
_NO_SPACE_OR_PUNCTUATION = r"[!-/:-@\[-`{-~]|[^ \n\r\t!-/:-@\[-`{-~]+"
"""ASCII's punctuation, a word each, and what stands between that and spaces."""
_WORDS = {"WhitespaceSplit": _NO_SPACE, "Whitespace": _NO_SPACE, "BertPreTokenizer": _NO_SPACE_OR_PUNCTUATION}
"""What stands between places where these pre-tokenizers always cut; they may cut it further."""
_PLAIN = re.compile(r"[ -~\n\t]*")
"""ASCII without control characters but two."""
_WHITE_SPACE = ("", " ", "a a", "a\na", "a\ta", "a  a", "a\n \ta", "  a", "a ", "a  ", "a\n")
_UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
_BY_CHARACTER = (*_UNICODE_FORMS, "Nmt", "Precompiled", "StripAccents", "Lowercase", "BertNormalizer", "Strip")
"""Rules of normalisation that treat each plain character alone, but for white space."""


class WordCacheTokenizer(FasterTokenizer):
    """A tokenizer.json whose ids the `tokenizers` library makes, once for each word.

    Raises:
        ValueError: it cuts text elsewhere than at spaces first, or looks for tokens in it before that.
    """

    library: Library = "word-cache"

    def __init__(self, tokenizer: HuggingFaceTokenizer) -> None:
        from tokenizers import Tokenizer

        super().__init__(tokenizer)
        description = tokenizer.description
        if any(not token["special"] for token in description.get("added_tokens") or ()):
            raise ValueError("tokens are looked for in the text before it is cut")
        without = dict.fromkeys(("normalizer", "post_processor", "truncation", "padding"))
        self._library = Tokenizer.from_str(json.dumps(description | without | {"added_tokens": []}))
        self._words = _words_of(self._library.pre_tokenizer, description.get("normalizer") is not None)
        self._normalized = _normalized_by(tokenizer, self._words)
        self._known = _KnownWords(self._library)

    def encode(self, texts: list[str]) -> tuple[NDArray, NDArray[np.int64]]:
        words = [self._words(self._normalized(text)) for text in texts]
        ends = np.cumsum([0, *map(len, words)])
        try:
            ids, lengths = self._known.encode(chain.from_iterable(words), ends[-1])
        except Exception:  # the library raises plain Exception; what it has to say is of a whole text
            self._known = _KnownWords(self._library)
            return self._slow.encode(texts)
        if self._known.num_characters > MAX_CHARACTERS:
            self._known = _KnownWords(self._library)
        return ids, np.diff(np.concatenate([[0], np.cumsum(lengths)])[ends])


class _KnownWords(dict[str, int]):
    """Words in the order in which they came, by number, and their ids; a word that is not there is given the next."""

    def __init__(self, library: LibraryTokenizer) -> None:
        super().__init__()
        self.num_characters = 0
        self._library = library
        self._new: list[str] = []
        self._ids: NDArray[np.int32] = np.empty(0, np.int32)
        self._starts: NDArray[np.int64] = np.zeros(1, np.int64)
        """Where the ids of each word begin, and where the last end."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        self._new.append(word)
        return number

    def encode(self, words: Iterable[str], num_words: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The ids of words end to end, and how many each has."""
        numbers = np.fromiter(map(self.__getitem__, words), np.int64, num_words)
        if self._new:
            encodings = self._library.encode_batch_fast(self._new, add_special_tokens=False)
            ids, lengths = end_to_end([encoding.ids for encoding in encodings])
            self._starts = np.concatenate([self._starts, self._ids.size + np.cumsum(lengths)])
            self._ids = np.concatenate([self._ids, ids])
            self.num_characters += sum(map(len, self._new))
            self._new = []
        starts = self._starts[numbers]
        lengths = self._starts[numbers + 1] - starts
        return self._ids[ranges(starts, lengths)], lengths


def _words_of(pre_tokenizer: Any, is_normalized: bool) -> Callable[[str], list[str]]:
    """What cuts text at places where this pre-tokenizer cuts too, into words that it treats as if each were a text."""
    first, *rest = _steps({"type": "none"} if pre_tokenizer is None else json.loads(pre_tokenizer.__getstate__()))
    # The library asks where the first word began before text was normalised: what lost its first character has none.
    if any(step.get("prepend_scheme") == "first" for step in ([first, *rest] if is_normalized else rest)):
        raise ValueError("the first word is cut otherwise than the others")
    if first["type"] in _WORDS:
        return re.compile(_WORDS[first["type"]]).findall
    if first["type"] == "Metaspace" and first["split"] and first["prepend_scheme"] in ("always", "first"):
        space = first["replacement"]
        return lambda text: _words_after_spaces(text, space)
    raise ValueError("text is cut elsewhere than at spaces")


def _steps(described: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer in their order; a sequence may stand in another."""
    return list(chain.from_iterable(map(_steps, described.get("pretokenizers", ())))) or [described]


def _words_after_spaces(text: str, space: str) -> list[str]:
    """As Metaspace cuts: a word begins at each space, and at the start of the text, where one is put if none is."""
    words = [f"{space}{word}" for word in text.replace(space, " ").split(" ")]
    return words[1:] if words[0] == space else words


def _normalized_by(tokenizer: HuggingFaceTokenizer, words: Callable[[str], list[str]]) -> Callable[[str], str]:
    """What normalises text so that its words are those of the tokenizer's own rules; plain text several times as fast.

    A tokenizer that changes no more of plain text than case and white space is known by the kinds of its rules and by
    what they make of each character.
    """
    own = tokenizer.normalized
    end = own("a\n")[1:]
    cased = str.lower if own("A") == "a" else str

    def normalized(text: str) -> str:
        if not _PLAIN.fullmatch(text):
            return own(text)
        return cased(" ".join(text.split())) + (end if text.endswith((" ", "\n", "\t")) else "")

    samples = [*(f"a{chr(code)}a" for code in range(ord("!"), ord("~") + 1)), *_WHITE_SPACE]
    is_known = _is_by_character(tokenizer.description.get("normalizer"))
    return normalized if is_known and all(words(normalized(each)) == words(own(each)) for each in samples) else own


def _is_by_character(normalizer: dict[str, Any] | None) -> bool:
    """Whether there are rules of normalisation, and all are known to treat plain characters alone."""
    if normalizer is None:
        return False
    if normalizer["type"] == "Sequence":
        return all(map(_is_by_character, normalizer["normalizers"]))
    return normalizer["type"] in _BY_CHARACTER or normalizer.get("pattern") == {"Regex": " {2,}"}
