"""Three kinds of tokenizer behind one face: many texts in, their ids end to end out.

    Hugging Face   a folder with tokenizer.json, or the file         the `tokenizers` library, batched
    SentencePiece  a .model file                                     sentencepiece
    tiktoken       Llama 3's tokenizer.model (128,000 ranks)         tiktoken, several times as fast as the first

Where a faster library makes the same ids, a build uses that (`engine`).

Text is text: a special token spelled out in a document ("<|endoftext|>" in a web page) is encoded as the characters it
consists of, never as the token, because a corpus must not be able to end a document or open a chat turn. The build
itself puts BOS and EOS around documents. Otherwise the ids are exactly those of the library that owns the format.

A fingerprint is a sha256 over what decides the ids and nothing else, so that it is equal for a tokenizer at any path:

    Hugging Face   tokenizer.json without truncation, padding, post-processor and decoder; keys sorted, absent, null
                   and false taken as the same where they are, merges as pairs (how they are spelled differs between
                   versions)
    SentencePiece  the model file
    tiktoken       the split pattern and every (token, rank) in the order of ranks
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from abc import ABC, abstractmethod
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from megacpt.data.tokenizer_fingerprint import hugging_face_fingerprint
from megacpt.errors import DataError

if TYPE_CHECKING:
    from tiktoken import Encoding

LLAMA3_NUM_RANKS = 128_000
LLAMA3_NUM_SPECIAL_TOKENS = 256
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_NAMED = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s*$")


Kind = Literal["huggingface", "sentencepiece", "tiktoken"]
Library = Literal["tokenizers", "sentencepiece", "tiktoken", "fastokens", "gigatoken", "word-cache"]


class Tokenizer(Protocol):
    """What the build needs of a tokenizer."""

    kind: Kind
    library: Library
    """What makes the ids."""
    vocab_size: int
    """One more than the highest id."""
    bos_id: int | None
    eos_id: int | None
    adds_bos: bool
    """The tokenizer itself begins every text with BOS."""

    @property
    def fingerprint(self) -> str:
        """sha256 over what decides the ids."""

    def encode(self, texts: list[str]) -> tuple[NDArray, NDArray[np.int64]]:
        """The ids of all texts end to end, without BOS and EOS, and how many each text has.

        Raises:
            ValueError: the library gave up on a text.
        """

    def decode(self, ids: list[int]) -> str:
        """Text of the ids, special tokens spelled out."""

    def token_id(self, token: str) -> int | None:
        """The id of a token by its spelling."""

    def spelling(self, token_id: int) -> str:
        """What `token_id` takes."""


class FasterTokenizer(ABC):
    """A tokenizer whose ids something faster makes; in all else it is that tokenizer."""

    library: Library

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._slow = tokenizer
        self.kind = tokenizer.kind
        self.vocab_size = tokenizer.vocab_size
        self.bos_id, self.eos_id, self.adds_bos = tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos
        self.decode, self.token_id, self.spelling = tokenizer.decode, tokenizer.token_id, tokenizer.spelling

    @property
    def fingerprint(self) -> str:
        return self._slow.fingerprint

    @abstractmethod
    def encode(self, texts: list[str]) -> tuple[NDArray, NDArray[np.int64]]:
        """As `Tokenizer.encode`."""

    def is_exact(self, text: str) -> bool:
        """Whether the ids of a text are those of the tokenizer's own library, if that has any for it."""
        try:
            own = self._slow.encode([text])[0]
        except ValueError:  # words without an unknown token, say
            return True
        return np.array_equal(self.encode([text])[0], own)


def open_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Open a Hugging Face folder or tokenizer.json, a SentencePiece .model, or Llama 3's tiktoken .model.

    Raises:
        DataError: nothing there, or nothing that is a tokenizer.
    """
    path = Path(path)
    if not path.exists():
        hint = "Download the model's tokenizer first, for instance with `hf download MODEL --local-dir FOLDER`."
        raise DataError("there is no such tokenizer", where=str(path), hint=hint)
    names = ("tokenizer.json", "tokenizer.model", "spiece.model")
    file = next((path / name for name in names if (path / name).is_file()), None) if path.is_dir() else path
    if file is None:
        raise DataError("the folder holds no tokenizer", where=str(path), expected=" or ".join(names))
    if file.suffix == ".json":
        return HuggingFaceTokenizer(file)
    with file.open("rb") as opened:
        is_ranks = _RANK_LINE.match(opened.readline(4096)) is not None
    return TiktokenTokenizer(file) if is_ranks else SentencePieceTokenizer(file)


class HuggingFaceTokenizer:
    """A tokenizer.json, with its BOS and EOS from the configuration files beside it, if there are any."""

    kind: Kind = "huggingface"
    library: Library = "tokenizers"

    def __init__(self, path: Path) -> None:
        # One process a core is the build's parallelism; threads inside the library would fight it for the cores.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        from megacpt.data.special_tokens import open_library, read_object, special_tokens

        self._path = path
        self.description = read_object(path)
        """What the file says."""
        self._library = open_library(path)
        if self.description["model"].get("dropout"):
            hint = "Set its dropout to null: shards hold one tokenization, the same whenever they are built."
            raise DataError("the tokenizer leaves out merges at random", where=str(path), hint=hint)
        self._library.no_padding()
        self._library.no_truncation()
        self._library.encode_special_tokens = True
        self.vocab_size = 1 + max(self._library.get_vocab(with_added_tokens=True).values())
        tokens = special_tokens(path, self._library)
        self.bos_id, self.eos_id, self.adds_bos = tokens.bos_id, tokens.eos_id, tokens.adds_bos

    @cached_property
    def fingerprint(self) -> str:
        return hugging_face_fingerprint(self._path)

    def encode(self, texts: list[str]) -> tuple[NDArray, NDArray[np.int64]]:
        try:
            encodings = self._library.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # the library raises plain Exception
            raise ValueError(str(error)) from None
        return end_to_end([encoding.ids for encoding in encodings])

    def decode(self, ids: list[int]) -> str:
        return self._library.decode(ids, skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        return self._library.token_to_id(token)

    def spelling(self, token_id: int) -> str:
        return self._library.id_to_token(token_id) or ""

    def normalized(self, text: str) -> str:
        """The text as its tokens are looked for in."""
        normalizer = self._library.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))


class SentencePieceTokenizer:
    """A SentencePiece model; it begins texts with BOS when it defines one, as Llama 2, Mistral and Gemma do."""

    kind: Kind = "sentencepiece"
    library: Library = "sentencepiece"

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self.model = path.read_bytes()
        """What the file holds."""
        self._library = SentencePieceProcessor()
        try:
            self._library.LoadFromSerializedProto(self.model)
        except RuntimeError:
            raise DataError(
                "this is no tokenizer",
                where=str(path),
                expected="tokenizer.json, a SentencePiece model or Llama 3's tiktoken ranks",
            ) from None
        self.vocab_size: int = self._library.GetPieceSize()
        self.bos_id = _defined(self._library.bos_id())
        self.eos_id = _defined(self._library.eos_id())
        self.adds_bos = self.bos_id is not None

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.model).hexdigest()

    def encode(self, texts: list[str]) -> tuple[NDArray, NDArray[np.int64]]:
        return joined(self._library.Encode(texts, out_type="numpy", num_threads=1))

    def decode(self, ids: list[int]) -> str:
        return self._library.Decode(ids)

    def token_id(self, token: str) -> int | None:
        found = self._library.PieceToId(token)
        return found if self._library.IdToPiece(found) == token else None

    def spelling(self, token_id: int) -> str:
        return self._library.IdToPiece(token_id)


class TiktokenTokenizer:
    """Llama 3's tokenizer.model: base64 tokens and ranks, one a line, and the special tokens that follow them.

    The file names neither its split pattern nor its special tokens, so a file with another number of ranks is another
    model's and refused.
    """

    kind: Kind = "tiktoken"
    library: Library = "tiktoken"
    adds_bos = True

    def __init__(self, path: Path) -> None:
        import tiktoken

        self.ranks = _read_ranks(path)
        """token -> id."""
        special_tokens = {_llama3_special_token(index): LLAMA3_NUM_RANKS + index for index in range(256)}
        self._library = tiktoken.Encoding(
            "llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=self.ranks, special_tokens=special_tokens
        )
        self._special_tokens = special_tokens
        self.vocab_size = LLAMA3_NUM_RANKS + LLAMA3_NUM_SPECIAL_TOKENS
        self.bos_id: int | None = LLAMA3_NUM_RANKS
        self.eos_id: int | None = LLAMA3_NUM_RANKS + 1

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(LLAMA3_PATTERN.encode())
        for token, rank in sorted(self.ranks.items(), key=lambda item: item[1]):
            digest.update(b"\n%s %d" % (base64.b64encode(token), rank))
        return digest.hexdigest()

    def encode(self, texts: list[str]) -> tuple[NDArray, NDArray[np.int64]]:
        return encode_together(self._library, texts, _llama3_special_token(LLAMA3_NUM_SPECIAL_TOKENS - 1))

    def decode(self, ids: list[int]) -> str:
        return self._library.decode(ids)

    def token_id(self, token: str) -> int | None:
        return self._special_tokens.get(token, self.ranks.get(token.encode()))

    def spelling(self, token_id: int) -> str:
        return self._library.decode([token_id])


def encode_together(library: Encoding, texts: list[str], border: str) -> tuple[NDArray, NDArray[np.int64]]:
    """What `Tokenizer.encode` returns, by one call of tiktoken: a call a text takes a sixth of the time of short ones.

    tiktoken cuts its input at special tokens before anything else, so what stands between two is encoded as if it stood
    alone. Texts that spell the border themselves go one by one, as text.

    Args:
        library: with the border among its special tokens.
        border: begins and ends in different characters that it has nowhere else, so that it is found where it was put.
    """
    ids = library.encode_to_numpy(border.join(texts), allowed_special={border}, disallowed_special=()).view(np.int32)
    at = np.flatnonzero(ids == library.encode_single_token(border))
    if at.size == len(texts) - 1:
        return np.delete(ids, at), np.diff(at, prepend=-1, append=ids.size) - 1
    return joined([library.encode_to_numpy(text, disallowed_special=()).view(np.int32) for text in texts])


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except (ValueError, binascii.Error):
                raise DataError("this is no line of tiktoken ranks", where=f"{path}:{number}", found=line) from None
    if len(ranks) != LLAMA3_NUM_RANKS:
        raise DataError(
            "this tiktoken file is not Llama 3's",
            where=str(path),
            found=f"{len(ranks):,} ranks",
            expected=f"{LLAMA3_NUM_RANKS:,}",
            hint="Use the tokenizer.json of the model: it also says how text is split.",
        )
    return ranks


def _llama3_special_token(index: int) -> str:
    """The name of special token `index`: five have a meaning, the rest are reserved and numbered without them."""
    if index in _LLAMA3_NAMED:
        return f"<|{_LLAMA3_NAMED[index]}|>"
    return f"<|reserved_special_token_{index - sum(named < index for named in _LLAMA3_NAMED)}|>"


def end_to_end(ids: list[list[int]]) -> tuple[NDArray, NDArray[np.int64]]:
    """What `Tokenizer.encode` returns, of the ids of each text."""
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    return np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())), lengths


def joined(ids: list[NDArray]) -> tuple[NDArray, NDArray[np.int64]]:
    """What `Tokenizer.encode` returns, of an array for each text."""
    return np.concatenate([np.empty(0, np.int32), *ids]), np.fromiter(map(len, ids), np.int64, len(ids))


def _defined(token_id: int) -> int | None:
    """SentencePiece says -1 for a token that the model does not have."""
    return None if token_id < 0 else token_id
