"""How far the layers of a run's checkpoints are from the base model's: measured once each, kept in the run folder."""

from __future__ import annotations

from pathlib import Path

import orjson

from megacpt.checkpoint.folder import CheckpointFolder, read_state
from megacpt.checkpoint.huggingface import SafetensorsWeights
from megacpt.checkpoint.state import StoredState
from megacpt.continual.drift import layer_drift
from megacpt.observe.lines import read_json_lines

RECORDS = "drift.jsonl"


def measure_drift(run_folder: Path, base: Path) -> None:
    """Add a line to drift.jsonl for every checkpoint that has none: {"tokens": ..., "layers": [...]}.

    The weights are the fp32 masters, read one tensor at a time.

    Args:
        run_folder: holds the checkpoints.
        base: the Hugging Face folder of the model that the run started from.

    Raises:
        ModelError: it has other tensors than the checkpoints.
    """
    records, weights = run_folder / RECORDS, SafetensorsWeights(base)
    done = {line["tokens"] for line in read_json_lines(records)}
    for checkpoint in CheckpointFolder(run_folder / "checkpoints").complete():
        tokens = read_state(checkpoint)["tokens"]
        if tokens not in done:
            stored = StoredState(checkpoint)
            drift = layer_drift(stored, lambda name: weights.read(name, None), stored.whole)
            with records.open("ab") as file:
                file.write(orjson.dumps({"tokens": tokens, "layers": drift}) + b"\n")
