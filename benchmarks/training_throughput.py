"""Training throughput on one process against the plain transformers loop, in turns within one run.

    python benchmarks/training_throughput.py [--model runs/quickstart/model] [--dtype float32] [--steps 6]

The plain loop is what one would write without megacpt: transformers' model, F.cross_entropy on its logits, gradient
accumulation, clipping, AdamW (on fp32 master weights when the model is bf16). Both train on the same rows; steps
alternate, so that a machine whose speed drifts slows both. Reported: tokens/s of each (median step) and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from megacpt.checkpoint.huggingface import SafetensorsWeights, read_config
from megacpt.data.batch import MicroBatch
from megacpt.engine.pipelined import PipelinedEngine
from megacpt.engine.processes import join_world, leave_world
from megacpt.engine.settings import EngineSettings
from megacpt.model.blueprint import Blueprint
from megacpt.model.objective import Objective
from megacpt.model.stages import StageFactory
from megacpt.observe.quiet import quiet
from megacpt.parallel.grid import Grid
from megacpt.parallel.group import TensorGroup

RESULTS = Path(__file__).parent / "results"
LEARNING_RATE = 1e-5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def micro_batches(vocab_size: int, rows: int, length: int, step: int) -> list[MicroBatch]:
    """Rows of random tokens, one document each, as micro-batches of one row."""
    generator = torch.Generator().manual_seed(step)
    batches = []
    for _ in range(rows):
        tokens = torch.randint(3, vocab_size, (1, length + 1), generator=generator)
        batches.append(
            MicroBatch(
                input_ids=tokens[:, :-1].contiguous(),
                positions=torch.arange(length)[None],
                labels=tokens[:, 1:].contiguous(),
                weights=torch.full((1, length), 1.0 / (rows * length)),
                domains=torch.zeros(1, length, dtype=torch.long),
            )
        )
    return batches


def plain_loop(folder: Path, dtype: torch.dtype) -> Callable[[list[MicroBatch]], float]:
    """A step of the loop without megacpt; returns its loss."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.train()
    parameters = list(model.parameters())
    masters = parameters if dtype is torch.float32 else [p.detach().float().requires_grad_() for p in parameters]
    optimizer = torch.optim.AdamW(masters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)

    def step(batches: list[MicroBatch]) -> float:
        total = 0.0
        for batch in batches:
            logits = model(input_ids=batch.input_ids, use_cache=False).logits.float()
            loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten()) / len(batches)
            loss.backward()
            total += loss.item()
            if masters is not parameters:
                for master, parameter in zip(masters, parameters, strict=True):
                    gradient = parameter.grad.float()
                    master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                    parameter.grad = None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if masters is not parameters:
            with torch.no_grad():
                for master, parameter in zip(masters, parameters, strict=True):
                    parameter.copy_(master)
        return total

    return step


def megacpt_engine(folder: Path, dtype: torch.dtype, rows: int) -> Callable[[list[MicroBatch]], float]:
    """A step of the engine that trains, on a grid of one; returns its loss."""
    plan = Blueprint(read_config(folder), dtype)
    factory = StageFactory(plan, SafetensorsWeights(folder, plan.base_name), TensorGroup())
    objective = Objective(TensorGroup(), plan.vocab_size, num_domains=1)
    settings = EngineSettings(micro_rows=1, num_micro_batches=rows, dtype=dtype)
    engine = PipelinedEngine(factory, objective, Grid(1, 1, 1), [0, plan.num_layers + 3], settings)
    return lambda batches: engine.train_step(batches, LEARNING_RATE).loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/quickstart/model"))
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    dtype = DTYPES[arguments.dtype]
    with quiet():
        world = join_world()
        loops = {
            "transformers": plain_loop(arguments.model, dtype),
            "megacpt": megacpt_engine(arguments.model, dtype, arguments.rows),
        }
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        vocab_size = read_config(arguments.model).vocab_size
        for number in range(arguments.steps + 1):  # the first step warms up and is not counted
            batches = micro_batches(vocab_size, arguments.rows, arguments.length, number)
            losses = {}
            for name, step in loops.items():
                start = time.perf_counter()
                losses[name] = step(batches)
                if number:
                    seconds[name].append(time.perf_counter() - start)
            print(
                f"step {number}: " + ", ".join(f"{name} loss {loss:.4f}" for name, loss in losses.items()), flush=True
            )
        leave_world(world)
    tokens = arguments.rows * arguments.length
    rates = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    pairs = [plain / ours for plain, ours in zip(seconds["transformers"], seconds["megacpt"], strict=True)]
    result = {
        "date": date.today().isoformat(),
        "command": f"python benchmarks/training_throughput.py --dtype {arguments.dtype}"
        f" --rows {arguments.rows} --steps {arguments.steps}",
        "hardware": f"{torch.cpu.get_capabilities()['cpu_name']}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers")}
        | {"python": platform.python_version()},
        "model": "SmolLM2-135M",
        "batch": f"{arguments.rows} micro-batches of 1 x {arguments.length}",
        "tokens_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "ratio": round(statistics.median(pairs), 3),
        "ratio_range": [round(min(pairs), 3), round(max(pairs), 3)],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"training_throughput_{arguments.dtype}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
