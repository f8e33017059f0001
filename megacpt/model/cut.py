"""Cutting one decoder layer for tensor parallelism, by transformers' own plan.

`base_model_tp_plan` names, for every linear layer, how it is split. Each entry becomes a parallel layer of
`megacpt.parallel`; collectives stand at the edge of `self_attn` and `mlp`, once for all the linears inside. Anything in
the plan, or in the model, that is not understood is refused by name: a silent replica trains a wrong model.

    style                          becomes
    colwise                        ColumnParallelLinear
    rowwise                        RowParallelLinear
    colwise_gather_output          ColumnParallelLinear whose output is gathered
    rowwise_split_input            RowParallelLinear that takes its part of a whole input
    replicated_with_grad_allreduce a copy on every rank; each sees only its heads, so gradients are summed
"""

from __future__ import annotations

from torch import nn

from megacpt.errors import ModelError
from megacpt.parallel.collectives import copy_to_group, gather_sequence
from megacpt.parallel.group import TensorGroup
from megacpt.parallel.layers import ColumnParallelLinear, RowParallelLinear

LAYER_PATTERN = "layers.*."
SUMMED_REPLICA = "replicated_with_grad_allreduce"
GATHERED = frozenset({"colwise_gather_output", "rowwise_split_input"})
STYLES = frozenset({"colwise", "rowwise", SUMMED_REPLICA}) | GATHERED


def cut_layer(
    layer: nn.Module, plan: dict[str, str], group: TensorGroup, *, sequence_parallel: bool, model_type: str
) -> None:
    """Replace, in place, the parts of a decoder layer that `plan` names by this rank's share of them.

    After it, each submodule's `parameter_slices` says what part of which parameter is held, and `partial_gradients`
    which replicated parameters need their gradients summed over the group.

    Args:
        layer: a decoder layer on the meta device.
        plan: pattern -> style, for the whole decoder.
        group: the tensor-parallel group; nothing is done for a group of one.
        sequence_parallel: activations outside attention and MLP are split along the sequence.
        model_type: for messages.

    Raises:
        ModelError: an entry or a module that is not understood, or a width that the group does not divide.
    """
    if group.size == 1:
        return
    styles = layer_styles(plan, model_type)
    for name, style in styles.items():
        try:
            module = layer.get_submodule(name)
        except AttributeError:
            continue  # a plan covers all variants of a family; this one has no such module
        if style == SUMMED_REPLICA:
            _sum_gradients(module)
            continue
        if not isinstance(module, nn.Linear):
            raise ModelError(f"the tensor-parallel plan of '{model_type}' splits '{name}', which is no linear layer")
        _check_width(module, name, style, group, model_type)
        parent, _, leaf = name.rpartition(".")
        setattr(layer.get_submodule(parent), leaf, _parallel_linear(module, style, group, sequence_parallel))
    edges = {name.partition(".")[0] for name in styles}
    for edge_name, child in layer.named_children():
        if edge_name in edges:
            _refuse_silent_replicas(child, edge_name, styles, model_type)
            _enter(child, group, sequence_parallel)
        elif sequence_parallel:
            _sum_gradients(child)


def layer_styles(plan: dict[str, str], model_type: str) -> dict[str, str]:
    """The plan of one decoder layer: module name inside the layer -> style.

    Raises:
        ModelError: there is no plan for the layers, or it has a style that is not understood.
    """
    styles = {key.removeprefix(LAYER_PATTERN): style for key, style in plan.items() if key.startswith(LAYER_PATTERN)}
    if not styles:
        raise ModelError(
            f"model type '{model_type}' has no tensor-parallel plan in transformers", hint="Set parallel.tensor to 1."
        )
    for name, style in styles.items():
        if style not in STYLES:
            raise ModelError(
                f"the tensor-parallel plan of '{model_type}' has a style that is not understood, at '{name}'",
                found=style,
                expected=", ".join(sorted(STYLES)),
                hint="Set parallel.tensor to 1.",
            )
    return styles


def _parallel_linear(linear: nn.Linear, style: str, group: TensorGroup, sequence_parallel: bool) -> nn.Module:
    if style.startswith("colwise"):
        return ColumnParallelLinear(linear, group, gather_output=style in GATHERED)
    row = RowParallelLinear(linear, group, split_input=style in GATHERED, sequence_parallel=sequence_parallel)
    if sequence_parallel and row.bias is not None:
        mark_partial(row, {"bias"})
    return row


def _check_width(linear: nn.Linear, name: str, style: str, group: TensorGroup, model_type: str) -> None:
    width = linear.out_features if style.startswith("colwise") else linear.in_features
    if width % group.size:
        raise ModelError(
            f"'{name}' of '{model_type}' cannot be split over {group.size} tensor-parallel ranks",
            found=f"width {width}",
            hint="Choose a parallel.tensor that divides it.",
        )


def _sum_gradients(module: nn.Module) -> None:
    """Mark every parameter of `module`: each rank's gradient is a part of the sum."""
    for part in module.modules():
        names = {name for name, _ in part.named_parameters(recurse=False)}
        if names:
            mark_partial(part, names)


def mark_partial(module: nn.Module, names: set[str]) -> None:
    """Say of a module's own parameters that each rank's gradient is only a part of the sum."""
    object.__setattr__(module, "partial_gradients", names)


def _refuse_silent_replicas(edge: nn.Module, edge_name: str, styles: dict[str, str], model_type: str) -> None:
    """A parameter without an entry is right only where the activations are whole on every rank."""
    inside = [style for name, style in styles.items() if name.startswith(f"{edge_name}.")]
    if all(style in GATHERED for style in inside):
        return
    for name, module in edge.named_modules():
        covered = f"{edge_name}.{name}" in styles or isinstance(module, (ColumnParallelLinear, RowParallelLinear))
        if not covered and next(module.parameters(recurse=False), None) is not None:
            raise ModelError(
                f"'{edge_name}.{name}' of '{model_type}' has parameters but no entry in its tensor-parallel plan",
                hint="A copy on every rank would be trained wrongly, so set parallel.tensor to 1.",
            )


def _enter(edge: nn.Module, group: TensorGroup, sequence_parallel: bool) -> None:
    """Put the collective of the region's entry in front of the module, on its hidden states."""
    enter = gather_sequence if sequence_parallel else copy_to_group

    def hook(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (enter(args[0], group), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": enter(kwargs["hidden_states"], group)}

    edge.register_forward_pre_hook(hook, with_kwargs=True)
