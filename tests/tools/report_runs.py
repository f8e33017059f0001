"""Run folders as a training leaves them, with losses made up for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TOKENS_PER_STEP = 1000
ROLES = {"medical": "new", "general": "replay", "code": "anchor"}
LOSSES = {"medical": [3.0, 2.9, 2.5], "general": [2.0, 2.25, 2.0625], "code": [1.0, 1.0, 1.0]}
STEPS = (0, 2, 4)


def write_run(
    folder: Path,
    losses: Mapping[str, Sequence[float]] = LOSSES,
    *,
    config: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> Path:
    """A run of 4 steps, evaluated after 0, 2 and 4.

    Args:
        folder: the run folder; its name is the run's.
        losses: domain -> held-out losses at STEPS.
        config: of the model.
        recipe: sections in place of the usual ones.
    """
    (folder / "model").mkdir(parents=True)
    if config is not None:
        (folder / "model" / "config.json").write_text(json.dumps(config))
    domains = {name: {"role": role, "weight": None if role == "anchor" else 0.5} for name, role in ROLES.items()}
    values = {
        "name": folder.name,
        "data": {"sequence_length": 100, "domains": domains},
        "training": {"tokens": "4K"},
        **recipe,
    }
    (folder / "recipe.yaml").write_text(json.dumps(values))  # JSON is YAML
    evaluations = [
        {
            "step": step,
            "tokens": step * TOKENS_PER_STEP,
            "domains": {
                name: {"loss": curve[i], "bits_per_byte": 0.9, "tokens": 100} for name, curve in losses.items()
            },
            "alignment": {name: {"whole": 0.1 * i, "layers": [0.2, None]} for name in ("general", "code")},
        }
        for i, step in enumerate(STEPS)
    ]
    steps = [
        {
            "step": step,
            "tokens": step * TOKENS_PER_STEP,
            "loss": 2.5,
            "grad_norm": 1.0,
            "learning_rate": 1e-4 / step,
            "tokens_per_second": 500.0,
            "domains": {"medical": {"loss": 3.0 / step, "tokens": 750}, "general": {"loss": 2.0, "tokens": 250}},
        }
        for step in range(1, 5)
    ]
    for name, records in (("evaluations", evaluations), ("metrics", steps)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return folder
