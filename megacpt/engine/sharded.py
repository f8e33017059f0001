"""Training without a pipeline under ZeRO-2 and ZeRO-3: gradients, and then weights, are sharded over the data axis too.

DeepSpeed's pipeline engine refuses these ZeRO stages, so the same stages run here one after the other in an ordinary
engine. Under ZeRO-3 each stage is sharded as soon as it is built, so that no rank ever holds more than one whole layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.pipe.topology import PipelineParallelGrid, PipeModelDataParallelTopology
from torch import nn
from torch.utils.checkpoint import checkpoint

from megacpt.data.batch import MicroBatch
from megacpt.engine.engine import Acceptable, DomainSums, Judge, StepResult, is_finite
from megacpt.engine.gradients import GradientLooks
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
    trained_stages,
)
from megacpt.model.taught import TaughtStage, head_weight
from megacpt.observe.record import GradientAlignment
from megacpt.parallel.fragments import Held, StateSource
from megacpt.parallel.grid import Grid
from megacpt.parallel.slices import Slice

WEIGHTS_SHARDED = 3


class LossStage(nn.Module):
    """The head's weight, the teacher's if there is one, and the objective in one module, so that ZeRO-3 gathers the
    weights where they are used."""

    def __init__(self, objective: Objective, weight: nn.Parameter, teacher_weight: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight, self.teacher_weight = weight, teacher_weight
        self.objective = objective

    def forward(self, hidden: torch.Tensor | tuple[torch.Tensor, ...], *targets: torch.Tensor) -> torch.Tensor:
        labels, weights, domains = targets
        if isinstance(hidden, torch.Tensor):
            return self.objective((hidden, self.weight), (labels, weights, domains))
        student, taught = hidden
        teacher = (taught, self.teacher_weight) if self.training and self.teacher_weight is not None else ()
        return self.objective((student, self.weight, *teacher), (labels, weights, domains))


class StagesInLine(nn.Module):
    """All stages of the model, run one after the other: a micro-batch's tensors -> its scaled loss."""

    def __init__(
        self,
        factory: StageFactory,
        objective: Objective,
        settings: EngineSettings,
        config: dict,
        teacher: StageFactory | None,
    ) -> None:
        super().__init__()
        # A taught layer recomputes its student alone.
        self.checkpointing = settings.activation_checkpointing and teacher is None

        def build(kind: type[Stage], *args: int, **options: bool) -> nn.Module:
            stage = kind(factory, *args) if teacher is None else TaughtStage(kind, factory, teacher, *args, **options)
            if settings.zero_stage == WEIGHTS_SHARDED:
                deepspeed.zero.Init(module=stage, config_dict_or_path=config, mpu=None)
            return stage

        recompute = {} if teacher is None else {"recompute": settings.activation_checkpointing}
        self.embedding = build(EmbeddingStage)
        self.decoder = nn.ModuleList(
            build(DecoderStage, index, **recompute) for index in range(factory.blueprint.num_layers)
        )
        self.norm = build(NormStage)
        if not factory.blueprint.tied:
            self.head = build(HeadStage)
        head = self.embedding if factory.blueprint.tied else self.head
        weights = head.head_weights() if isinstance(head, TaughtStage) else (head_weight(head),)
        self.loss = LossStage(objective, *weights)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
        domains: torch.Tensor,
    ) -> torch.Tensor:
        activation: tuple[torch.Tensor, ...] = self.embedding((input_ids, positions))
        for stage in self.decoder:
            if self.checkpointing and self.training:
                activation = checkpoint(stage, activation, use_reentrant=False)
            else:
                activation = stage(activation)
        return self.loss(self.norm(activation), labels, weights, domains)


class ShardedEngine:
    """An `Engine` on DeepSpeed's ordinary engine, for a grid of one pipeline stage. Arguments as `PipelinedEngine`."""

    def __init__(
        self,
        factory: StageFactory,
        objective: Objective,
        grid: Grid,
        settings: EngineSettings,
        teacher: StageFactory | None = None,
    ) -> None:
        self.objective = objective
        self.grid = grid
        self.objective.loss_factor = float(settings.num_micro_batches)
        self.objective.weight_factor = float(grid.data)
        self.num_losses = settings.num_micro_batches * grid.data
        config = deepspeed_config(settings, grid.data)
        self.module = StagesInLine(factory, objective, settings, config, teacher)
        self.optimizer = make_optimizer(((name, parameter) for name, parameter, _ in self.parameters()), settings)
        topology = PipeModelDataParallelTopology(num_pp=1, num_mp=grid.tensor, num_dp=grid.data)
        self.mpu = PipelineParallelGrid(topology=topology)
        self.judge = Judge(self._measure)
        self.optimizer.is_refused = self.judge.is_refused
        self.engine, *_ = deepspeed.initialize(
            model=self.module,
            optimizer=self.optimizer,
            model_parameters=self.optimizer.param_groups,
            config=config,
            mpu=self.mpu,
        )
        self._losses: list[torch.Tensor] = []
        self._domain_sums: list[torch.Tensor] = []
        self._sums: list[float] = []
        self.state = TrainingState(
            self.engine,
            self.parameters,
            factory.blueprint.vocab_size,
            tensor_rank=factory.group.rank,
            data_rank=self.mpu.get_data_parallel_rank(),
        )
        self.looks = GradientLooks(self.state, self.optimizer, self._run_step, factory.blueprint.num_layers)
        self.average_teacher: AverageTeacher | None = None
        if objective.distillation is not None and objective.distillation.of_average:
            data_group = self.mpu.get_data_parallel_group()
            self.average_teacher = AverageTeacher(self.module, self.state.master, data_group)

    def _measure(self) -> tuple[float, float]:
        losses = torch.stack(self._losses).sum()[None] / self.num_losses
        totals = torch.cat([losses, torch.stack(self._domain_sums).sum(0).flatten()])
        dist.all_reduce(totals, group=self.mpu.get_data_parallel_group())
        loss, *self._sums = totals.double().tolist()
        return loss, float(self.engine.optimizer._global_grad_norm)

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, acceptable: Acceptable = is_finite
    ) -> StepResult:
        self.optimizer.set_rate(learning_rate)
        self.judge.begin_step(acceptable)
        self._run_step(micro_batches)
        loss_value, norm, is_refused = self.judge.verdict()
        rows = torch.tensor(self._sums, dtype=torch.float64).view(self.objective.num_domains, -1).tolist()
        if self.average_teacher is not None:
            self.average_teacher.follow()
        return StepResult(
            loss=loss_value,
            grad_norm=norm,
            skipped=is_refused,
            domain_sums=DomainSums.of(rows, self.objective.distillation),
        )

    def _run_step(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Gradients, and the optimizer's update by them."""
        self.engine.train()
        if len(micro_batches) * self.grid.data != self.num_losses:
            self.num_losses = len(micro_batches) * self.grid.data
            self.objective.loss_factor = float(len(micro_batches))
            self.engine.set_train_batch_size(self.num_losses * self.engine.train_micro_batch_size_per_gpu())
        self.engine.micro_steps = 0  # a step ends at a multiple of the micro-batches: of this step's, not of all before
        self._losses, self._domain_sums = [], []
        for tensors in self._on_device(micro_batches):
            loss = self.engine(*tensors)
            self._losses.append(loss.detach())
            self._domain_sums.append(self.objective.domain_sums)
            self.engine.backward(loss)
            self.engine.step()

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> float:
        self.engine.eval()
        with self.objective.evaluation():
            total = torch.stack([self.engine(*tensors) for tensors in self._on_device(micro_batches)]).sum()
        dist.all_reduce(total, group=self.mpu.get_data_parallel_group())
        return float(total)

    def _on_device(self, micro_batches: Sequence[MicroBatch]) -> list[tuple[torch.Tensor, ...]]:
        """What the module takes of each, copied before the first one runs: a copy in between could wait for it."""
        there = [batch.to(self.engine.device, non_blocking=True) for batch in micro_batches]
        return [(batch.input_ids, batch.positions, batch.labels, batch.weights, batch.domains) for batch in there]

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

    def parameters(self) -> Iterator[tuple[str, nn.Parameter, Slice | None]]:
        for stage in self._stages():
            yield from stage.named_slices()

    def _stages(self) -> Iterator[Stage]:
        return trained_stages(self.module)
