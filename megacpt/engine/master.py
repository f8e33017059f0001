"""The fp32 master weights and the optimizer's state, wherever DeepSpeed keeps them, by parameter.

Each of DeepSpeed's optimizers lays the parameters of a group end to end and lets torch's optimizer work on this rank's
run of them. `place` says where in such a run a parameter's elements lie; `publish` makes the weights that the forward
uses out of the masters. Whatever reads or changes masters goes through here: checkpoints, averages, interpolations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

from megacpt.optim.adamw import AVERAGE, NOTHING, SLOW
from megacpt.parallel.fragments import MASTER, Fragment, Held, StateSource, whole_shape
from megacpt.parallel.slices import Slice

STEP = "step"
"""Torch's name of the count of updates that AdamW corrects its moments' bias by."""

COUNTERS = ("global_steps", "global_samples", "skipped_steps")
"""DeepSpeed's own counts."""

MOST_RANKS = 1 << 16
"""More ranks than an axis has."""


@dataclass(frozen=True)
class Place:
    """Where this rank holds elements of a parameter.

    Attributes:
        owner: the tensor that torch's optimizer works on; the weights themselves where they are frozen.
        offset: of the first element in the flattened owner.
        start: of the first element in the flattened parameter.
        numel: how many there are.
        is_sharded: data-parallel ranks hold other elements, not the same.
    """

    owner: torch.Tensor
    offset: int
    start: int
    numel: int
    is_sharded: bool


class MasterState(ABC):
    """The masters and moments of one DeepSpeed optimizer.

    Args:
        optimizer: the engine's.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.torch_optimizer: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)

    @abstractmethod
    def place(self, parameter: torch.nn.Parameter) -> Place | None:
        """Where this rank's elements of a parameter are; None: it holds none."""

    @abstractmethod
    def owners(self) -> list[torch.Tensor]:
        """Everything that torch's optimizer works on."""

    @abstractmethod
    def publish(self) -> None:
        """Make the weights from the masters. Collective."""

    @contextmanager
    def weights_change(self) -> Iterator[None]:
        """Around a change of weights that are split over the data axis. Collective."""
        yield

    def num_updates(self) -> int:
        """How often the optimizer has updated, skipped steps not counted."""
        return max((int(state[STEP]) for state in self.torch_optimizer.state.values() if STEP in state), default=0)

    def values(self, place: Place) -> dict[str, torch.Tensor]:
        """Kind -> the place's elements: "master", and the optimizer's state once there is one."""
        state = self.torch_optimizer.state.get(place.owner, {})
        tensors = {MASTER: place.owner} | {kind: value for kind, value in state.items() if kind != STEP}
        return {kind: tensor.detach().view(-1).narrow(0, place.offset, place.numel) for kind, tensor in tensors.items()}

    def begin(self, num_updates: int, kinds: Collection[str]) -> None:
        """Have the state of an optimizer that has updated `num_updates` times, its values still to be filled in.

        Args:
            num_updates: of the optimizer.
            kinds: what the state consists of; without any, torch's optimizer makes it at its first update.
        """
        for owner in self.owners():
            state = self.torch_optimizer.state[owner]
            for kind in set(state) - {*kinds, STEP} if kinds else list(state):
                del state[kind]
            if not kinds:
                continue
            for kind in set(kinds) - set(state):
                state[kind] = torch.zeros_like(owner)
            if STEP not in state:
                # The fused form counts on the device, the others on the CPU.
                fused = self.torch_optimizer.defaults.get("fused")
                state[STEP] = torch.zeros((), dtype=torch.float32, device=owner.device if fused else "cpu")
            state[STEP].fill_(num_updates)


class Unsharded(MasterState):
    """fp32 without ZeRO: the weights are their own masters."""

    def place(self, parameter: torch.nn.Parameter) -> Place | None:
        return Place(parameter, 0, 0, parameter.numel(), is_sharded=False)

    def owners(self) -> list[torch.Tensor]:
        return [parameter for group in self.torch_optimizer.param_groups for parameter in group["params"]]

    def publish(self) -> None:
        """There is nothing to make."""


class Partitioned(MasterState):
    """ZeRO 1 and 2, and bf16 with fp32 accumulation: a flat master per parameter group, split over the data axis."""

    def place(self, parameter: torch.nn.Parameter) -> Place | None:
        if not parameter.requires_grad:
            return Place(parameter, 0, 0, parameter.numel(), is_sharded=False)
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        return Place(self.owners()[mapping.param_group_index], here.start, there.start, here.numel, is_sharded=True)

    def owners(self) -> list[torch.Tensor]:
        return [group["params"][0] for group in self.torch_optimizer.param_groups]

    def publish(self) -> None:
        self.optimizer.update_lp_params()


class FullySharded(MasterState):
    """ZeRO 3: every parameter is split over the data axis, its last part padded."""

    def place(self, parameter: torch.nn.Parameter) -> Place | None:
        owner, offset = parameter.ds_tensor, 0  # type: ignore[attr-defined]
        if parameter.requires_grad:
            group, offset, _ = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
            owner = self.owners()[group]
        length = parameter.partition_numel()  # type: ignore[attr-defined]
        start = length * self.optimizer._get_param_partition_rank(parameter)
        numel = min(length, parameter.ds_numel - start)  # type: ignore[attr-defined]
        return Place(owner, offset, start, numel, is_sharded=True) if numel > 0 else None

    def owners(self) -> list[torch.Tensor]:
        return list(self.optimizer.fp32_partitioned_groups_flat)

    def publish(self) -> None:
        with self.weights_change():
            for group in range(len(self.optimizer.fp16_groups)):
                self.optimizer._reassign_or_swap_out_partitioned_parameters(group)

    @contextmanager
    def weights_change(self) -> Iterator[None]:
        # Small parameters are kept whole on every rank: let go before, gathered again after.
        self.optimizer.checkpoint_event_prologue()
        yield
        self.optimizer.checkpoint_event_epilogue()


def master_state(optimizer: Any) -> MasterState:
    """The masters and moments behind an engine's optimizer."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return FullySharded(optimizer)
    if isinstance(optimizer, torch.optim.Optimizer):
        return Unsharded(optimizer)
    return Partitioned(optimizer)


class TrainingState:
    """Everything that training changes on this rank: what a checkpoint holds of an engine.

    Args:
        engine: DeepSpeed's.
        parameters: lists Hugging Face name, parameter and slice of all that this rank holds, tied copies too.
        vocab_size: without padding.
        tensor_rank, data_rank: this rank's place on these axes.
    """

    def __init__(
        self,
        engine: Any,
        parameters: Callable[[], Iterator[tuple[str, torch.nn.Parameter, Slice | None]]],
        vocab_size: int,
        *,
        tensor_rank: int,
        data_rank: int,
    ) -> None:
        self.engine = engine
        self.master = master_state(engine.optimizer)
        self.parameters = parameters
        self.vocab_size = vocab_size
        self.tensor_rank, self.data_rank = tensor_rank, data_rank

    def counters(self) -> dict[str, int]:
        """What counts steps, equal on all ranks."""
        counts = {name: getattr(self.engine, name) for name in COUNTERS}
        return counts | {"optimizer_updates": self.master.num_updates()}

    def held(self) -> Iterator[Held]:
        """What this rank holds, as views."""
        for name, parameter, piece in self.parameters():
            place = self.master.place(parameter)
            if place is None:
                continue
            shape = whole_shape(getattr(parameter, "ds_shape", parameter.shape), piece, self.vocab_size)
            yield Held(
                Fragment(name, shape, piece, place.start, place.start + place.numel),
                self.master.values(place),
                copy=self.replica(parameter, piece, place),
            )

    def replica(self, parameter: torch.nn.Parameter, piece: Slice | None, place: Place) -> int:
        """Which of the equal copies of these elements this rank has: 0 on just one rank."""
        is_second_tied = bool(getattr(parameter, "ds_pipe_replicated", False))
        tensor_replica = self.tensor_rank if piece is None else 0
        data_replica = 0 if place.is_sharded else self.data_rank
        return is_second_tied + 2 * (tensor_replica + MOST_RANKS * data_replica)

    def fill(self, source: StateSource) -> None:
        """Take over the state that `source` has, wherever it was written. Collective.

        An average, or the weights of the last interpolation, that the optimizer no longer keeps up is left behind: it
        would be taken for one of later.
        """
        left = {SLOW, AVERAGE} - {*getattr(self.master.torch_optimizer, "additions", NOTHING).kinds}
        kinds = [kind for kind in source.kinds if kind != MASTER and kind not in left]
        self.master.begin(source.counters["optimizer_updates"], kinds)
        for name in COUNTERS:
            setattr(self.engine, name, source.counters[name])
        for held in self.held():
            for kind, values in held.values.items():
                source.fill(held.fragment, kind, values)
        self.master.publish()
