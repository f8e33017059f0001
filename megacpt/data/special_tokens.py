"""Which tokens a Hugging Face tokenizer begins and ends documents with, by the files in its folder.

The build of shards and the check before training ask the same function, so shards that were built without being told
otherwise always agree with their model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from tokenizers import Tokenizer

from megacpt.errors import DataError


@dataclass(frozen=True)
class SpecialTokens:
    """What a model knows documents to begin and end with.

    Attributes:
        bos_id: None: the tokenizer has none.
        eos_id: the one that its files name first.
        adds_bos: the tokenizer itself begins every text with BOS.
        end_ids: every id that the files name as EOS; instruction-tuned models have several.
    """

    bos_id: int | None
    eos_id: int | None
    adds_bos: bool
    end_ids: frozenset[int]


def special_tokens(path: Path, library: Tokenizer) -> SpecialTokens:
    """The special tokens of a tokenizer.json, from it and the configuration files beside it.

    Args:
        path: the tokenizer.json.
        library: the tokenizer that was read from it.

    Raises:
        DataError: a file beside it is not JSON.
    """
    around_nothing: list[int] = library.encode("").ids
    (bos_id, *_), end_ids = [*_named(path, library, "bos"), None], _named(path, library, "eos")
    eos_id = end_ids[0] if end_ids else None
    if bos_id is None and around_nothing and around_nothing[0] != eos_id:
        bos_id = around_nothing[0]
    stated = read_object(path.with_name("tokenizer_config.json")).get("add_bos_token")
    template_adds_bos = bos_id is not None and around_nothing[:1] == [bos_id]
    adds_bos = stated if isinstance(stated, bool) and bos_id is not None else template_adds_bos
    return SpecialTokens(bos_id, eos_id, adds_bos, frozenset(end_ids))


def open_library(path: Path) -> Tokenizer:
    """The tokenizer that a tokenizer.json describes.

    Raises:
        DataError: it describes none.
    """
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise DataError("this is no tokenizer.json", where=str(path), found=error) from None


def _named(path: Path, library: Tokenizer, name: str) -> list[int]:
    """The ids of BOS or EOS, in the order of the files that name them."""
    found: list[int] = []
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        token = read_object(path.with_name(file)).get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and (token_id := library.token_to_id(token)) is not None:
            found.append(token_id)
    for file in ("config.json", "generation_config.json"):
        ids = read_object(path.with_name(file)).get(f"{name}_token_id")
        found += ids if isinstance(ids, list) else [ids] if isinstance(ids, int) else []
    return found


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file.

    Raises:
        DataError: the file is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise DataError("the file is not JSON", where=str(path), found=error) from None
