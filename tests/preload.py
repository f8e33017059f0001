"""What the fork servers of `tests.distributed` and `experiments.run` import once, so that no rank has to."""

from __future__ import annotations

import gc
import importlib

# Submodules are named where their package loads them lazily: what is missing here is imported anew by every rank.
NAMES = [
    "torch._dynamo",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "deepspeed.pipe",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.muon.original_muon",
    "megacpt.cli",
    "megacpt.run",
    "megacpt.observe.console",
]

for name in NAMES:
    importlib.import_module(name)
gc.collect()
gc.freeze()  # a collection in a rank would touch, and so copy, every page that it shares with the server
