"""`megacpt probe`: what a model has learned by heart, text by text.

Each probe is a text, of which the first tokens are given. One forward says both how much of the rest the model would
write by itself (a greedy continuation equals the text for as long as each of its tokens is the likeliest one after
those before it) and how likely the rest is, alone and among siblings that were in no training data. Nothing is
generated, so the measure does not depend on settings of a generation.
"""

from __future__ import annotations

import argparse
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator

from megacpt.continual.recall import exposure, recalled_tokens
from megacpt.data.insertions import FILE_NAME as INSERTIONS_FILE
from megacpt.data.insertions import read_lines
from megacpt.errors import DataError

RECORDS = "probes.jsonl"
PREFIX_TOKENS = 32
"""Given of each text; of texts with fewer than twice as many, the first half."""
BATCH_TOKENS = 4096
"""Tokens in one forward."""

COLUMNS = ("probe", "seen", "given", "recalled", "loss", "exposure")
"""Of what `rows_of` gives."""

Text = str | tuple[NonNegativeInt, ...]


class Place(BaseModel):
    """Where a text was inserted into the stream: after so many tokens of the run; what else is said is not needed."""

    position: NonNegativeInt


class Probe(BaseModel):
    """A line of a file of probes: text, or tokens.

    Attributes:
        name: to tell it from others.
        text, tokens: one of the two; the tokenizer adds to text what it adds to every text (BOS).
        prefix_tokens: of which so many are given; None: `--prefix-tokens`.
        siblings: texts of the same form in no training data, or the number of random continuations to draw: for
            canaries that were drawn so themselves.
        group: what it is drawn with in a report, say "16 times"; None: by itself.
        places: where a run has read it, as its insertions.jsonl says.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    text: str | None = None
    tokens: tuple[NonNegativeInt, ...] | None = None
    prefix_tokens: PositiveInt | None = None
    siblings: NonNegativeInt | tuple[Text, ...] = 0
    group: str | None = None
    places: tuple[Place, ...] = ()

    @model_validator(mode="after")
    def _is_text_or_tokens(self) -> Probe:
        if (self.text is None) == (self.tokens is None):
            raise ValueError("a probe has one of text and tokens")
        return self

    @property
    def content(self) -> Text:
        """The text, or the tokens."""
        return self.text if self.text is not None else self.tokens or ()

    @property
    def needs_tokenizer(self) -> bool:
        """Whether it, or a sibling, is text."""
        siblings = () if isinstance(self.siblings, int) else self.siblings
        return any(isinstance(text, str) for text in (self.content, *siblings))


@dataclass(frozen=True)
class Finding:
    """What a model knows of a probe.

    Attributes:
        name, group: the probe's.
        prefix_tokens: that were given.
        tokens: that follow them.
        recalled: of which the model would write so many before it first departs.
        seen: how often the run had read it; None: it was not inserted, or this is no run's.
        loss: the mean nll of the tokens that follow, in nats.
        exposure: in bits (`megacpt.continual.recall.exposure`); None: without siblings.
        most_exposure: the most that there could be: log2 of the number of candidates.
    """

    name: str
    group: str | None
    prefix_tokens: int
    tokens: int
    recalled: int
    loss: float
    seen: int | None = None
    exposure: float | None = None
    most_exposure: float | None = None


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a run (its newest checkpoint), a checkpoint or a Hugging Face folder"
    )
    parser.add_argument(
        "--probes", type=Path, metavar="FILE", help="jsonl: name, text or tokens, ... (default: what the run inserted)"
    )
    parser.add_argument("--prefix-tokens", type=int, default=PREFIX_TOKENS, metavar="N", help="given of each text (32)")
    parser.add_argument("--base", type=Path, metavar="MODEL", help="measure the base model too, for the run's report")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write what was found as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Measure, show a table, and keep what was found in a run's probes.jsonl, which its report draws."""
    from megacpt.checkpoint.export import export
    from megacpt.checkpoint.folder import find_checkpoint, read_state

    if arguments.prefix_tokens < 1:
        raise DataError("a probe gives at least one token", where="--prefix-tokens", found=arguments.prefix_tokens)
    if (arguments.model / "config.json").is_file():
        if arguments.probes is None:
            raise DataError(
                "a model alone does not say what to look for", where="--probes", expected="a file of probes"
            )
        found = measure(arguments.model, read_probes(arguments.probes), arguments.prefix_tokens)
    else:
        checkpoint = find_checkpoint(arguments.model)
        run_folder, tokens = checkpoint.parent.parent, int(read_state(checkpoint)["tokens"])
        if arguments.probes is None and not (run_folder / INSERTIONS_FILE).is_file():
            raise DataError(
                "the run inserted nothing that could be looked for", where="--probes", expected="a file of probes"
            )
        probes = read_probes(arguments.probes or run_folder / INSERTIONS_FILE)
        if arguments.base:
            keep(run_folder, 0, measure(arguments.base, probes, arguments.prefix_tokens, seen_tokens=0))
        with tempfile.TemporaryDirectory(dir=run_folder, prefix="probe-") as temporary:
            export(checkpoint, Path(temporary) / "model")
            found = measure(Path(temporary) / "model", probes, arguments.prefix_tokens, seen_tokens=tokens)
        keep(run_folder, tokens, found)
    show(found)
    if arguments.output:
        arguments.output.write_bytes(orjson.dumps([asdict(finding) for finding in found], option=orjson.OPT_INDENT_2))
    return 0


def read_probes(path: Path) -> list[Probe]:
    """The lines of a file of probes.

    Raises:
        DataError: the file cannot be read, a line is no probe, two have one name, or there is none.
    """
    probes: dict[str, Probe] = {}
    for where, probe in read_lines(path, Probe, "probe"):
        if probe.name in probes:
            raise DataError("two probes have one name", where=where, found=probe.name)
        probes[probe.name] = probe
    if not probes:
        raise DataError("there is no probe here", where=str(path), expected='lines like {"name": "a", "text": "..."}')
    return list(probes.values())


def measure(
    model_folder: Path, probes: Sequence[Probe], prefix_tokens: int = PREFIX_TOKENS, seen_tokens: int | None = None
) -> list[Finding]:
    """What a model knows of each probe.

    Args:
        model_folder: a Hugging Face folder, with a tokenizer if a probe is text.
        probes: texts.
        prefix_tokens: given of those that do not say so themselves.
        seen_tokens: of its run, that the model was trained on; None: it is no run's.

    Raises:
        DataError: a text is too short, too long for the model, or its tokens are not the model's.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from megacpt.checkpoint.huggingface import read_config
    from megacpt.data.special_tokens import open_library

    config = read_config(model_folder).get_text_config()
    needs_tokenizer = any(probe.needs_tokenizer for probe in probes)
    tokenizer = open_library(model_folder / "tokenizer.json") if needs_tokenizer else None
    texts = [_encoded(probe, prefix_tokens, config, tokenizer) for probe in probes]
    # Most CPUs multiply bf16 many times more slowly than fp32.
    device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype).to(device).eval()
    findings = []
    for probe, encoded in zip(probes, texts, strict=True):
        found = _find(probe, *encoded, model)
        if probe.places and seen_tokens is not None:
            found = replace(found, seen=sum(place.position < seen_tokens for place in probe.places))
        findings.append(found)
    return findings


def _encoded(probe: Probe, prefix_tokens: int, config: Any, tokenizer: Any) -> tuple[list[int], list[list[int]], int]:
    """The tokens of a probe and of its siblings, and how many of them are given."""

    def encode(text: Text) -> list[int]:
        return tokenizer.encode(text).ids if isinstance(text, str) else list(text)

    tokens = encode(probe.content)
    prefix = min(probe.prefix_tokens or prefix_tokens, max(1, len(tokens) // 2))
    if isinstance(probe.siblings, int):
        siblings = list(_random_siblings(tokens, prefix, probe.siblings, config.vocab_size, probe.name))
    else:
        siblings = [encode(sibling) for sibling in probe.siblings]
    for text in (tokens, *siblings):
        if not prefix < len(text) <= config.max_position_embeddings or max(text) >= config.vocab_size:
            raise DataError(
                "a text cannot be given to this model" if text is tokens else "a sibling cannot be given to this model",
                where=f"probe {probe.name}",
                found=f"{len(text)} tokens, the largest {max(text, default=0)}",
                expected=f"{prefix + 1} to {config.max_position_embeddings} tokens below {config.vocab_size}",
            )
    return tokens, siblings, prefix


def _random_siblings(tokens: Sequence[int], prefix: int, count: int, vocab_size: int, name: str) -> Iterator[list[int]]:
    """The same beginning with other random ends, the same at each call."""
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    for _ in range(count):
        yield [*tokens[:prefix], *torch.randint(vocab_size, (len(tokens) - prefix,), generator=generator).tolist()]


def _find(probe: Probe, tokens: list[int], siblings: list[list[int]], prefix: int, model: Any) -> Finding:
    (losses, likeliest), *others = _continuations(model, [tokens, *siblings], prefix)
    candidates = [sum(sibling) for sibling, _ in others]
    return Finding(
        name=probe.name,
        group=probe.group,
        prefix_tokens=prefix,
        tokens=len(losses),
        recalled=recalled_tokens(likeliest, tokens[prefix:]),
        loss=sum(losses) / len(losses),
        exposure=exposure(sum(losses), candidates) if candidates else None,
        most_exposure=exposure(0.0, [1.0] * len(candidates)) if candidates else None,
    )


def _continuations(model: Any, texts: Sequence[list[int]], prefix: int) -> Iterator[tuple[list[float], list[int]]]:
    """(nll of each token behind the prefix, the likeliest token at its place) of each text."""
    import torch

    longest = max(map(len, texts))
    rows = max(1, BATCH_TOKENS // longest)
    for start in range(0, len(texts), rows):
        batch = texts[start : start + rows]
        # What stands behind a text is not seen by it: attention is causal.
        ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in batch], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[:, prefix - 1 : -1].float()
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, prefix:], reduction="none")
        for text, losses, likeliest in zip(batch, nll.tolist(), logits.argmax(-1).tolist(), strict=True):
            yield losses[: len(text) - prefix], likeliest[: len(text) - prefix]


def keep(run_folder: Path, tokens: int, found: Sequence[Finding]) -> None:
    """Add what was found after so many tokens to the run's probes.jsonl; what is measured again counts last."""
    line = {"tokens": tokens, "probes": [asdict(finding) for finding in found]}
    with (run_folder / RECORDS).open("ab") as file:
        file.write(orjson.dumps(line) + b"\n")


def show(found: Sequence[Finding]) -> None:
    """A table of what was found."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(COLUMNS[0], box=box.ROUNDED)
    for heading in COLUMNS[1:]:
        table.add_column(heading, justify="right")
    for row in rows_of([asdict(finding) for finding in found]):
        table.add_row(*row)
    Console(highlight=False).print(table)


def rows_of(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Findings in words: name, times seen, tokens given, recalled of how many, nats per token, bits of how many."""
    return [
        [
            probe["name"],
            "" if probe["seen"] is None else str(probe["seen"]),
            str(probe["prefix_tokens"]),
            f"{probe['recalled']} of {probe['tokens']}",
            f"{probe['loss']:.4f}",
            "" if probe["exposure"] is None else f"{probe['exposure']:.1f} of {probe['most_exposure']:.1f} bits",
        ]
        for probe in found
    ]
