"""`megacpt shards`: build shards from text, join, look into, check and decontaminate them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from megacpt.errors import DataError, as_argument
from megacpt.units import counted, parse_count, parse_share

if TYPE_CHECKING:
    from rich.table import Column

    from megacpt.data.manifest import Manifest
    from megacpt.data.shard import Shard
    from megacpt_tools.tokenizer import Tokenizer

_PREVIEW_TOKENS = 120

_count = as_argument(parse_count)
"""A count that may be 0; "1.5B" and the like are understood."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    build = actions.add_parser("build", help="tokenize text into a folder of shards", description=_BUILD)
    build.set_defaults(action=_build)
    build.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="files (.jsonl .ndjson .txt .md .rst, each also .gz or .zst, and .parquet), folders of such files, "
        "patterns ('corpus/**/*.jsonl.zst'), URLs (s3:// gs:// hf://), or hf-dataset:NAME[@REVISION][:CONFIG][:SPLIT]",
    )
    build.add_argument(
        "--tokenizer",
        required=True,
        metavar="PATH",
        help="Hugging Face folder or tokenizer.json, SentencePiece .model, or Llama 3's tiktoken tokenizer.model",
    )
    build.add_argument("--output", required=True, metavar="FOLDER", help="folder to make")
    build.add_argument("--overwrite", action="store_true", help="replace finished shards in the output folder")
    build.add_argument(
        "--max-bad-lines", type=_count, default=0, metavar="N", help="leave out up to N lines that cannot be read (0)"
    )
    build.add_argument(
        "--workers", type=_at_least_one, default=len(os.sched_getaffinity(0)), metavar="N", help="processes (all cores)"
    )
    text = build.add_argument_group("text")
    text.add_argument("--text-key", default="text", metavar="KEY", help="key or column that holds the text (text)")
    text.add_argument(
        "--documents",
        choices=("file", "blank-line"),
        default="file",
        help="in plain text a document is a whole file (the default), or what stands between blank lines",
    )
    columns = build.add_argument_group("columns")
    columns.add_argument(
        "--keep-columns",
        type=_names,
        default=(),
        metavar="NAME,...",
        help="keep these keys (columns) of every document beside its shard, to filter and to order by later; "
        "text_hash is made, for recipes to hold out documents by",
    )
    columns.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="keep only documents that satisfy it: 'year >= 2015 and score > 0.7'; may be repeated, and each counts "
        "what it removes",
    )
    tokens = build.add_argument_group("tokens")
    tokens.add_argument(
        "--append-eos", action=argparse.BooleanOptionalAction, default=True, help="end every document with EOS (yes)"
    )
    tokens.add_argument(
        "--add-bos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="begin every document with BOS (if the tokenizer itself does)",
    )
    tokens.add_argument("--bos-token", metavar="TOKEN", help="spelling of BOS (the tokenizer's own)")
    tokens.add_argument("--eos-token", metavar="TOKEN", help="spelling of EOS (the tokenizer's own)")
    tokens.add_argument(
        "--max-tokens-per-shard", type=_at_least_one, default="1B", metavar="N", help="where a shard is cut (1B)"
    )
    tokens.add_argument(
        "--engine",
        choices=("fastest", "own"),
        help="what makes the ids: the fastest library that is found to make the tokenizer's, or the tokenizer's own "
        "(own below 64 MiB of input, which are not worth the search)",
    )
    split = build.add_argument_group("split")
    split.add_argument(
        "--held-out",
        type=as_argument(_fraction),
        default=0.0,
        metavar="SHARE",
        help="hold out a share of the documents (1%% or 0.01), chosen by a hash of their text: FOLDER/train and "
        "FOLDER/held_out instead of FOLDER",
    )
    split.add_argument(
        "--held-out-max-documents",
        type=_at_least_one,
        metavar="N",
        help="hold out the first N of them; the others train",
    )

    slices = build.add_argument_group("several builds of one input", "Each makes a slice; `shards join` joins them.")
    slices.add_argument("--shard-index", type=_count, default=0, metavar="I", help="which slice this is, from 0")
    slices.add_argument("--num-shards", type=_at_least_one, default=1, metavar="N", help="how many there are (1)")

    join = actions.add_parser("join", help="make one folder of the slices of an input", description=_JOIN)
    join.set_defaults(action=_join)
    join.add_argument("output", metavar="FOLDER", help="the --output of the slices")
    join.add_argument("--overwrite", action="store_true", help="join again")

    overlap = actions.add_parser(
        "decontaminate", help="find what training documents share with evaluation sets", description=_DECONTAMINATE
    )
    overlap.set_defaults(action=_decontaminate)
    overlap.add_argument("folders", nargs="+", metavar="FOLDER", help="folders of shards with a manifest.json")
    overlap.add_argument(
        "--against",
        nargs="+",
        required=True,
        metavar="NAME=PATH",
        help="evaluation sets: a name and its text, in any form that `build` reads",
    )
    overlap.add_argument("--text-key", default="text", metavar="KEY", help="key or column of the sets' text (text)")
    overlap.add_argument("--ngram", type=_at_least_one, default=13, metavar="N", help="tokens in a row (13)")
    overlap.add_argument("--tokenizer", metavar="PATH", help="the shards' tokenizer (the recorded one)")
    overlap.add_argument(
        "--write-column",
        action="store_true",
        help="keep each document's share of such n-grams as a column: recipes can say where: overlap < 0.1",
    )
    overlap.add_argument("--json", metavar="FILE", help="write the report as JSON, too")

    inspect = actions.add_parser("inspect", help="print what shards hold", description=_INSPECT)
    inspect.set_defaults(action=_inspect)
    inspect.add_argument("path", help="folder with a manifest.json, or a Megatron shard (prefix, .bin or .idx)")
    inspect.add_argument("--documents", type=_count, default=1, metavar="N", help="decode the first N documents (1)")
    inspect.add_argument("--tokenizer", metavar="PATH", help="tokenizer to decode with (the recorded one)")

    verify = actions.add_parser("verify", help="read every byte and check it", description=_VERIFY)
    verify.set_defaults(action=_verify)
    verify.add_argument("paths", nargs="+", metavar="path", help="folders with a manifest.json, or Megatron shards")


def run(arguments: argparse.Namespace) -> int:
    """Do the chosen action."""
    return arguments.action(arguments)


_BUILD = (
    "Tokenize text into Megatron's IndexedDataset shards and a manifest.json. The output does not depend on the number "
    "of workers. Special tokens spelled out in the text are encoded as text. A build that was interrupted goes on when "
    "the same command is given again."
)
_JOIN = "Write the manifest that makes one folder of all slices; no shard is read or moved."
_DECONTAMINATE = (
    "Compare training documents with evaluation sets by their n-grams of tokens: which evaluation documents are found, "
    "and in how many training documents."
)
_INSPECT = "Print the manifest as a table and the first documents as text."
_VERIFY = "Check sizes, checksums, the order of the index and that every id lies in the vocabulary."


def _build(arguments: argparse.Namespace) -> int:
    from megacpt_tools.builder import SLICE_NAME, BuildOptions, build_shards
    from megacpt_tools.inputs import listed, other_files
    from megacpt_tools.progress import build_progress

    if arguments.held_out_max_documents and not arguments.held_out:
        raise DataError("--held-out-max-documents limits --held-out", hint="Give both, for instance --held-out 1%.")
    if arguments.shard_index >= arguments.num_shards:
        raise DataError("there is no such slice", found=arguments.shard_index, expected=f"below {arguments.num_shards}")
    options = BuildOptions(
        text_key=arguments.text_key,
        documents=arguments.documents,
        append_eos=arguments.append_eos,
        add_bos=arguments.add_bos,
        bos_token=arguments.bos_token,
        eos_token=arguments.eos_token,
        keep_columns=arguments.keep_columns,
        where=tuple(arguments.where),
        held_out_fraction=arguments.held_out,
        held_out_max_documents=arguments.held_out_max_documents,
        max_tokens_per_shard=arguments.max_tokens_per_shard,
        index=arguments.shard_index,
        num_slices=arguments.num_shards,
        engine=arguments.engine,
    )
    with build_progress() as on_progress:
        manifests = build_shards(
            arguments.input,
            arguments.tokenizer,
            arguments.output,
            options,
            num_workers=arguments.workers,
            max_bad_lines=arguments.max_bad_lines,
            overwrite=arguments.overwrite,
            on_progress=on_progress,
            on_bad_line=lambda error: print(f"left out: {error}", file=sys.stderr),
        )
    for part, manifest in manifests.items():
        folder = Path(arguments.output) / part if manifest.split else Path(arguments.output)
        if manifest.slice:
            folder /= SLICE_NAME.format(manifest.slice.index, manifest.slice.num_slices)
        print(f"{folder}: {_summary(manifest)}")
    manifest = next(iter(manifests.values()))
    for source in manifest.sources:
        if source.documents == source.empty_documents:
            print(f"warning: {source.path} holds no documents")
    if others := other_files(arguments.input):
        print(f"left out: files of other kinds: {listed(others)}")
    if num_empty := sum(source.empty_documents for source in manifest.sources):
        print(f"left out: {counted(num_empty, 'document')} without text")
    for entry in manifest.filters:
        removed = counted(entry.removed_documents, "document")
        print(f"--where {entry.where!r} removed {removed}, {counted(entry.removed_bytes, 'byte')}")
    return 0


def _join(arguments: argparse.Namespace) -> int:
    from megacpt_tools.builder import join_slices

    for folder, manifest in join_slices(arguments.output, arguments.overwrite).items():
        print(f"{folder}: {_summary(manifest)}")
    return 0


def _decontaminate(arguments: argparse.Namespace) -> int:
    from megacpt.data.manifest import read_manifest
    from megacpt_tools.decontaminate import EvaluationGrams, decontaminate

    sets: dict[str, list[str]] = {}
    for entry in arguments.against:
        name, equals, path = entry.partition("=")
        if not equals:
            raise DataError("an evaluation set needs a name", where="--against", found=entry, expected="NAME=PATH")
        sets.setdefault(name, []).append(path)
    made_by = {folder: read_manifest(folder).tokenizer for folder in arguments.folders}
    first = next(iter(made_by.values()))
    for folder, record in made_by.items():
        if record.fingerprint != first.fingerprint:
            raise DataError("these shards were built with another tokenizer than the first", where=folder)
    tokenizer = _tokenizer_of(arguments.tokenizer or first.name, first.fingerprint)
    evaluation = EvaluationGrams(sets, tokenizer, arguments.text_key, arguments.ngram)
    reports = []
    for folder in arguments.folders:
        report = decontaminate(Path(folder), evaluation, write_column=arguments.write_column)
        print(f"{folder}: {report.documents:,} documents of {report.tokens:,} tokens share n-grams with")
        for part in report.sets:
            print(
                f"  {part.name}: {part.found_documents:,} of {part.documents:,} documents are found in part, "
                f"{part.found_share:.2%} of a document on average"
            )
        reports.append(asdict(report))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(reports, indent=2) + "\n")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from megacpt.data.manifest import read_manifest

    path = Path(arguments.path)
    tokenizer_path: str | None = arguments.tokenizer
    fingerprint = None
    if path.is_dir():
        manifest = read_manifest(path)
        shards = manifest.open_shards(path)
        fingerprint = manifest.tokenizer.fingerprint
        if tokenizer_path is None and Path(manifest.tokenizer.name).exists():
            tokenizer_path = manifest.tokenizer.name
        _print_manifest(path, manifest)
    else:
        shard = _open_shard(path)
        shards = [shard]
        print(
            f"{shard.prefix}: {counted(shard.num_documents, 'document')}, {shard.num_tokens:,} tokens ({shard.dtype})"
        )
    if arguments.documents > 0 and tokenizer_path is not None:
        _print_documents(shards, arguments.documents, tokenizer_path, fingerprint)
    elif arguments.documents > 0:
        print("\nGive --tokenizer to see documents as text.")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from megacpt.data.manifest import verify

    for path in map(Path, arguments.paths):
        if path.is_dir():
            manifest = verify(path, on_shard=lambda shard: print(f"  {shard.file}: {shard.tokens:,} tokens, ok"))
            print(f"{path}: ok, {_summary(manifest)}")
        else:
            shard = _open_shard(path)
            shard.verify()
            print(f"{shard.prefix}: ok (without a manifest there are no checksums and no vocabulary to check against)")
    return 0


def _open_shard(path: Path) -> Shard:
    from megacpt.data.shard import Shard

    return Shard(path.with_suffix("") if path.suffix in (".bin", ".idx") else path)


def _summary(manifest: Manifest) -> str:
    per_token = f", {manifest.bytes / manifest.tokens:.2f} bytes per token" if manifest.tokens else ""
    return (
        f"{counted(manifest.documents, 'document')}, {manifest.tokens:,} tokens ({manifest.dtype}) in "
        f"{counted(len(manifest.shards), 'shard')}{per_token}"
    )


def _print_manifest(folder: Path, manifest: Manifest) -> None:
    from rich.console import Console
    from rich.table import Table

    tokenizer = manifest.tokenizer
    console = Console(highlight=False)
    console.print(f"{folder}: {_summary(manifest)}", soft_wrap=True, markup=False)
    console.print(
        f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} ids, fingerprint {tokenizer.fingerprint[:12]}, "
        f"{tokenizer.name}",
        soft_wrap=True,
        markup=False,
    )
    if engine := tokenizer.engine:
        checked = f"equal ids in {engine.checked_documents:,} documents" if engine.checked_tokens else ""
        because = engine.reason or checked
        console.print(f"run by: {engine.name}{because and f', {because}'}", soft_wrap=True, markup=False)
    console.print(
        f"every document: {f'BOS {tokenizer.bos_id}, ' if tokenizer.adds_bos else ''}text"
        f"{f', EOS {tokenizer.eos_id}' if tokenizer.adds_eos else ''}"
    )
    if manifest.split:
        console.print(f"split: {manifest.split.part}, {manifest.split.held_out_fraction:.3g} of documents held out")
    shards = Table("shard", *(_right(name) for name in ("documents", "tokens", "text bytes")), "sha256 of .bin")
    for shard in manifest.shards:
        numbers = (shard.documents, shard.tokens, shard.bytes)
        shards.add_row(shard.file, *(f"{number:,}" for number in numbers), shard.bin_sha256[:12])
    console.print(shards)
    for entry in manifest.filters:
        console.print(f"where {entry.where}: {entry.removed_documents:,} documents removed", markup=False)
    kept = dict.fromkeys(name for shard in manifest.shards for columns in shard.columns for name in columns.names)
    if kept:
        console.print(f"columns: {', '.join(kept)}", soft_wrap=True, markup=False)
    sources = Table("source", *(_right(name) for name in ("documents", "without text", "file bytes")))
    for source in manifest.sources:
        numbers = (source.documents, source.empty_documents, source.bytes)
        sources.add_row(source.path, *(f"{number:,}" for number in numbers))
    console.print(sources)


def _right(name: str) -> Column:
    from rich.table import Column

    return Column(name, justify="right")


def _print_documents(shards: list[Shard], num_documents: int, tokenizer_path: str, fingerprint: str | None) -> None:
    """The first documents as text, cut short; the tokenizer must be the one that made the ids."""
    tokenizer = _tokenizer_of(tokenizer_path, fingerprint)
    number = 0
    for shard in shards:
        take = min(num_documents - number, shard.num_documents)
        offsets = shard.document_offsets(0, take).tolist()
        for start, end in pairwise(offsets):
            shown = min(end - start, _PREVIEW_TOKENS)
            print(
                f"\n--- document {number}: {end - start:,} tokens"
                + (f", the first {shown}" if end - start > shown else "")
            )
            print(tokenizer.decode(shard.read(start, shown).tolist()))
            number += 1


def _tokenizer_of(path: str, fingerprint: str | None) -> Tokenizer:
    """The tokenizer at a path, which must be the one of this fingerprint, if one is known."""
    from megacpt_tools.tokenizer import open_tokenizer

    tokenizer = open_tokenizer(path)
    if fingerprint is not None and tokenizer.fingerprint != fingerprint:
        raise DataError(
            "this tokenizer did not make these shards",
            where=path,
            found=f"fingerprint {tokenizer.fingerprint[:12]}",
            expected=fingerprint[:12],
        )
    return tokenizer


def _at_least_one(text: str) -> int:
    number = _count(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _fraction(text: str) -> float:
    """'1%' or '0.01'."""
    fraction = parse_share(text)
    if not 0 < fraction < 1:
        raise ValueError(f"{text!r} is not a share such as 1% or 0.01")
    return fraction
