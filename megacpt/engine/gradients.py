"""Looks at gradients that are not applied: whether learning the new text also serves the old, or works against it.

A look is a training step whose update never happens. DeepSpeed sums, reduces and splits the gradients as always and
hands each rank's part to torch's optimizer, where it is taken instead of applied. So a look is right in every
layout in which training is, and leaves no trace: weights and moments are not touched, DeepSpeed's counters are set
back. The price is a training step on the looked-at text, and while it lasts 4 bytes per parameter that the rank's
optimizer owns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist

from megacpt.continual.drift import layer_of
from megacpt.data.batch import MicroBatch
from megacpt.engine.master import COUNTERS, TrainingState
from megacpt.observe.record import GradientAlignment
from megacpt.optim.adamw import ContinualAdamW

Take = Callable[[torch.Tensor, torch.Tensor], None]
"""Told each (tensor that torch's optimizer works on, its gradient), up to a factor that all ranks share."""

Part = tuple[int, slice]
"""A parameter's layer, and where its elements are in the flattened tensor that torch's optimizer works on."""

CHUNK = 1 << 22
"""Elements that are multiplied at a time: their doubles are 32 MiB."""


class GradientLooks:
    """Compares gradients of an engine.

    Args:
        state: of the engine.
        optimizer: torch's, which the engine hands gradients to.
        run_step: does a step of the engine on micro-batches.
        num_layers: decoder layers of the whole model.
    """

    def __init__(
        self,
        state: TrainingState,
        optimizer: ContinualAdamW,
        run_step: Callable[[Sequence[MicroBatch]], None],
        num_layers: int,
    ) -> None:
        self.state, self.optimizer, self.run_step, self.num_layers = state, optimizer, run_step, num_layers

    def alignment(
        self, new: Sequence[MicroBatch], old: Mapping[str, Sequence[MicroBatch]]
    ) -> dict[str, GradientAlignment]:
        """The cosine of the gradient of `new` and that of each of `old`. Collective."""
        parts = self._parts()
        kept: dict[int, torch.Tensor] = {}
        self._look(new, lambda owner, gradient: kept.update({id(owner): gradient.clone()}))
        return {name: self._cosines(parts, kept, micro_batches) for name, micro_batches in old.items()}

    def _cosines(
        self, parts: Mapping[int, list[Part]], kept: Mapping[int, torch.Tensor], micro_batches: Sequence[MicroBatch]
    ) -> GradientAlignment:
        """The cosines with the gradient `kept`. Row num_layers of the products is of what is in no layer."""
        products = torch.zeros(self.num_layers + 1, 3, dtype=torch.float64, device=self.state.engine.device)

        def add(owner: torch.Tensor, gradient: torch.Tensor) -> None:
            for row, where in parts.get(id(owner), []):
                both = (tensor.view(-1)[where].split(CHUNK) for tensor in (kept[id(owner)], gradient))
                for pair in zip(*both, strict=True):
                    one, other = (values.double() for values in pair)
                    products[row] += torch.stack([one @ other, one @ one, other @ other])

        self._look(micro_batches, add if kept else lambda owner, gradient: None)
        dist.all_reduce(products)
        cosines = [
            float(product / (square * other_square).sqrt())
            for product, square, other_square in (products.sum(0), *products[: self.num_layers])
        ]
        return GradientAlignment(cosines[0], tuple(cosines[1:]))

    def _parts(self) -> dict[int, list[Part]]:
        """What is counted on this rank, by the identity of the optimizer's tensor: each element of the model on one of
        all ranks."""
        parts: dict[int, list[Part]] = {}
        for name, parameter, piece in self.state.parameters():
            place = self.state.master.place(parameter)
            if place is None or not parameter.requires_grad or self.state.replica(parameter, piece, place):
                continue
            layer = layer_of(name)
            where = slice(place.offset, place.offset + place.numel)
            parts.setdefault(id(place.owner), []).append((self.num_layers if layer is None else layer, where))
        return parts

    def _look(self, micro_batches: Sequence[MicroBatch], take: Take) -> None:
        """A step on these micro-batches, of which only the gradients remain."""
        counters = {name: getattr(self.state.engine, name) for name in COUNTERS}
        judge = self.optimizer.is_refused

        def instead_of_update() -> bool:
            # DeepSpeed calls with one group at a time, whose gradients are there for this call alone.
            for group in self.optimizer.param_groups:
                for owner in group["params"]:
                    if owner.grad is not None:
                        take(owner, owner.grad)
            return True

        self.optimizer.is_refused = instead_of_update
        try:
            self.run_step(micro_batches)
        finally:
            self.optimizer.is_refused = judge
        for name, value in counters.items():
            setattr(self.state.engine, name, value)
