"""Numbers with units, as people write them in recipes and on command lines.

    tokens     "20B", "512K", "1.5M", "8Ki", 122880    K M B T are decimal, Ki Mi Gi are powers of 1024
    bytes      "8GiB", "8GB", "512MiB", 4096
    seconds    "30min", "2h", "1.5h", "90s", "250ms", "1d", 90
    durations  "1%" of a run, or tokens: "200M"
    shares     "1%", 0.01

Parsing is exact (decimal arithmetic, no floats) and printing is its inverse: parse(format(x)) == x. Whatever cannot be
read raises ValueError with what was found and what would do; the reader of a file adds where.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

TOKEN_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
BYTE_UNITS = {
    "": 1,
    "B": 1,
    **{"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
}
SECOND_UNITS = {
    "": Decimal(1),
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "min": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}

_NUMBER_AND_UNIT = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z%]*)\s*", re.ASCII)


def _split(value: object, expected: str) -> tuple[Decimal, str]:
    """A non-negative number and its unit: "1.5B" -> (1.5, "B")."""
    match = None if isinstance(value, bool) else _NUMBER_AND_UNIT.fullmatch(f"{value}")
    if match is None:
        raise ValueError(f"{value!r} is not {expected}")
    return Decimal(match[1].replace("_", "")), match[2]


def _scale(value: object, units: Mapping[str, int | Decimal], expected: str) -> Decimal:
    number, unit = _split(value, expected)
    if unit not in units:
        known = ", ".join(name for name in units if name)
        raise ValueError(f"{value!r} has the unknown unit {unit!r}: use one of {known}, or {expected}")
    return number * units[unit]


def _whole(value: object, units: Mapping[str, int], expected: str, what: str) -> int:
    scaled = _scale(value, units, expected)
    if scaled != int(scaled):
        raise ValueError(f"{value!r} is not a whole number of {what}")
    return int(scaled)


def parse_tokens(value: str | int) -> int:
    """The number of tokens in "20B", "512K", "8Ki" or a plain integer. K, M, B, T are decimal: "8K" is 8000."""
    return _whole(value, TOKEN_UNITS, 'a number of tokens such as "20B", "512K" or 122880', "tokens")


def parse_count(value: str | int) -> int:
    """The number in "2M", "512K" or a plain integer."""
    return _whole(value, TOKEN_UNITS, 'a whole number such as 16, "512K" or "2M"', "things")


def parse_share(value: str | float) -> float:
    """The part of a whole in "1%" or 0.01; no bounds are looked at."""
    if isinstance(value, float):
        return value
    expected = "a share such as 1% or 0.01"
    number, unit = _split(value, expected)
    if unit not in ("", "%"):
        raise ValueError(f"{value!r} is not {expected}")
    return float(number / 100 if unit else number)


def format_tokens(tokens: int) -> str:
    """The shortest exact text: 20_000_000_000 -> "20B", 122_880 -> "122880"."""
    for unit in ("T", "B", "M", "K"):
        if tokens and tokens % TOKEN_UNITS[unit] == 0:
            return f"{tokens // TOKEN_UNITS[unit]}{unit}"
    return str(tokens)


def parse_sequence_length(value: str | int) -> int:
    """A sequence length: a plain integer, or "8Ki" for 8192.

    Decimal units are refused: who writes "8K" here means 8192, and would get 8000.
    """
    expected = 'a sequence length such as 8192 or "8Ki"'
    number, unit = _split(value, expected)
    if unit and not unit.endswith("i"):
        raise ValueError(f'{value!r} is ambiguous: write {number * 1024:f}, or "{number}Ki"')
    return _whole(value, TOKEN_UNITS, expected, "tokens")


def parse_bytes(value: str | int) -> int:
    """The number of bytes in "8GiB" (2^30), "8GB" (10^9) or a plain integer."""
    return _whole(value, BYTE_UNITS, 'a number of bytes such as "8GiB" or "512MB"', "bytes")


def format_bytes(num_bytes: int) -> str:
    """The shortest exact text in binary units: 8 * 2**30 -> "8GiB"."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if num_bytes and num_bytes % BYTE_UNITS[unit] == 0:
            return f"{num_bytes // BYTE_UNITS[unit]}{unit}"
    return f"{num_bytes}B"


def rounded_bytes(num_bytes: float) -> str:
    """Bytes to three digits: 64.2 GiB."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if (number := num_bytes / BYTE_UNITS[unit]) >= 1:
            return f"{number:.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def parse_seconds(value: str | float) -> float:
    """The seconds in "30min", "2h", "90s", "250ms", "1d" or a plain number of seconds."""
    return float(_scale(value, SECOND_UNITS, 'a time such as "30min", "2h" or "90s"'))


def format_seconds(seconds: float) -> str:
    """A time to the precision that a reader wants: 0.25 -> "250ms", 93 -> "1min 33s", 3_648 -> "1h"."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    left = round(seconds)
    parts: list[tuple[int, str]] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or parts:
            parts.append((count, unit))
    return " ".join(f"{count}{unit}" for count, unit in parts[:2] if count)


def counted(number: float, what: str) -> str:
    """A number of things: 1 row, 1,024 layers, 2 micro-batches, about 16.9 layers."""
    if number == 1:
        return f"1 {what}"
    plural = f"{what}es" if what.endswith(("ch", "s")) else f"{what}s"
    return f"{number:,.0f} {plural}" if number == int(number) else f"about {number:.1f} {plural}"


@dataclass(frozen=True)
class Duration:
    """A stretch of a run: a percentage of all its tokens, or a number of tokens. Exactly one of the two is set."""

    percent: Decimal | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if (self.percent is None) == (self.tokens is None):
            raise ValueError("a duration is a percentage or a number of tokens")

    @classmethod
    def parse(cls, value: Duration | str | int) -> Duration:
        """Read "1%", "200M" or a plain number of tokens."""
        if isinstance(value, Duration):
            return value
        expected = 'a duration such as "1%" of the run, or tokens such as "200M"'
        number, unit = _split(value, expected)
        if unit != "%":
            return cls(tokens=_whole(value, TOKEN_UNITS, expected, "tokens"))
        if number > 100:
            raise ValueError(f"{value!r} is more than the whole run: use at most 100%")
        return cls(percent=number)

    def of(self, total_tokens: int) -> int:
        """This stretch in tokens, in a run of `total_tokens`."""
        if self.tokens is not None:
            return self.tokens
        assert self.percent is not None
        return round(total_tokens * self.percent / 100)

    def __str__(self) -> str:
        if self.tokens is not None:
            return format_tokens(self.tokens)
        return f"{self.percent:f}%"
