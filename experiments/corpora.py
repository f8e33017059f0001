"""The text of the studies: three small corpora of different kinds, a tokenizer for all of them, and their shards.

    general      the documentation of Python: chapters of its reference, and docstrings
    code         functions and classes of Python's standard library, without docstrings and comments
    medical      definitions of medical terms
    mixed        the training text of `medical` once more, each document with some of its words replaced by random ones

In `mixed` the column `quality` is the share of words that were left alone, from 0 to 1, and `chance` a number that says
nothing. What is held out of a corpus is decided by a hash of each document before anything is spoiled, so no held-out
document is in `mixed` either.

Everything comes from the running Python and from one small download (megacpt_tools/quickstart.py). Another version of
Python has other text, and so slightly other losses.
"""

from __future__ import annotations

import ast
import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import orjson

from megacpt_tools.builder import build_shards
from megacpt_tools.quickstart import DOWNLOADS, ONTOLOGY
from megacpt_tools.sample_text import library_modules, medical_documents, python_docstrings, python_topics
from megacpt_tools.wheel_files import fetch

FOLDER = Path("runs/experiments")
TOKENIZER = FOLDER / "tokenizer"
SHARDS = FOLDER / "shards"
VOCAB_SIZE = 1024
END = "<|end|>"
HELD_OUT_SHARE = 0.06
LEAST_CHARACTERS = 200
"""A shorter function says little more than its name."""


def prepare() -> None:
    """Write what is missing of text, tokenizer and shards."""
    if SHARDS.exists():
        return
    partial = SHARDS.with_name("shards.partial")
    texts = {
        "general": [*python_topics(), *python_docstrings()],
        "code": list(code_documents()),
        "medical": list(medical_documents(fetch(ONTOLOGY, DOWNLOADS))),
    }
    parts = {name: split(documents) for name, documents in texts.items()}
    make_tokenizer((text for train, _ in parts.values() for text in train), TOKENIZER)
    for name, (train, held_out) in parts.items():
        _build(partial / name / "train", ({"text": text} for text in train))
        _build(partial / name / "held_out", ({"text": text} for text in held_out))
    _build(partial / "mixed" / "train", spoiled(parts["medical"][0]), keep_columns=("quality", "chance"))
    partial.rename(SHARDS)


def code_documents() -> Iterator[str]:
    """The functions and classes at the top of the standard library's modules, without docstrings and comments."""
    for _, tree in library_modules():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                text = ast.unparse(_without_docstrings(node))
                if len(text) >= LEAST_CHARACTERS:
                    yield text


def split(documents: Iterable[str]) -> tuple[list[str], list[str]]:
    """Each document once, in the order of its hash: (what is trained on, what is held out)."""
    ordered = sorted(set(documents), key=_digest)
    num_held_out = round(HELD_OUT_SHARE * len(ordered))
    return ordered[num_held_out:], ordered[:num_held_out]


def spoiled(documents: list[str]) -> Iterator[dict[str, object]]:
    """Documents whose words are replaced by words of other documents, each at a rate of its own, uniform in [0, 1]."""
    words = [word for text in documents for word in text.split(" ")]
    for text in documents:
        chance = random.Random(_digest(text))
        quality, number = chance.random(), chance.random()
        kept = (word if chance.random() < quality else chance.choice(words) for word in text.split(" "))
        yield {"text": " ".join(kept), "quality": round(quality, 3), "chance": round(number, 3)}


def make_tokenizer(texts: Iterable[str], folder: Path) -> None:
    """Byte-pair encoding learned from `texts`, with one special token: the end of a document."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)


def _build(folder: Path, lines: Iterable[Mapping[str, object]], keep_columns: tuple[str, ...] = ()) -> None:
    text = folder.with_suffix(".jsonl")
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_bytes(b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines))
    build_shards([text], TOKENIZER, folder, overwrite=True, keep_columns=keep_columns)


def _without_docstrings(node: ast.AST) -> ast.AST:
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(inner):
            inner.body = inner.body[1:] or [ast.Pass()]
    return node


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
