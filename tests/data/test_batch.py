from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megacpt.data.batch import IGNORE_INDEX, collate
from megacpt.data.rows import Rows, read_rows
from tests.data.memory_corpus import MemoryCorpus

X = IGNORE_INDEX


def test_documents_end_predictions_and_restart_positions() -> None:
    tokens = np.array([range(10, 17), range(20, 27)])
    rows = Rows(tokens, np.array([0, 2, 3, 7, 13]), np.array([7, 7]))  # the last token begins a document
    batch = collate(rows, domains=[3, 1], label_weights=[0.5, 2.0])
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25]]
    assert batch.labels.tolist() == [[11, X, X, 14, 15, 16], [21, 22, 23, 24, 25, X]]
    assert batch.positions.tolist() == [[0, 1, 0, 0, 1, 2], [0, 1, 2, 3, 4, 5]]
    assert batch.weights.tolist() == [[0.5, 0, 0, 0.5, 0.5, 0.5], [2, 2, 2, 2, 2, 0]]
    assert batch.domains.tolist() == [[3] * 6, [1] * 6]


def test_without_a_document_mask_a_row_is_one_text() -> None:
    rows = Rows(np.arange(10, 17, dtype=np.int32)[None], np.array([0, 2, 3]), np.array([7]))
    batch = collate(rows, [0], [1.0], document_mask=False)
    assert batch.labels.tolist() == [[11, 12, 13, 14, 15, 16]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert batch.weights.tolist() == [[1.0] * 6]


@pytest.mark.parametrize("document_mask", [True, False])
def test_padding_is_neither_predicted_nor_part_of_a_document(document_mask: bool) -> None:
    rows = read_rows(MemoryCorpus([2, 3], first_token=10), np.array([0]), sequence_length=6)
    batch = collate(rows, [0], [1.0], document_mask)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 14, 0]]
    assert batch.labels.tolist() == [[11, X if document_mask else 12, 13, 14, X, X]]
    assert batch.weights.tolist() == [[1, float(not document_mask), 1, 1, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2, 0] if document_mask else [0, 1, 2, 3, 4, 5]]


def test_types_and_memory_are_what_the_model_and_a_device_copy_need() -> None:
    tokens = np.arange(5, dtype=np.int32)
    batch = collate(Rows(tokens[None], np.array([0]), np.array([5])), [0], [1.0])
    for tensor in (batch.input_ids, batch.positions, batch.labels, batch.domains):
        assert tensor.dtype == torch.int64 and tensor.shape == (1, 4) and tensor.is_contiguous()
    assert batch.weights.dtype == torch.float32 and batch.weights.shape == (1, 4)
    batch.input_ids[0, 0] = 99
    batch.labels[0, 0] = 99
    assert tokens.tolist() == [0, 1, 2, 3, 4], "a batch is not a window onto the corpus"
    assert batch.to("meta").labels.device.type == "meta"


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1).filter(lambda lengths: sum(lengths) > 0),
    row=st.integers(0, 20),
    sequence_length=st.integers(1, 20),
)
def test_labels_and_positions_are_those_of_a_walk_along_the_documents(
    lengths: list[int], row: int, sequence_length: int
) -> None:
    document_of = [document for document, length in enumerate(lengths) for _ in range(length)]
    rows = read_rows(MemoryCorpus(lengths, first_token=1), np.array([row]), sequence_length)
    batch = collate(rows, [0], [1.0])
    position, document = -1, None
    for i in range(sequence_length):
        at = row * sequence_length + i
        inside = at < len(document_of)
        predicts = at + 1 < len(document_of) and document_of[at] == document_of[at + 1]
        assert batch.labels[0, i] == (at + 2 if predicts else IGNORE_INDEX)
        assert batch.weights[0, i] == float(predicts)
        here = document_of[at] if inside else None
        position, document = (position + 1 if i > 0 and here == document else 0), here
        assert batch.positions[0, i] == position
