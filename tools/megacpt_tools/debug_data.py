"""`megacpt debug-data`: the tiny shards of recipes/debug-tiny.yaml, from Python's language reference, without a
download.

The tokenizer is one id per byte and one for the end of a document: 257 ids that fit any model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

FOLDER = Path("runs/debug-tiny")
MAX_BYTES = 200_000
"""Of text per domain: some ten times what the recipe trains on."""

_END = "<|end|>"


def configure(parser: argparse.ArgumentParser) -> None:
    """No arguments: the recipe names the folders."""


def run(arguments: argparse.Namespace) -> int:
    """Write the shards anew."""
    make_debug_data(FOLDER)
    print(f"wrote {FOLDER}/shards")
    return 0


def make_debug_data(folder: Path) -> None:
    """Write tokenizer.json, new.jsonl, replay.jsonl and shards/{new,replay} into `folder`, over what is there."""
    from megacpt_tools.builder import build_shards
    from megacpt_tools.sample_text import python_topics, write_jsonl

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = folder / "tokenizer.json"
    _write_byte_tokenizer(tokenizer)
    chapters = list(python_topics())
    for domain, documents in (("new", chapters[::2]), ("replay", chapters[1::2])):
        text = folder / f"{domain}.jsonl"
        write_jsonl(documents, text, MAX_BYTES)
        build_shards([text], tokenizer, folder / "shards" / domain, eos_token=_END, overwrite=True)


def _write_byte_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_END])
    tokenizer.save(str(path))
