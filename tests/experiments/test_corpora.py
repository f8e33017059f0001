"""The studies' texts: held-out documents are in no training text, and quality is what it says."""

from __future__ import annotations

import ast

from experiments.corpora import code_documents, split, spoiled

DOCUMENTS = [f"the {number}. term has a definition of {number % 7} words" for number in range(200)]


def test_every_document_is_on_one_side_whatever_the_order() -> None:
    train, held_out = split([*DOCUMENTS, *DOCUMENTS[:5]])
    assert sorted(train + held_out) == sorted(DOCUMENTS)
    assert len(held_out) == 12
    assert split(reversed(DOCUMENTS)) == (train, held_out)


def test_quality_is_the_share_of_words_left_alone() -> None:
    lines = list(spoiled(DOCUMENTS))
    assert lines == list(spoiled(DOCUMENTS))
    for text, line in zip(DOCUMENTS, lines, strict=True):
        words, kept = text.split(" "), str(line["text"]).split(" ")
        same = sum(a == b for a, b in zip(words, kept, strict=True))
        if line["quality"] == 1:
            assert same == len(words)
    worst, best = (sorted(lines, key=lambda line: float(str(line["quality"])))[at] for at in (0, -1))
    assert str(best["text"]) in DOCUMENTS
    assert str(worst["text"]) not in DOCUMENTS


def test_code_has_no_docstrings() -> None:
    text = next(code_documents())
    (definition,) = ast.parse(text).body
    assert isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    assert ast.get_docstring(definition) is None
