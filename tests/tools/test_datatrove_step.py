"""datatrove's tasks write slices that join into one folder."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pytest

from megacpt.data.manifest import verify
from megacpt.errors import DataError
from megacpt_tools.builder import join_slices
from megacpt_tools.tokenizer import open_tokenizer
from tests.tools.conftest import TEXTS


def test_tasks_write_slices(tmp_path: Path, bpe_folder: Path) -> None:
    from datatrove.data import Document

    from megacpt_tools.datatrove_step import MegacptShards

    out = tmp_path / "out"
    documents = [
        Document(
            text=text, id=f"d{at}", metadata={"year": 2000 + at, "score": np.float32("nan"), "day": date(2000, 1, 2)}
        )
        for at, text in enumerate(TEXTS)
    ]
    step = MegacptShards(str(out), str(bpe_folder), num_tasks=3, keep_columns=("id", "year", "score", "day"))
    for rank in range(3):
        passed_on = list(step.run(iter(documents[rank::3] if rank < 2 else ()), rank, 3))
        assert len(passed_on) == (2 if rank < 2 else 0)
    join_slices(out)
    manifest = verify(out)
    numbers = [0, 3, 1, 4]
    columns = manifest.read_columns(out, ["id", "year", "score", "day"]).drop_columns("number_in_shard")
    assert columns.to_pylist() == [
        {"id": f"d{at}", "year": 2000 + at, "score": None, "day": "2000-01-02"} for at in numbers
    ]
    tokenizer = open_tokenizer(bpe_folder)
    assert [shard.documents for shard in manifest.shards] == [2, 2]
    assert manifest.tokens == sum(tokenizer.encode([TEXTS[at]])[0].size + 1 for at in numbers)
    assert not list(out.glob(".task*"))
    with pytest.raises(DataError, match=r"document d9: the document cannot be written .*surrogates not allowed"):
        list(step.run(iter([Document(text="\ud800", id="d9")]), 2, 3))
    with pytest.raises(DataError, match=r"each task makes a slice .found 4 tasks, expected 3"):
        list(step.run(iter(()), 3, 4))
