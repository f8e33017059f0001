"""Sequences that are put into the stream at given tokens of the run: canaries, probes, experiments.

Source: Train Once, Answer All (methods of intervention inside one run); canaries after Carlini et al. 2019,
arXiv:1802.08232. A sequence takes the place of as many tokens of a row, so steps, schedules and the rows of all domains
stay what they are. It is a document of its own, and its labels count as a domain of their own, `DOMAIN`.

A position is a token of the run, as steps are counted: rows x sequence length, rows in the order of the global batch.
So where a sequence stands follows from the history alone, on every layout, and a step that is done again after a
rollback holds what it held before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from megacpt.data.history import CorpusRecord, History
from megacpt.data.mixture import Int64s
from megacpt.data.order import stable_hash
from megacpt.data.rows import Rows
from megacpt.data.shard import AtomicFile
from megacpt.errors import DataError
from megacpt.units import Duration

DOMAIN = "insertions"
"""What their labels are counted as, in the loss of a step and in the data history."""

FILE_NAME = "insertions.jsonl"
"""In a run folder: what was inserted, and where; a file of probes, too."""

Line = TypeVar("Line", bound=BaseModel)


class Entry(BaseModel):
    """A line of a file of insertions.

    Attributes:
        name: to tell it from others.
        text, tokens: one of the two; text is tokenized as the model's tokenizer does, without BOS and EOS.
        at: tokens of the run where copies begin: 1_500_000, "1.5M" or "30%".
        copies: without `at`: so many, spread over the run by a hash of seed and name.
        probe: what `megacpt probe` should know of it: its keys siblings, prefix_tokens and group.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    text: str | None = None
    tokens: tuple[NonNegativeInt, ...] | None = Field(None, min_length=2)
    at: tuple[NonNegativeInt | str, ...] = ()
    copies: PositiveInt | None = None
    probe: dict[str, Any] = {}

    @model_validator(mode="after")
    def _is_one_of_each(self) -> Entry:
        if (self.text is None) == (self.tokens is None):
            raise ValueError("a sequence has one of text and tokens")
        if bool(self.at) == (self.copies is not None):
            raise ValueError("a sequence has one of at and copies")
        return self


@dataclass(frozen=True)
class Insertion:
    """A copy of a sequence.

    Attributes:
        name: the sequence's.
        tokens: the sequence.
        position: the token of the run at which it was asked for.
        probe: see `Entry`.
    """

    name: str
    tokens: tuple[int, ...]
    position: int
    probe: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Place:
    """Where a copy stands.

    Attributes:
        insertion: what.
        step: from 0.
        row: of the step's global batch.
        column: its first token in the row's S + 1; where the row would end before the sequence, so early that it fits.
    """

    insertion: Insertion
    step: int
    row: int
    column: int


def record_of_insertions(insertions: Sequence[Insertion]) -> CorpusRecord:
    """What identifies them, for the history of a run."""
    facts = sorted((each.position, each.name, each.tokens) for each in insertions)
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
    return CorpusRecord(sum(len(each.tokens) for each in insertions), len(insertions), shards=(digest,))


def place(insertions: Sequence[Insertion], history: History) -> dict[int, list[Place]]:
    """Step -> what stands in it, by row and column.

    Raises:
        DataError: a sequence is longer than its row, or two stand in each other's way.
    """
    places: dict[int, list[Place]] = {}
    for insertion in insertions:
        step = history.num_steps(insertion.position + 1) - 1
        width = history.settings(step).sequence_length
        row, column = divmod(insertion.position - history.tokens(step), width)
        column = min(column, width + 1 - len(insertion.tokens))
        if column < 0:
            raise DataError(
                "the sequence is longer than a row",
                where=f"insertion {insertion.name}",
                found=f"{len(insertion.tokens):,} tokens",
                expected=f"at most {width + 1:,}, the sequence length + 1",
            )
        places.setdefault(step, []).append(Place(insertion, step, row, column))
    for there in places.values():
        there.sort(key=lambda each: (each.row, each.column, each.insertion.position))
        for one, other in pairwise(there):
            if one.row == other.row and other.column < one.column + len(one.insertion.tokens):
                raise DataError(
                    "two insertions stand in each other's way",
                    where=f"insertions {one.insertion.name} and {other.insertion.name}",
                    found=f"at tokens {one.insertion.position:,} and {other.insertion.position:,}",
                    hint="Move one of them.",
                )
    return places


def insert(places: Sequence[Place], rows: Rows, domains: Int64s, domain: int) -> tuple[Rows, Int64s]:
    """Put sequences into rows, whose tokens are overwritten.

    Args:
        places: where; `row` is here the place in `rows`.
        rows: N rows of S + 1 tokens.
        domains: [N] domain of each row, or [N, S + 1] of each token.
        domain: the number of the sequences' own.

    Returns:
        The rows; and the domain of every token: [N, S + 1].
    """
    num_rows, width = rows.tokens.shape
    of_tokens = np.broadcast_to(domains.reshape(num_rows, -1), rows.tokens.shape).copy()
    starts = rows.document_starts
    for each in places:
        end = each.column + len(each.insertion.tokens)
        rows.tokens[each.row, each.column : end] = each.insertion.tokens
        of_tokens[each.row, each.column : end] = domain
        first = each.row * width
        starts = starts[(starts <= first + each.column) | (starts >= first + end)]
        starts = np.union1d(starts, [first + each.column, *([first + end] if end < width else [])])
    return Rows(rows.tokens, starts, rows.num_tokens), of_tokens


def read_insertions(
    paths: Sequence[str | Path],
    *,
    seed: int,
    total_tokens: int,
    sequence_length: int,
    vocab_size: int,
    encode: Callable[[str], list[int]] | None,
) -> tuple[Insertion, ...]:
    """The copies that files of insertions ask for.

    Args:
        paths: jsonl files, a line an `Entry`.
        seed: of the places of `copies`.
        total_tokens: of the run, which percentages are of.
        sequence_length: predicted tokens of a row; of `copies` one is put into a row at most.
        vocab_size: of the model.
        encode: text -> ids; None: there is no tokenizer.

    Raises:
        DataError: what is wrong, with file and line.
    """
    num_rows = total_tokens // sequence_length
    insertions: list[Insertion] = []
    spread: list[tuple[str, Entry, tuple[int, ...]]] = []
    names: set[str] = set()
    for where, entry in (line for path in paths for line in read_lines(Path(path), Entry, "insertion")):
        tokens = entry.tokens or tuple(_encoded(entry.text or "", encode, where))
        if entry.name in names:
            raise DataError("two sequences have one name", where=where, found=entry.name)
        if len(tokens) < 2 or max(tokens) >= vocab_size:
            found = f"{len(tokens)} tokens, ids up to {max(tokens, default=0)}"
            expected = f"two tokens or more, ids below {vocab_size}"
            raise DataError("the sequence cannot be learnt", where=where, found=found, expected=expected)
        names.add(entry.name)
        for text in entry.at:
            try:
                position = Duration.parse(text).of(total_tokens)
            except ValueError as error:
                raise DataError("this is no token of a run", where=f"{where}: at", found=error) from None
            if position >= total_tokens:
                raise DataError(
                    "the run has ended there", where=f"{where}: at", found=text, expected=f"less than {total_tokens:,}"
                )
            insertions.append(Insertion(entry.name, tokens, position, entry.probe))
        spread.append((where, entry, tokens))
    taken = {insertion.position // sequence_length for insertion in insertions}
    for where, entry, tokens in spread:
        for copy in range(entry.copies or 0):
            if len(taken) >= num_rows:
                raise DataError("there are more insertions than rows", where=where, expected=f"at most {num_rows:,}")
            row = int((copy + stable_hash("row", seed, entry.name, copy) / 2**64) * num_rows / (entry.copies or 1))
            while row in taken:
                row = (row + 1) % num_rows
            taken.add(row)
            column = stable_hash("column", seed, entry.name, copy) % max(sequence_length + 2 - len(tokens), 1)
            insertions.append(Insertion(entry.name, tokens, row * sequence_length + column, entry.probe))
    return tuple(insertions)


def read_lines(path: Path, kind: type[Line], name: str) -> Iterator[tuple[str, Line]]:
    """(file:line, what stands there) of all lines of a jsonl file that are not blank.

    Raises:
        DataError: the file cannot be read, or a line is no such `name`.
    """
    try:
        lines = path.read_bytes().decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the {name}s cannot be read", where=str(path), found=error) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", kind.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ": ".join([f"{path}:{number}", ".".join(map(str, first["loc"]))]).removesuffix(": ")
            raise DataError(
                f"this is no {name}", where=where, found=first["msg"].removeprefix("Value error, ")
            ) from None


def _encoded(text: str, encode: Callable[[str], list[int]] | None, where: str) -> list[int]:
    if encode is None:
        raise DataError("the model has no tokenizer.json, so text cannot be inserted", where=where, expected="tokens")
    return encode(text)


def write_places(path: Path, places: Sequence[Place], history: History, before: Sequence[dict[str, Any]] = ()) -> None:
    """Write where copies stand, a line a sequence.

    Args:
        path: the file.
        places: of the copies.
        history: of the run.
        before: what `read_places` gave of an earlier write.
    """
    lines = {line["name"]: line for line in before}
    for each in places:
        insertion, length = each.insertion, history.settings(each.step).sequence_length
        line = {"name": insertion.name, "tokens": insertion.tokens, **insertion.probe, "places": []}
        position = history.tokens(each.step) + each.row * length + each.column
        there = {"position": position, "step": each.step + 1, "row": each.row, "column": each.column}
        lines.setdefault(insertion.name, line)["places"].append(there)
    with AtomicFile(path) as file:
        for line in lines.values():
            file.write(json.dumps(line).encode() + b"\n")


def read_places(path: Path, num_steps: int) -> list[dict[str, Any]]:
    """The lines of such a file, with the copies of the run's first steps only; none where there is no file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    kept = [{**line, "places": [each for each in line["places"] if each["step"] <= num_steps]} for line in lines]
    return [line for line in kept if line["places"]]
