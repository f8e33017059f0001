"""What makes two tokenizers the same: a hash over what decides the ids, whatever else the file says.

Shards carry the fingerprint of the tokenizer that made them; before training it is compared with the model's.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import orjson

from megacpt.errors import DataError

_TRUE_UNLESS_STATED = {"Metaspace": "split", "ByteLevel": "use_regex"}
"""What older versions of the library did not write of a pre-tokenizer, and did."""


def hugging_face_fingerprint(path: Path) -> str:
    """sha256 over what of a tokenizer.json decides the ids.

    Raises:
        DataError: the file is not JSON.
    """
    try:
        description = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise DataError("the file is not JSON", where=str(path), found=error) from None
    for presentation in ("version", "truncation", "padding", "post_processor", "decoder"):
        description.pop(presentation, None)
    merges = description.get("model", {}).get("merges")
    if merges and isinstance(merges[0], str):
        description["model"]["merges"] = [merge.split(" ", 1) for merge in merges]
    cuts = description.get("pre_tokenizer") or {}
    for step in cuts.get("pretokenizers", [cuts]):
        if (unless_stated := _TRUE_UNLESS_STATED.get(step.get("type"))) is not None:
            step.setdefault(unless_stated, True)
    return hashlib.sha256(orjson.dumps(_without_defaults(description), option=orjson.OPT_SORT_KEYS)).hexdigest()


def _without_defaults(value: Any) -> Any:
    """Mappings without entries that are null or false, at any depth; 0 and empty strings are values and stay.

    `strip_accents` (BertNormalizer) is true, false, or null: as `lowercase` says.
    """
    if isinstance(value, dict):
        return {
            key: _without_defaults(entry)
            for key, entry in value.items()
            if entry is not None and (entry is not False or key == "strip_accents")
        }
    return [_without_defaults(entry) for entry in value] if isinstance(value, list) else value
