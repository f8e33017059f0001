"""The parts of a Markdown page that a program writes, between two comments that name them."""

from __future__ import annotations

import re
from pathlib import Path


def replace_part(page: str, name: str, content: str) -> str:
    """`page` with `content` between <!-- begin NAME --> and <!-- end NAME -->.

    Raises:
        ValueError: the page does not have the pair of comments exactly once.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    part = f"{begin}\n\n{content.strip()}\n\n{end}"
    replaced, count = pattern.subn(lambda _: part, page)
    if count != 1:
        raise ValueError(f"the page has {count} parts between {begin} and {end}, not one")
    return replaced


def write_part(path: Path, name: str, content: str) -> None:
    """Replace the part `name` of the page at `path`."""
    path.write_text(replace_part(path.read_text(encoding="utf-8"), name, content), encoding="utf-8")
