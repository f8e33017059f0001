"""Units: exact, the inverse of printing, and loud about what they cannot read."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacpt.units import (
    Duration,
    format_bytes,
    format_seconds,
    format_tokens,
    parse_bytes,
    parse_seconds,
    parse_sequence_length,
    parse_share,
    parse_tokens,
)

counts = st.integers(min_value=0, max_value=10**18)
round_counts = st.builds(lambda n, zeros: n * 10**zeros, st.integers(0, 10**6), st.integers(0, 12))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("20B", 20_000_000_000),
        ("512K", 512_000),
        ("1.5M", 1_500_000),
        ("8Ki", 8192),
        ("1.5Ki", 1536),
        ("2T", 2 * 10**12),
        ("20_000", 20_000),
        (122_880, 122_880),
        (" 4 M ", 4_000_000),
        ("0.3M", 300_000),
    ],
)
def test_tokens(text: str | int, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@given(counts | round_counts)
def test_tokens_round_trip(tokens: int) -> None:
    assert parse_tokens(format_tokens(tokens)) == tokens


def test_tokens_are_printed_short() -> None:
    assert [format_tokens(n) for n in (0, 122_880, 512_000, 1_500_000_000, 20 * 10**9)] == [
        "0",
        "122880",
        "512K",
        "1500M",
        "20B",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("20Q", "unknown unit 'Q'"),
        ("8k", "unknown unit 'k'"),
        ("many", "is not a number of tokens"),
        ("-5K", "is not a number of tokens"),
        ("", "is not a number of tokens"),
        (True, "is not a number of tokens"),
        (None, "is not a number of tokens"),
        ("1.2345K", "not a whole number"),
        (1.5, "not a whole number"),
        ("1e9", "is not a number of tokens"),
        ("٣K", "is not a number of tokens"),
    ],
)
def test_bad_tokens_are_refused(text: str | int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_tokens(text)


def test_sequence_lengths_take_binary_units_only() -> None:
    assert parse_sequence_length(8192) == parse_sequence_length("8Ki") == parse_sequence_length("8192") == 8192
    with pytest.raises(ValueError, match='write 8192, or "8Ki"'):
        parse_sequence_length("8K")


def test_shares_are_parts_or_percents() -> None:
    assert [parse_share(value) for value in ("1%", "0.01", 0.01, 1e-5, 1)] == [0.01, 0.01, 0.01, 1e-5, 1]
    for value in ("1M", "much", None, True):
        with pytest.raises(ValueError, match="is not a share such as 1%"):
            parse_share(value)  # type: ignore[arg-type]


@given(counts | st.builds(lambda n, shift: n << shift, st.integers(0, 10**6), st.integers(0, 40)))
def test_bytes_round_trip(num_bytes: int) -> None:
    assert parse_bytes(format_bytes(num_bytes)) == num_bytes


def test_bytes_know_both_systems() -> None:
    assert (parse_bytes("8GiB"), parse_bytes("8GB"), parse_bytes("1.5KiB"), parse_bytes(7)) == (
        8 << 30,
        8 * 10**9,
        1536,
        7,
    )
    with pytest.raises(ValueError, match="unknown unit 'Gb'"):
        parse_bytes("8Gb")


def test_seconds() -> None:
    texts = ("30min", "1.5h", "90s", "250ms", "1d", 90, 0.5)
    assert [parse_seconds(text) for text in texts] == [1800, 5400, 90, 0.25, 86400, 90, 0.5]
    with pytest.raises(ValueError, match="unknown unit 'm'"):
        parse_seconds("30m")


def test_seconds_are_printed_to_two_units() -> None:
    times = (0.25, 1, 93, 3600, 93_784)
    assert [format_seconds(time) for time in times] == ["250ms", "1s", "1min 33s", "1h", "1d 2h"]


@given(st.integers(1, 10**6))
def test_printed_seconds_lose_less_than_the_second_unit(seconds: int) -> None:
    printed = sum(parse_seconds(part) for part in format_seconds(seconds).split())
    assert 0 <= seconds - printed < max(1, 3600 * (seconds >= 86400), 60 * (seconds >= 3600))


@given(st.decimals(0, 100, places=4) | round_counts)
def test_durations_round_trip(amount: Decimal | int) -> None:
    duration = Duration(percent=amount) if isinstance(amount, Decimal) else Duration(tokens=amount)
    assert Duration.parse(str(duration)) == duration


def test_durations_are_shares_of_the_run_or_tokens() -> None:
    assert Duration.parse("1%").of(20_000_000_000) == 200_000_000
    assert Duration.parse("0.1%").of(1000) == 1
    assert Duration.parse("200M").of(5) == Duration.parse(200_000_000).of(5) == 200_000_000


@pytest.mark.parametrize(
    ("text", "complaint"), [("101%", "more than the whole run"), ("1 %%", "unknown unit"), ("x", "is not")]
)
def test_bad_durations_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Duration.parse(text)


def test_a_duration_is_one_thing() -> None:
    with pytest.raises(ValueError, match="a percentage or a number"):
        Duration(percent=Decimal(1), tokens=1)
