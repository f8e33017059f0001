"""Liger's kernels in the layers: which are replaced, and that nothing else is computed."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from megacpt.errors import ModelError
from megacpt.model.blueprint import PARITY_TESTED, Blueprint
from megacpt.model.fill import RandomWeights
from megacpt.model.fused_ops import choose_fused_ops
from megacpt.model.stages import StageFactory
from megacpt.parallel.group import TensorGroup
from tests.distributed import run_ranks
from tests.model.whole import WholeModel, small_config

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
IDS = torch.tensor([[5, 9, 3, 77, 21, 8]])
POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 2]])


@pytest.fixture
def liger() -> ModuleType:
    module: ModuleType = pytest.importorskip("liger_kernel.transformers.monkey_patch")
    return module


def test_off_without_a_gpu_unless_asked() -> None:
    assert choose_fused_ops("auto", "cpu", "llama") is False
    assert choose_fused_ops(False, "cuda", "llama") is False
    with pytest.raises(ModelError, match=r"model\.fused_ops: .*cpu, and they need CUDA"):
        choose_fused_ops(True, "cpu", "llama")


def test_on_where_liger_knows_the_architecture(liger: ModuleType) -> None:
    assert set(liger.MODEL_TYPE_TO_APPLY_LIGER_FN) >= PARITY_TESTED
    for requested in ("auto", True):
        assert choose_fused_ops(requested, "cuda", "llama") is True
    assert choose_fused_ops("auto", "cuda", "cohere") is False
    with pytest.raises(ModelError, match="'cohere', which Liger does not know"):
        choose_fused_ops(True, "cuda", "cohere")


def test_without_liger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_fused_ops("auto", "cuda", "llama") is False
    with pytest.raises(ModelError, match="no package liger-kernel"):
        choose_fused_ops(True, "cuda", "llama")


@triton.jit
def reciprocal_root(x: Any) -> Any:
    return 1 / tl.sqrt(x)


@triton.jit
def tanh(x: Any) -> Any:
    return 2 * tl.sigmoid(2 * x) - 1


def interpret_liger() -> None:
    """Triton's interpreter hands floats on as Python's and has no libdevice; Liger needs both."""
    import liger_kernel.ops.geglu
    import liger_kernel.ops.rms_norm
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def convert_floats_too(argument: Any) -> Any:
        if not isinstance(argument, float):
            return convert(argument)
        return tl.tensor(interpreter.TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32)

    interpreter._implicit_cvt = convert_floats_too
    liger_kernel.ops.rms_norm.rsqrt = reciprocal_root
    liger_kernel.ops.geglu.tanh = tanh


def results(model_type: str, device: str, *, fused_ops: bool) -> tuple[list[torch.Tensor], set[str]]:
    """Logits of two packed documents and all gradients; the names of what was replaced."""
    config = small_config(model_type, num_hidden_layers=1, sliding_window=4)
    blueprint = Blueprint(config, torch.float32, fused_ops=fused_ops)
    model = WholeModel(StageFactory(blueprint, RandomWeights(blueprint.model, seed=0), TensorGroup())).to(device)
    parameters = [parameter for stage in model.stages() for parameter in stage.parameters()]
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=random).to(device))
    logits = model(IDS.to(device), POSITIONS.to(device))
    gradients = torch.autograd.grad((logits * torch.randn(logits.shape, generator=random).to(device)).sum(), parameters)
    layer = blueprint.base.layers[0]
    rotary = inspect.getmodule(type(layer)).apply_rotary_pos_emb  # type: ignore[union-attr]
    names = {name for name, part in layer.named_modules() if part._get_name().startswith("Liger")}
    names |= {"rotary"} if rotary.__module__.startswith("liger_kernel.") else set()
    return [tensor.detach().cpu() for tensor in (logits, *gradients)], names


def compare(rank: int, model_type: str, device: str) -> set[str]:
    """The body of a rank, since Liger changes its process: both ways agree; the names of what was replaced."""
    if device == "cpu":
        interpret_liger()
    expected, names = results(model_type, device, fused_ops=False)
    assert not names
    actual, names = results(model_type, device, fused_ops=True)
    for ours, theirs in zip(actual, expected, strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())
    return names


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_interpreted_kernels_compute_the_same(model_type: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("the kernels run on the GPU")
    (names,) = run_ranks(1, compare, model_type, "cpu")
    assert {"input_layernorm", "post_attention_layernorm", "mlp", "rotary"} <= names


@pytest.mark.gpu
@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize("model_type", sorted(PARITY_TESTED))
def test_kernels_compute_the_same(model_type: str) -> None:
    run_ranks(1, compare, model_type, "cuda")
