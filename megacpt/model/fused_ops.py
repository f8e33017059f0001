"""Liger's Triton kernels in transformers' layers: RMSNorm, rotary embedding and gated MLP, each one pass over memory.

Liger (Hsu et al. 2024, arXiv:2410.10989) replaces the forward of a model's norms and MLPs, and the rotary function of
its module. Parameters and linear layers stay, so a layer is cut for tensor parallelism as ever. The price: Liger
changes transformers' module too, so from then on the process runs models of this type on a GPU only.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

from torch import nn

from megacpt.errors import ModelError


def choose_fused_ops(requested: Literal["auto"] | bool, device_type: str, model_type: str) -> bool:
    """Whether to use Liger's kernels: as requested, or where they run and are known to compute the same.

    Args:
        requested: True, False or "auto".
        device_type: "cuda" or "cpu".
        model_type: of the Hugging Face config.

    Raises:
        ModelError: they are requested and cannot be used.
    """
    if requested is False or (requested == "auto" and device_type != "cuda"):
        return False
    missing = _missing(device_type, model_type)
    if requested is True and missing is not None:
        raise ModelError("Liger's fused ops cannot be used", where="model.fused_ops", found=missing)
    return missing is None


def _missing(device_type: str, model_type: str) -> str | None:
    """What keeps Liger's kernels from being used; None: nothing."""
    if device_type != "cuda":
        return f"{device_type}, and they need CUDA"
    if importlib.util.find_spec("liger_kernel") is None:
        return "no package liger-kernel"
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return None if model_type in MODEL_TYPE_TO_APPLY_LIGER_FN else f"'{model_type}', which Liger does not know"


def fuse_ops(model: nn.Module) -> None:
    """Have a transformers model's norms, MLPs and rotary embedding computed by Liger; its loss is left alone."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
