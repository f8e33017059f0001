"""Pipeline x tensor x data parallel training through DeepSpeed's pipeline engine (ZeRO 0 and 1).

The stages of `megacpt.model.stages` become DeepSpeed LayerSpecs; each rank builds, and reads the weights of, only its
own.
A single process is a pipeline of one stage: the same code trains on a laptop and on a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import deepspeed
import torch
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from deepspeed.runtime.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint as recomputed

from megacpt.data.batch import MicroBatch
from megacpt.engine.engine import Acceptable, DomainSums, Judge, StepResult, is_finite
from megacpt.engine.gradients import GradientLooks
from megacpt.engine.head_gradient import HeadGradient
from megacpt.engine.master import TrainingState
from megacpt.engine.optimizer import make_optimizer
from megacpt.engine.settings import EngineSettings, deepspeed_config
from megacpt.engine.teacher import AverageTeacher
from megacpt.model.objective import Objective
from megacpt.model.stages import (
    DecoderStage,
    EmbeddingStage,
    HeadStage,
    NormStage,
    Stage,
    StageFactory,
    tied_head,
    trained_stages,
)
from megacpt.model.taught import TaughtStage, head_weight, taught_head
from megacpt.observe.record import GradientAlignment
from megacpt.parallel.fragments import Held, StateSource
from megacpt.parallel.grid import Grid
from megacpt.parallel.slices import Slice

SUM_NAMES = ("weighted", "nll", "tokens", "divergence")


def layer_specs(
    factory: StageFactory, teacher: StageFactory | None = None, *, recompute: bool = False
) -> list[LayerSpec]:
    """The whole model as DeepSpeed's list of layers: embedding, decoder layers, final norm, head.

    Args:
        factory: builds the model's stages.
        teacher: builds a teacher's, which then run beside them.
        recompute: of a taught layer; DeepSpeed recomputes the others itself.
    """

    def arguments(kind: type[Stage], *args: int) -> tuple[Any, ...]:
        return (kind, factory, *args) if teacher is None else (TaughtStage, kind, factory, teacher, *args)

    decoder = [
        LayerSpec(*arguments(DecoderStage, index), **({} if teacher is None else {"recompute": recompute}))
        for index in range(factory.blueprint.num_layers)
    ]
    norm = LayerSpec(*arguments(NormStage))
    embedding = arguments(EmbeddingStage)
    if not factory.blueprint.tied:
        return [LayerSpec(*embedding), *decoder, norm, LayerSpec(*arguments(HeadStage))]
    weight = "embedding.weight" if teacher is None else "student.embedding.weight"
    head = tied_head if teacher is None else taught_head
    return [
        TiedLayerSpec("embedding", *embedding, tied_weight_attr=weight),
        *decoder,
        norm,
        TiedLayerSpec("embedding", *embedding, forward_fn=head, tied_weight_attr=weight),
    ]


class StagedModule(PipelineModule):
    """DeepSpeed's pipeline module with our cut into stages and per-domain sums.

    The sums ride on the reduction that DeepSpeed makes for the loss anyway, so they cost no collective. Layers are
    recomputed by torch's function: DeepSpeed's hands them other positions, which cost masks and rotary tables of their
    own and a wait for the device in each, and goes on after the last tensor that the backward needs, through the last
    product and its collective.
    """

    def __init__(
        self, specs: list[LayerSpec], grid: Grid, bounds: Sequence[int], objective: Objective, checkpoint: bool
    ):
        self._bounds = list(bounds)
        super().__init__(
            layers=specs,
            topology=PipeModelDataParallelTopology(num_pp=grid.pipeline, num_mp=grid.tensor, num_dp=grid.data),
            loss_fn=objective,
            activation_checkpoint_interval=1 if checkpoint else 0,
            activation_checkpoint_func=partial(recomputed, use_reentrant=False),
            checkpointable_layers=[DecoderStage.__name__],
        )
        self.objective = objective

    def _partition_layers(self, method: str = "") -> None:
        self.parts = self._bounds
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])

    @torch.no_grad()
    def _synchronize_tied_weights(self) -> None:
        """As DeepSpeed's, out of sight of autograd, which would warn of it at every backward."""
        super()._synchronize_tied_weights()

    def get_additional_losses(self) -> dict[str, torch.Tensor]:
        sums = self.objective.domain_sums
        return {
            f"{name}_{domain}": sums[domain, column]
            for domain in range(self.objective.num_domains)
            for column, name in enumerate(SUM_NAMES)
        }

    def stages(self) -> Iterator[Stage]:
        """The stages that this rank holds, a tied one once."""
        return trained_stages(self)

    def head_weight(self) -> torch.nn.Parameter:
        """The weight that the last stage makes logits with; only there."""
        stages = {type(stage): stage for stage in self.stages()}
        return head_weight(stages[HeadStage] if HeadStage in stages else stages[EmbeddingStage])

    def owned_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter, Slice | None]]:
        """This rank's parameters, without the copy of a tied embedding that another stage answers for."""
        return (named for named in self.named_slices() if not getattr(named[1], "ds_pipe_replicated", False))

    def named_slices(self) -> Iterator[tuple[str, torch.nn.Parameter, Slice | None]]:
        """All of this rank's parameters."""
        for stage in self.stages():
            yield from stage.named_slices()


class PipelinedEngine:
    """An `Engine` on DeepSpeed's PipelineEngine.

    Args:
        factory: builds this rank's stages.
        objective: the loss; its group is the factory's.
        grid: the degrees; the world must have just as many processes.
        bounds: which of `layer_specs` each pipeline stage holds (`megacpt.parallel.partition`).
        settings: the numbers.
        teacher: builds the stages of the objective's teacher, if it has one.
    """

    def __init__(
        self,
        factory: StageFactory,
        objective: Objective,
        grid: Grid,
        bounds: Sequence[int],
        settings: EngineSettings,
        teacher: StageFactory | None = None,
    ) -> None:
        self.objective = objective
        self.num_losses = settings.num_micro_batches * grid.data
        self.data_degree = grid.data
        self._shape: torch.Size | None = None
        self.module = StagedModule(
            layer_specs(factory, teacher, recompute=settings.activation_checkpointing),
            grid,
            bounds,
            objective,
            checkpoint=settings.activation_checkpointing,
        )
        named = ((name, parameter) for name, parameter, _ in self.module.named_slices())
        self.judge = Judge(self._measure)
        self.optimizer = make_optimizer(named, settings)
        self.optimizer.is_refused = self.judge.is_refused
        self.engine, *_ = deepspeed.initialize(
            model=self.module,
            optimizer=self.optimizer,
            model_parameters=self.optimizer.param_groups,
            config=deepspeed_config(settings, grid.data),
        )
        self.objective.domain_sums = self.objective.domain_sums.to(self.engine.device)
        self.objective.loss_factor = float(settings.num_micro_batches)
        self.objective.weight_factor = float(grid.data)
        self.head_gradient: HeadGradient | None = None
        if self.engine.is_last_stage():
            self.head_gradient = HeadGradient.of(self.engine.optimizer, self.module.head_weight())
        if self.head_gradient is not None:
            self.objective.grad_head_VD = self.head_gradient.buffer_VD
        if not (self.engine.zero_optimization() or self.engine.bfloat16_enabled()):
            self.engine.clip_fp32_gradients = self._clip_and_remember_norm
        # The loss is asked for before the update, then again by DeepSpeed, after it.
        self._aggregate_total_loss = self.engine._aggregate_total_loss
        self.engine._aggregate_total_loss = self._total_loss
        self._loss: torch.Tensor | None = None
        self.state = TrainingState(
            self.engine,
            self.module.named_slices,
            factory.blueprint.vocab_size,
            tensor_rank=factory.group.rank,
            data_rank=self.engine.mpu.get_data_parallel_rank(),
        )
        self.looks = GradientLooks(self.state, self.optimizer, self._run_step, factory.blueprint.num_layers)
        self.average_teacher: AverageTeacher | None = None
        if objective.distillation is not None and objective.distillation.of_average:
            group = self.engine.mpu.get_data_parallel_group()
            self.average_teacher = AverageTeacher(self.module, self.state.master, group)

    def _clip_and_remember_norm(self) -> None:
        """DeepSpeed's plain fp32 path clips by a norm that it then forgets."""
        norm = clip_grad_norm_(
            parameters=self.module.parameters(), max_norm=self.engine.gradient_clipping(), mpu=self.engine.mpu
        )
        self.engine._global_grad_norm = norm

    def _total_loss(self) -> torch.Tensor:
        """The loss of the global batch, from the reduction that DeepSpeed makes of it, once a step."""
        if self._loss is None:
            self._loss = self._aggregate_total_loss()
        return self._loss

    def _measure(self) -> tuple[float, float]:
        norm = getattr(self.engine.optimizer, "_global_grad_norm", self.engine._global_grad_norm)
        return float(self._total_loss()), float(norm)

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, acceptable: Acceptable = is_finite
    ) -> StepResult:
        self.optimizer.set_rate(learning_rate)
        self.judge.begin_step(acceptable)
        self._run_step(micro_batches)
        loss, norm, is_refused = self.judge.verdict()
        sums = torch.stack(list(self.engine.get_additional_losses().values())).view(-1, len(SUM_NAMES))
        rows = (sums.double() * self.num_losses).tolist()
        if self.average_teacher is not None:
            self.average_teacher.follow()
        return StepResult(
            loss=loss,
            grad_norm=norm,
            skipped=is_refused,
            domain_sums=DomainSums.of(rows, self.objective.distillation),
        )

    def _run_step(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Gradients, and the optimizer's update by them."""
        self._expect_micro_batches(micro_batches)
        self._expect_shape(micro_batches[0].input_ids.shape)
        if self.head_gradient is not None:
            self.head_gradient.begin_step()
        self._loss = None
        self.engine.train_batch(self._as_deepspeed(micro_batches))

    def _as_deepspeed(
        self, micro_batches: Sequence[MicroBatch]
    ) -> Iterator[tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]]:
        """(inputs of the first stage, targets of the last) of each micro-batch.

        All are copied to the device before the first one runs: a copy in between could wait for what runs.
        """
        there = [batch.to(self.engine.device, non_blocking=True) for batch in micro_batches]
        return iter(
            [((batch.input_ids, batch.positions), (batch.labels, batch.weights, batch.domains)) for batch in there]
        )

    def _expect_micro_batches(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Let DeepSpeed expect as many micro-batches as there are in this step."""
        num_losses = len(micro_batches) * self.data_degree
        if num_losses != self.num_losses:
            self.engine.set_train_batch_size(num_losses * self.engine.train_micro_batch_size_per_gpu())
            self.num_losses = num_losses
            self.objective.loss_factor = float(len(micro_batches))

    def _expect_shape(self, shape: torch.Size) -> None:
        """The stages' receive buffers have the shape of the first rows that they saw."""
        if shape != self._shape:
            self.engine.reset_activation_shape()
            self._shape = shape

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> float:
        self._expect_shape(micro_batches[0].input_ids.shape)
        with self.objective.evaluation():
            mean = self.engine.eval_batch(self._as_deepspeed(micro_batches), num_micro_batches=len(micro_batches))
        return float(mean) * len(micro_batches) * self.data_degree

    def alignment(
        self, new: Sequence[MicroBatch], old: Mapping[str, Sequence[MicroBatch]]
    ) -> dict[str, GradientAlignment]:
        with self.objective.cross_entropy():
            return self.looks.alignment(new, old)

    def counters(self) -> dict[str, int]:
        return self.state.counters()

    def held(self) -> Iterator[Held]:
        return self.state.held()

    def load(self, source: StateSource) -> None:
        self.state.fill(source)
        if self.average_teacher is not None:
            self.average_teacher.follow()

    def forget_moments(self) -> None:
        self.optimizer.forget_moments()

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter, Slice | None]]:
        return self.module.owned_parameters()
