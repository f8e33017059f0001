"""Which documents are held out: those with a low hash. No list, no seed, the same in any order and in any later build.

A build hashes a document's text. Where the shards exist already, a run goes by a column: `text_hash`, which a build
keeps when asked, or any column of text or whole numbers, an id for instance. Equal values fall on the same side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow
from numpy.typing import NDArray

from megacpt.errors import DataError

TEXT_HASH = "text_hash"
"""The column of a document's own hash, uint64."""


def hashes_of(texts: Iterable[bytes]) -> NDArray[np.uint64]:
    """The first 8 bytes of the BLAKE2b digest of each text, little-endian."""
    return np.frombuffer(b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts), "<u8")


def is_held_out(hashes: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which hashes lie in the lowest `share` of their range."""
    return hashes < share * 2.0**64


def is_text(kind: pyarrow.DataType) -> bool:
    """Whether a column of this type holds text."""
    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def column_is_held_out(columns: pyarrow.Table, name: str, share: float) -> NDArray[np.bool_]:
    """The same for documents by a column of theirs; one without a value is not held out.

    Raises:
        DataError: it holds neither text nor whole numbers.
    """
    column = columns.column(name)
    known = column.is_valid().to_numpy()
    chosen = np.zeros(known.size, np.bool_)
    if name == TEXT_HASH:
        hashes = column.drop_null().cast(pyarrow.uint64()).to_numpy()
    elif pyarrow.types.is_integer(column.type) or is_text(column.type):
        hashes = hashes_of(value.encode() for value in column.drop_null().cast(pyarrow.large_string()).to_pylist())
    else:
        raise DataError(
            "documents are held out by text or whole numbers", where=f"held_out_by {name}", found=column.type
        )
    chosen[known] = is_held_out(hashes, share)
    return chosen
