"""The sample corpora: what a document is made of, and that their order is fair and fixed."""

from __future__ import annotations

import json
from pathlib import Path

from megacpt_tools.sample_text import medical_documents, python_topics, write_jsonl

ONTOLOGY = r"""format-version: 1.2

[Term]
id: HP:0000002
name: Abnormality of body height
def: "Deviation from the norm, \"height\" for short.\nBy age." [https://orcid.org/0000-0002-0736-9199]
comment: Measured standing.
synonym: "Abnormal stature" EXACT layperson []
synonym: "Unusual height" RELATED []
is_a: HP:0001507 {source="x"} ! Growth abnormality

[Term]
id: HP:0000003
name: A term without a definition
synonym: "None" EXACT []

[Term]
id: HP:0000004
name: obsolete thing
def: "Nobody says so any more." []
is_obsolete: true

[Typedef]
id: has_part
def: "Not a term." []
"""


def test_a_defined_term_becomes_a_document(tmp_path: Path) -> None:
    (tmp_path / "small.obo").write_text(ONTOLOGY)
    assert list(medical_documents(tmp_path / "small.obo")) == [
        "Abnormality of body height\n\n"
        'Deviation from the norm, "height" for short.\nBy age.\n'
        "Measured standing.\n"
        "Also known as: Abnormal stature; Unusual height.\n"
        "It is a form of: Growth abnormality."
    ]


def test_topics_are_prose() -> None:
    topics = list(python_topics())
    assert len(topics) > 50
    assert any("Assignment statements" in topic for topic in topics)


def test_jsonl_does_not_depend_on_order_or_repetition(tmp_path: Path) -> None:
    documents = [f"document {number}" for number in range(50)]
    write_jsonl(documents, tmp_path / "a.jsonl")
    write_jsonl([*reversed(documents), "document 7"], tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    written = [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").open()]
    assert sorted(written) == sorted(documents)
    assert written != documents


def test_jsonl_stops_once_it_is_long_enough(tmp_path: Path) -> None:
    documents = [f"document {number:02}" for number in range(50)]
    write_jsonl(documents, tmp_path / "all.jsonl")
    write_jsonl(documents, tmp_path / "some.jsonl", max_bytes=100)
    some = (tmp_path / "some.jsonl").read_bytes()
    assert 100 <= len(some) < 130
    assert (tmp_path / "all.jsonl").read_bytes().startswith(some)
