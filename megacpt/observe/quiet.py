"""Silence what other libraries say on every run and nobody can act on, and nothing else.

DeepSpeed prints its topology, its layers and its memory from every process, past any logger; torch warns about calls
that DeepSpeed makes. Such a line is dropped by its text, never by its source, so a warning that is not listed here
still reaches the user. Every entry was seen with DeepSpeed 0.19.8 and torch 2.13.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import TextIO

# Whole lines of stdout.
_PRINTED = re.compile(
    "|".join(
        (
            # A C++ extension that was found in its cache or built: a failure raises, so success is no news.
            r"DeepSpeed [\w.]+ built successfully",
            r"Time to load \w+ op: .* seconds",
            # PipelineModule, which tells its seed, grid and layers: the plan in the header says it better.
            r"SEED_LAYERS=\w+ BASE_SEED=\d+ SEED_FN=\w+",
            r"Using topology: \{.*\}",
            r"stage=\d+ layers=\d+",
            r" +\d+: [\w.<>]+",
            r"  loss: \w+",
            # see_memory_usage(force=True) around every optimizer: a title, device memory, host memory.
            r"(begin bf16_optimizer|end bf16_ optimizer|(before|after) initializing group \d+)",
            r"(before|after) GatheredParameters",
            r"MA [\d.]+ GB +Max_MA [\d.]+ GB +CA [\d.]+ GB +Max_CA [\d.]+ GB *",
            r"CPU Virtual Memory: +used = [\d.]+ GB, percent = [\d.]+%",
            # Our AdamW under ZeRO, to which engine/settings.py says yes.
            r".*\*{4} You are using ZeRO with an untested optimizer, proceed with caution \*{5}",
            # A trace left in BF16_Optimizer's load.
            r"_load_legacy_checkpoint current_rank_sd\[BASE_OPTIMIZER_STATE\]",
        )
    )
)

# Starts of messages of the warnings module, with their category.
_WARNED: tuple[tuple[str, type[Warning]], ...] = (
    # DeepSpeed calls torch's old names at every step, under ZeRO; only a later DeepSpeed can change that.
    (r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated", FutureWarning),
)

# Starts of messages of the logging module, with their logger.
_LOGGED: tuple[tuple[str, str], ...] = (
    # Of any optimizer that is not DeepSpeed's own or torch's: ours is tested here, under every ZeRO stage.
    ("DeepSpeed", r"\*{4} You are using ZeRO with an untested optimizer"),
)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave the listed lines and warnings out of what this process writes, as long as the context lasts."""
    sieve = _Sieve(sys.stdout)
    with warnings.catch_warnings(), redirect_stdout(sieve), ExitStack() as filters:
        for message, category in _WARNED:
            warnings.filterwarnings("ignore", message, category)
        for name, message in _LOGGED:
            filters.enter_context(_without(logging.getLogger(name), message))
        try:
            yield
        finally:
            sieve.flush()


@contextmanager
def _without(logger: logging.Logger, message: str) -> Iterator[None]:
    """Leave messages out of a log, by their start."""

    def is_news(record: logging.LogRecord) -> bool:
        return not re.match(message, record.getMessage())

    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)


class _Sieve(io.TextIOBase):
    """A stdout that drops known lines. A line is judged when it is complete, or as it stands when flushed."""

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout
        self._line = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stdout.encoding

    def fileno(self) -> int:
        return self._stdout.fileno()

    def isatty(self) -> bool:
        return self._stdout.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *complete, self._line = (self._line + text).split("\n")
        kept = [f"{line}\n" for line in complete if not _PRINTED.fullmatch(line)]
        if kept:
            self._stdout.write("".join(kept))
        return len(text)

    def flush(self) -> None:
        if self._line:
            self._stdout.write(self._line)
            self._line = ""
        self._stdout.flush()
