"""Two small English corpora for trying things out: medical definitions, and the documentation of Python itself.

Documents come in the order of a hash of their text, without repetitions, so that any beginning of a corpus is a fair
sample of it.
"""

from __future__ import annotations

import ast
import hashlib
import pydoc_data.topics
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

_QUOTED = r'"((?:[^"\\]|\\.)*)"'
_LEAST_CHARACTERS = 200
"""A shorter docstring says little more than a name."""

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data"}
"""Parts of the standard library's folder that are not the library, or hold tables."""


def medical_documents(ontology: Path) -> Iterator[str]:
    """A document per defined term of an ontology in OBO format: name, definition, comment, synonyms, parents."""
    for stanza in ontology.read_text(encoding="utf-8").split("\n\n"):
        if not stanza.startswith("[Term]") or "\nis_obsolete: true" in stanza:
            continue
        name = re.search(r"^name: (.*)$", stanza, re.MULTILINE)
        definition = re.search(rf"^def: {_QUOTED}", stanza, re.MULTILINE)
        if name is None or definition is None:
            continue
        comment = re.search(r"^comment: (.*)$", stanza, re.MULTILINE)
        synonyms = re.findall(rf"^synonym: {_QUOTED}", stanza, re.MULTILINE)
        parents = re.findall(r"^is_a: \S+ .*?! (.*)$", stanza, re.MULTILINE)
        parts = [
            f"{name[1]}\n",
            definition[1],
            comment[1] if comment else "",
            f"Also known as: {'; '.join(synonyms)}." if synonyms else "",
            f"It is a form of: {'; '.join(parents)}." if parents else "",
        ]
        yield _unescape("\n".join(part for part in parts if part))


def python_topics() -> Iterator[str]:
    """The chapters of Python's language reference that `help()` shows."""
    yield from (text.strip() for text in pydoc_data.topics.topics.values())


def python_docstrings() -> Iterator[str]:
    """The longer docstrings of the standard library, each under its name."""
    for name, tree in library_modules():
        yield from _docstrings(tree, name)


def library_modules() -> Iterator[tuple[list[str], ast.Module]]:
    """The standard library's modules: (the parts of its name, its source). Sources are parsed, never imported."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library).with_suffix("").parts
        if _LEFT_OUT & set(module):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in old sources
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):  # templates for code generators
                continue
        yield [name for name in module if name != "__init__"], tree


def write_jsonl(documents: Iterable[str], target: Path, max_bytes: int | None = None) -> None:
    """Write {"text": ...} lines, each document once, in the order of a hash; with `max_bytes` only so many of them."""
    by_digest = {hashlib.sha256(text.encode()).digest(): text for text in documents}
    num_bytes = 0
    with target.open("wb") as lines:
        for _, text in sorted(by_digest.items()):
            if max_bytes is not None and num_bytes >= max_bytes:
                break
            num_bytes += lines.write(orjson.dumps({"text": text}, option=orjson.OPT_APPEND_NEWLINE))


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: list[str]
) -> Iterator[str]:
    """The longer docstrings of a module or class and of what it defines."""
    text = ast.get_docstring(node) or ""
    if len(text) >= _LEAST_CHARACTERS:
        yield f"{'.'.join(name)}\n\n{text}"
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _docstrings(child, [*name, child.name])


def _unescape(text: str) -> str:
    """OBO's escapes: \\n is a new line, any other character after a backslash stands for itself."""
    return re.sub(r"\\(.)", lambda escape: {"n": "\n", "t": "\t", "W": " "}.get(escape[1], escape[1]), text)
