"""The recipe's sections and keys: what each means, its unit, and where its default comes from.

Every section is frozen and knows exactly its keys; an unknown key or a wrong type is an error, never a guess. Numbers
with units ("20B" tokens, "1%" of the run) are read by `megacpt.units`. What a single key can get wrong is checked
here, what keys can get wrong together in `rules`.

A recipe holds no secrets: tokens and API keys come from the environment (HF_TOKEN, WANDB_API_KEY), so that the resolved
recipe can be written into every run folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, PlainSerializer, PrivateAttr

from megacpt.units import Duration, format_tokens, parse_sequence_length, parse_share, parse_tokens


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_written(tokens: int) -> str | int:
    text = format_tokens(tokens)
    return tokens if text.isdigit() else text


Count = Annotated[int, Field(ge=1)]
Tokens = Annotated[int, BeforeValidator(parse_tokens), Field(ge=1), PlainSerializer(_as_written, when_used="json")]
SequenceLength = Annotated[int, BeforeValidator(parse_sequence_length), Field(ge=1)]
Stretch = Annotated[InstanceOf[Duration], BeforeValidator(Duration.parse), PlainSerializer(str, when_used="json")]
Paths = Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(strict=False)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, BeforeValidator(parse_share), Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
DomainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class Section(BaseModel):
    """What all sections share."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        ser_json_inf_nan="constants",
        use_attribute_docstrings=True,
    )


class ModelSection(Section):
    """The model that training starts from."""

    path: str | None = None
    """A Hugging Face folder (config.json and safetensors), or an id on the hub. None with `init: random`."""

    revision: str | None = None
    """The hub's branch, tag or commit; None is the default branch. A commit makes a run reproducible."""

    tokenizer: str | None = None
    """A folder or hub id, for the export and for checking the shards' fingerprint; None is the one at `path`."""

    init: Literal["pretrained", "random"] = "pretrained"
    """Start from the weights at `path`, or from random weights shaped by `config` (for tests and baselines)."""

    config: dict[str, Any] = {}
    """Values of the Hugging Face config. With `init: random` the whole config, `model_type` included. With pretrained
    weights they are promises: config.json must say the same (a wrong rope_theta trains without an error and spoils the
    model), and they let `--dry-run` plan before the model is downloaded."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """The dtype of weights and activations. Master weights, gradients and optimizer state are in fp32 either way."""

    attention: Literal["auto", "eager", "sdpa", "varlen", "flash_attention_2"] = "auto"
    """The attention implementation; auto takes the fastest installed one that keeps documents apart."""

    fused_ops: Literal["auto"] | bool = "auto"
    """RMSNorm, rotary embedding and gated MLP by Liger's kernels (arXiv:2410.10989): on, off, or auto, which uses them
    on a GPU for the tested architectures where liger-kernel is installed."""

    vocab_multiple: Count = 128
    """The embedding and head are padded to a multiple of this (and of `parallel.tensor`), which matrix units like. The
    padding is masked in the loss and cut off on export. 128 as in Megatron-LM."""

    trust_remote_code: bool = False
    """Let the model's folder run its own Python. Off: a recipe should not execute what a download contains."""


class DomainSection(Section):
    """One domain of the data: text that is weighted, counted and evaluated together."""

    role: Literal["new", "replay", "anchor"]
    """new: what the model shall learn. replay: what it shall keep, trained on again. anchor: what it shall keep, only
    measured."""

    shards: Paths = ()
    """Training tokens: folders with a manifest.json, Megatron IndexedDataset prefixes, datatrove's `.ds` files, or raw
    token files as OLMo's (`part-*.npy?dtype=uint32&eos_id=100257`); relative to the current directory."""

    held_out: Paths = ()
    """Evaluation tokens, in the same forms; without any, the domain is trained on but not evaluated."""

    held_out_share: Share = 0.0
    """Hold out so large a share of the documents of `shards` instead of naming `held_out`: 1%. They are chosen by a
    hash (`held_out_by`), evaluated whatever `where` and the other conditions say, and not trained on. No shard is
    written anew."""

    held_out_by: str = "text_hash"
    """The column whose hash chooses them. `text_hash`, kept by `megacpt shards build --keep-columns text_hash`, gives
    the split that `--held-out` gives; an id, or another column of text or whole numbers, is hashed here. Documents
    with equal values fall on the same side; one without a value is trained on."""

    where: str | None = None
    """Train only on documents that satisfy this: `year >= 2015 and source in ('web', 'books')`. Names are those of
    columns kept by `megacpt shards build --keep-columns`, and `num_tokens` and `text_bytes` of a document."""

    rank_by: str | None = None
    """The column that `top_tokens` and `quantiles` go by, such as a quality score. Documents without it are out."""

    top_tokens: Tokens | None = None
    """Train only on the documents with the highest values of `rank_by`, as many as it takes to have so many tokens."""

    quantiles: Annotated[tuple[Share, Share], Field(strict=False)] | None = None
    """Train only on the documents between these shares of the domain's tokens, by rising `rank_by`: [0.5, 1] is the
    better half. Quantiles that share an edge share no document."""

    weight: Annotated[float, Field(ge=0)] | None = None
    """The domain's share of the training tokens, relative to the other domains' weights; with `replay.rate`, to those
    of the same role. None for an anchor, and for replay with `replay.match`."""

    target_weight: Rate | None = None
    """The domain's share of the objective, relative to the other domains' target weights; None for all: as sampled. The
    loss of its tokens is weighted by target share over sampled share, within `loss.weight_limits`. Mix with `weight`
    first: at equal targets, sampling has the lower gradient variance."""

    parts_by: str | None = None
    """The column whose values tell parts of the domain apart, document by document. Each has a loss and tokens of its
    own (`web/arxiv`), beside the domain's. Text, whole numbers, truth values or dates, at most 64 different ones;
    documents without a value are the part `none`. The mixture does not see parts. [data](data.md#parts-of-a-domain)"""

    part_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """What the loss of a part's tokens counts, against 1 of the parts that are not named: {forum: 0.5, "2015": 2}.
    The domain's share of the objective changes with them, so they do not go together with target weights."""

    max_epochs: Annotated[float, Field(gt=0)] = 4.0
    """How often the run should read this domain at most. Up to 4 epochs, repeated tokens are worth about as much as
    fresh ones; beyond 16 they are worth next to nothing (Muennighoff et al. 2023, arXiv:2305.16264). So a run that
    reads more warns, and one that reads more than 16 times is refused unless this says that it may."""

    when_exhausted: Literal["repeat", "renormalise", "stop"] = "repeat"
    """What follows when the domain has been read `max_epochs` times. repeat: it is read on. renormalise: it leaves the
    mixture, and the others share its tokens. stop: the run ends there; its schedules go on as if it did not. Under a
    mixture controller, which heeds `max_epochs` itself, only repeat."""

    redraw: Literal["per_epoch", "fixed"] = "per_epoch"
    """per_epoch: each epoch has an order of its own. fixed: all have that of the first."""

    order: Literal["shuffled", "as_stored", "ascending", "descending"] = "shuffled"
    """How the text comes in each epoch. shuffled: in any order. as_stored: as the shards have it. ascending and
    descending: by the column `order_by`; of equal values in any order. All but the first are shuffled within windows
    only, and assume that the run reads about one epoch."""

    order_by: str | None = None
    """The column of `order`: numbers (a quality score, a year) or text (a date as 2024-05-31). `num_tokens` of a
    document is always there. Documents without a value are left out, and counted."""

    order_window: Tokens | None = None
    """The text that is shuffled together within an `order`, in whole rows; None is a hundredth of the domain. Windows
    much smaller than a global batch change nothing."""

    @property
    def is_evaluated(self) -> bool:
        """Whether there is held-out text of the domain."""
        return bool(self.held_out or self.held_out_share)


class StageSection(Section):
    """A change of the token stream on the way. What it does not state stays as it was."""

    at: Stretch
    """From the first step on that begins after so many tokens ("15B") or such a part of the run ("80%")."""

    weights: Annotated[dict[DomainName, Annotated[float, Field(ge=0)]], Field(min_length=1)] | None = None
    """The weights of all domains from there on; a domain that is not named is not read."""

    sequence_length: SequenceLength | None = None
    """Predicted tokens per row from there on. Each domain begins an epoch, in rows of that length."""

    global_rows: Count | None = None
    """Rows per step from there on. Set at most one of this and `global_tokens`."""

    global_tokens: Tokens | None = None
    """Tokens per step from there on."""

    lr: RateSection | None = None
    """A learning rate of its own, with the keys of the section `lr`: from there to the next stage that has one, or the
    end. Its percentages are of that stretch, and it warms up from 0 again unless `warmup` is 0. None: the schedule that
    is in force goes on."""


class DataSection(Section):
    """The token stream."""

    sequence_length: SequenceLength
    """Predicted tokens per row: a plain integer, or "8Ki". A row reads one token more."""

    document_mask: bool = True
    """Attention, positions and labels stop at document borders, as in Llama 3's pre-training (arXiv:2407.21783, section
    3.2). Off: documents packed into one row see each other, as in GPT-3's (arXiv:2005.14165)."""

    packing: Literal["concat", "best_fit"] = "concat"
    """How documents make rows. concat: end to end, cut wherever a row ends. best_fit: whole where they fit, by packing
    16 rows' text at a time (arXiv:2404.10830); cuts a fifth as many documents or fewer where most are much shorter than
    a row. Neither pads. Finding a row takes some microseconds for each document of 16 rows."""

    special_tokens: Literal["as_model", "as_built"] = "as_model"
    """as_model: documents in shards must begin with BOS as the model's tokenizer does it, and end with an EOS that the
    model names; else the run is refused before its first step. as_built: take the shards as they are."""

    insertions: Paths = ()
    """jsonl files of sequences that take the place of tokens at given tokens of the run: canaries, probes, experiments.
    [data](data.md#insertions)"""

    stages: Annotated[tuple[StageSection, ...], Field(strict=False)] = ()
    """What changes on the way, in the order of their `at`."""

    domains: Annotated[dict[DomainName, DomainSection], Field(min_length=1)]
    """The domains by name; names are letters, digits, - and _, and appear in every log and table."""


class BatchSection(Section):
    """The global batch: what one optimizer step sees, whatever the layout."""

    global_rows: Count | None = None
    """Rows per step over all ranks. A multiple of data parallelism x micro_rows. Set this or `global_tokens`."""

    global_tokens: Tokens | None = None
    """Tokens per step over all ranks ("4M"), rounded to the nearest number of rows that the layout can split."""

    micro_rows: Count = 1
    """Rows per micro-batch and rank: more fill the GPU better at short sequences, and take activation memory."""


class ParallelSection(Section):
    """How the model and the batch are laid over the processes: pipeline x tensor x data = world size."""

    pipeline: Count = 1
    """Stages that the decoder layers are cut into (1F1B). Idle share (p-1)/(m+p-1) for m micro-batches per step."""

    tensor: Count = 1
    """Ranks that share each layer's matrices. They talk four times per layer: keep them inside a node."""

    data: Count | Literal["auto"] = "auto"
    """Replicas that split the batch; auto is what the world size leaves."""

    sequence_parallel: bool = False
    """Split activations along the sequence between tensor-parallel regions (Korthikanti et al. 2022, arXiv:2205.05198).
    Same communication, less memory; needs tensor > 1."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """What data-parallel ranks split (Rajbhandari et al. 2020, arXiv:1910.02054): 0 nothing, 1 optimizer state, 2 and
    gradients, 3 and weights. A pipeline allows 0 and 1: it needs whole gradients until its last micro-batch."""

    activation_checkpointing: Literal["none", "full"] = "none"
    """full: keep each layer's input only and compute the rest again in the backward, for about a third more compute."""

    partition: Literal["time", "uniform"] | Annotated[tuple[Count, ...], Field(strict=False)] = "time"
    """Decoder layers per stage. time: equal times, the head counted by its compute. uniform: equal numbers of layers. A
    list states them."""


class ReplaySection(Section):
    """How much old text is replayed, and which. It takes the place of new text, it is not added to it."""

    rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The share of every global batch that is replay; weights then only divide each role's part among its domains. 0.05
    is enough for a weak shift, 0.25 and more for a new language (arXiv:2403.08763). None: as the weights say."""

    match: Literal["llama"] | dict[DomainName, Rate] | None = None
    """The mixture that the model was pre-trained on, source -> share, or the name of a published one. Replay domains
    are named as its sources and get their shares; without `rate`, new text gets all the rest (strategy III of
    arXiv:2406.14833). llama: common_crawl, c4, github, wikipedia, books, arxiv, stackexchange (arXiv:2302.13971)."""


class MixtureSection(Section):
    """What changes the domains' shares during the run, by their held-out losses (docs/mixtures.md)."""

    controller: Literal[
        "static",
        "ddk",
        "topic_perplexity",
        "skill_it",
        "prioritised",
        "constrained",
        "agent",
        "random_walk",
    ] = "static"
    """static: nothing. constrained: budgets of `forgetting` are kept with as little replay as they need. prioritised:
    replay goes where most is forgotten. ddk: more of what falls behind the base model (arXiv:2407.16154).
    topic_perplexity: more of what got worse (arXiv:2407.18743). skill_it: by a graph of what helps what
    (arXiv:2307.14430). agent: a policy trained on pilots. random_walk: for those pilots (arXiv:2507.15640)."""

    every: Stretch = Duration.parse("2%")
    """Between two decisions; each evaluates the domains. The loss answers a change of the mixture late: decisions in
    quick succession overshoot."""

    floor: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """The least share that a controller gives a domain."""

    step_size: Rate | None = None
    """How strongly a decision answers. constrained: share ratio per nat over budget, None is 1. skill_it: eta, None is
    0.2. topic_perplexity: the most a share changes, below 1, None is 0.2. random_walk: in nats, None is 0.5."""

    max_replay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """constrained: the most replay; None is 0.5."""

    smoothing: Annotated[float, Field(ge=0, le=1)] | None = None
    """ddk: how much of a share is decided anew, the rest is as planned; None is 0.5."""

    reference: dict[DomainName, float] = {}
    """ddk: losses of a better model, in nats per token, in place of the base model's."""

    exponent: Annotated[float, Field(ge=0)] | None = None
    """prioritised: of the loss increase; None is 1."""

    kept_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """prioritised: the part of the replay that stays as planned; None is 0.2."""

    graph: str | None = None
    """skill_it: the file of `megacpt mixture learn-graph`."""

    window: Count | None = None
    """skill_it: decisions whose losses are summed; None is 3."""

    agent: str | None = None
    """agent: the folder of `megacpt mixture train-agent`."""


class DistillationSection(Section):
    """Holding the model to a teacher's predictions while it learns: where there is no text to replay.

    weight * temperature^2 * KL(teacher || model) is added to the loss of every token of `domains` (Hinton et al. 2015,
    arXiv:1503.02531; on new text, learning without forgetting, Li and Hoiem 2016, arXiv:1606.09282). The teacher runs
    beside the model in the same layout: a third more compute, and its weights in memory.
    """

    teacher: Literal["base", "average"] = "base"
    """base: the weights that the run began from. average: the running average of `optimizer.average_decay`, which
    follows slowly; putting it together takes a sum of all fp32 weights over the data axis each step."""

    weight: Annotated[float, Field(gt=0)]
    """The factor beside the cross-entropy's 1, before the token's loss weight; 0.2 in DDK (arXiv:2407.16154)."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """What the logits of both are divided by: above 1 the unlikely tokens count more."""

    domains: Annotated[tuple[DomainName, ...], Field(strict=False)] | None = None
    """The domains on whose tokens it acts; None: those of role new."""


class LossSection(Section):
    """The replay-weighted cross-entropy."""

    kernel: Literal["auto", "reference", "triton"] = "auto"
    """auto: Triton on GPUs, plain torch elsewhere."""

    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of lse^2, which keeps logits from drifting (PaLM, arXiv:2204.02311, uses 1e-4). 0: off, a pretrained
    model's logits are already where they belong."""

    weight_limits: Annotated[tuple[Rate, Rate], Field(strict=False)] = (0.2, 5.0)
    """The smallest and the largest weight that `target_weight` may lead to; what lies outside is clipped."""

    distillation: DistillationSection | None = None
    """Hold the model to a teacher's predictions."""


class ReptileSection(Section):
    """Interpolation with earlier weights: every so many steps, theta <- slow + step_size (theta - slow), slow <- theta.

    With replay this is meta-experience replay (Riemer et al. 2019, arXiv:1810.11910; for pre-training
    arXiv:2508.01908), which to first order aligns the gradients of old and new text. Done on the fp32 weights.
    """

    every_steps: Count
    """Steps between two interpolations; 500 in arXiv:2508.01908. Tune it with `step_size`: many steps and a small size
    hardly learn."""

    step_size: Annotated[float, Field(gt=0, le=1)]
    """The share of the way that is kept: 0.1 in arXiv:2508.01908; 1 is plain training."""


class OptimizerSection(Section):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), its state fresh at the start of the run."""

    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.95)
    """Decay of the first and second moment; (0.9, 0.95) as GPT-3 (arXiv:2005.14165) and Llama 2 (arXiv:2307.09288)."""

    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled decay, of matrices only. 0.1 as GPT-3 and Llama 2."""

    gradient_clipping: Annotated[float, Field(ge=0)] = 1.0
    """Largest global norm of the gradient; 0 is off. 1.0 as GPT-3 and Llama 2."""

    decay_to: Literal["zero", "initial"] = "zero"
    """What weight decay pulls to: zero, or the weights that the run began with (L2-SP, Li et al. 2018,
    arXiv:1802.01483, decoupled): theta <- theta - lr * weight_decay * (theta - theta_0). Decay to zero also pulls away
    from what the model knows. Takes 4 bytes per parameter, split over the data axis."""

    lr_multipliers: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Factors on the learning rate by parameter name: `"model.layers.[0-4].*": 0.5`, `"model.embed_tokens.*": 0`. Names
    are Hugging Face's; `*`, `?` and `[0-4]` stand for what they do in file names; the first pattern that matches
    counts. 0 freezes: no gradient, no decay, no optimizer state, no part in the gradient norm. A slow body under a
    faster head is the "slow learner" of SLCA (arXiv:2303.05118)."""

    reptile: ReptileSection | None = None
    """Interpolation with earlier weights. Takes 4 bytes per parameter, split over the data axis."""

    reset: bool = False
    """Forget the moments where this run branches off another one (`--resume OTHER`): they begin at zero, and the bias
    correction warms up again. arXiv:2403.08763 does so between datasets. A run that resumes itself keeps its own."""

    average_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep a running average of the fp32 weights beside training, which it does not change: average <- d * average + (1
    - d) * theta after every step, from the initial weights on. It spans about 1 / (1 - d) steps. Averages can stand in
    for a decay of the learning rate (arXiv:2511.18903). `megacpt export --average` writes it. Takes 4 bytes per
    parameter, split over the data axis."""


class RateSection(Section):
    """The learning rate as a function of tokens: a change of batch size or layout does not distort it."""

    schedule: Literal["cosine", "wsd", "constant", "infinite_cosine", "infinite_inverse_sqrt"] = "cosine"
    """cosine: warm up, then fall to `min` at the end (arXiv:2403.08763). wsd: warm up, stay, decay (arXiv:2404.06395).
    constant: warm up and stay. infinite_*: warm up, cool down to `constant`, stay, anneal (arXiv:2403.08763,
    arXiv:2503.02844)."""

    peak: Rate
    """The highest learning rate: the dial between learning the new and keeping the old. No default: it depends on the
    model and the data."""

    min: Annotated[float, Field(ge=0)] | None = None
    """Where the decay (for infinite schedules, the anneal) ends; None is a tenth of the peak (arXiv:2403.08763)."""

    warmup: Stretch = Duration.parse("1%")
    """Linear from 0 to the peak. Lengths of 0 to 2 % make no difference (arXiv:2308.04014)."""

    decay: Stretch | None = None
    """wsd: the length of the final decay; None is 10 % of the run (arXiv:2404.06395)."""

    decay_shape: Literal["linear", "one_minus_sqrt"] | None = None
    """wsd: how it decays; None is one_minus_sqrt, the better one in arXiv:2405.18392."""

    constant: Rate | None = None
    """infinite: the rate of the open-ended phase, at most the peak."""

    cooldown: Stretch | None = None
    """infinite: the length of the fall from `peak` to `constant`."""

    anneal: Stretch | None = None
    """infinite: the length of the final exponential fall to `min`; None keeps the run in the constant phase."""

    @property
    def lowest(self) -> float:
        """`min`, or its default."""
        return 0.1 * self.peak if self.min is None else self.min

    def phases(self, total_tokens: int) -> dict[str, int]:
        """The lengths in tokens of the phases that have one, in order, for a run of `total_tokens`."""
        decay = self.decay or (Duration.parse("10%") if self.schedule == "wsd" else None)
        stretches = {"warmup": self.warmup, "cooldown": self.cooldown, "decay": decay, "anneal": self.anneal}
        return {name: stretch.of(total_tokens) if stretch else 0 for name, stretch in stretches.items()}


class TrainingSection(Section):
    """How long to train."""

    tokens: Tokens
    """The length of the run ("20B"), rounded up to whole steps. Percentages elsewhere are of this."""

    stop_at_step: Annotated[int, Field(ge=0)] | None = None
    """Stop early after this step without changing any schedule: for pilots, and runs in instalments. 0 trains nothing:
    the base model is evaluated, and can be exported."""


class EvaluationSection(Section):
    """The held-out loss of every domain, in the training layout."""

    every: Stretch | None = Duration.parse("10%")
    """Between two evaluations; None evaluates at the start and end only."""

    dense_start: bool = True
    """Also after 1, 2, 4, 8, ... steps, as long as that is less than `every`: what is lost first is lost within a few
    steps, and often comes back (arXiv:2406.14833)."""

    tokens_per_domain: Tokens | None = 1_000_000
    """Held-out tokens per domain, in rows at equal distances; None takes all. The standard error of a mean over 1M
    tokens is about 0.003 nats."""

    at_start: bool = True
    """Before the first step: the base model's loss, without which no forgetting can be stated."""

    at_end: bool = True
    """After the last step."""

    gradient_alignment: Tokens | None = None
    """Also compare gradients at every evaluation: so many held-out tokens of each domain (64K do) give the cosine of
    the new domains' gradient and that of every other domain, for the whole model and for each layer. Below 0, learning
    the new unlearns the old; replay works by turning that around (arXiv:2508.01908). Costs a training step on these
    tokens and, for as long, 4 bytes per parameter, split over the data axis; training is left as it is, bit for bit."""

    base_loss: dict[DomainName, float] = {}
    """Domain -> the held-out loss that the base model is known to have, in nats per token, from an earlier run with the
    same held-out text, `tokens_per_domain` and rows. A run whose evaluation before the first step is more than 0.02
    nats away from it is refused."""

    over_budget: Literal["warn", "checkpoint", "stop"] = "warn"
    """What to do when a domain is over its budget in `forgetting`: warn at each evaluation; also save a checkpoint;
    also stop the run after it, with an error."""


class CheckpointSection(Section):
    """Checkpoints from which a run continues bit for bit."""

    every: Stretch | None = Duration.parse("10%")
    """Between two checkpoints; None writes none on the way."""

    keep_last: Count = 2
    """Older ones are deleted. Two, so that one survives should the newest turn out unreadable."""

    keep_every_tokens: Tokens | None = None
    """Beside the last ones, keep the first checkpoint at or after every multiple of this; None keeps no others."""

    milestones: dict[Name, Stretch | None] = {}
    """Checkpoints that are saved and kept for good: name -> how much of the run they hold ("80%", "5B"). `pre_anneal`,
    the last one before the final decay of a wsd or infinite schedule, is made without being named: other endings can
    start from it. `pre_anneal: null` makes none."""

    asynchronous: bool = False
    """Copy the state into host memory, 12 bytes per parameter over all ranks, and write it while training goes on."""

    at_end: bool = True
    """After the last step; the export is made from it."""


class GuardSection(Section):
    """What happens at bad numbers ([reliability](reliability.md)). A step whose loss or gradient norm is not finite is
    never applied, whatever stands here."""

    on_spike: Literal["warn", "skip", "rollback"] = "warn"
    """At a loss or gradient norm far above its recent past. warn: only say so. skip: do not apply the step. rollback:
    skip, and after `patience_steps` in a row go back to the last checkpoint and leave out the samples of the bad steps
    (arXiv:2204.02311, section 5.1)."""

    window_steps: Count = 128
    """The recent past: so many steps that were not bad."""

    threshold: Annotated[float, Field(gt=0)] = 8.0
    """A spike lies this many robust standard deviations (1.4826 MAD) above the window's median."""

    patience_steps: Count = 3
    """rollback: bad steps in a row before the run goes back. One bad step is only skipped."""

    jump_before_steps: Annotated[int, Field(ge=0)] = 0
    """rollback: also leave out the samples of so many steps before the first bad one."""

    max_skipped_steps: Count = 10
    """Bad steps in a row after which the run ends with an error: skipping does not help it."""

    max_rollbacks: Annotated[int, Field(ge=0)] = 3
    """Rollbacks in all after which the run ends with an error."""

    hang_timeout_seconds: Count | None = 480
    """A rank that is in one step for so long, or in its start, an evaluation or a save for four times as long, names
    the ranks that hang and ends the run. null: wait. Less than the 10 minutes after which collectives give up."""


class WandbSection(Section):
    """Weights & Biases. The key comes from WANDB_API_KEY or `wandb login`."""

    project: str
    """The project that the run appears in."""

    entity: str | None = None
    """The user or team; None is the account's default."""

    group: str | None = None
    """Runs that belong together."""

    tags: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Labels to filter by."""

    mode: Literal["online", "offline"] = "online"
    """offline: write into the run folder, for `wandb sync` later."""


class LoggingSection(Section):
    """Where the run leaves its numbers."""

    folder: str = "runs"
    """The run folder is `folder`/`name`."""

    tensorboard: bool = True
    """Also write TensorBoard events."""

    wandb: WandbSection | None = None
    """Also report to Weights & Biases."""

    every_steps: Count = 1
    """Steps between two lines on the console; metrics.jsonl always has every step."""


@dataclass(frozen=True)
class Origins:
    """Where each key of a recipe was written. Two recipes are equal whatever files they came from."""

    lines: dict[str, str] = field(default_factory=dict, compare=False)


class Recipe(Section):
    """Everything about a run that does not follow from the machine."""

    name: Name
    """The run's name and folder; by default the file's name. It is not inherited through `extends`."""

    seed: Annotated[int, Field(ge=0)] = 0
    """The order of the data, and random weights if any."""

    model: ModelSection
    """The model that training starts from."""

    data: DataSection
    """The token stream."""

    replay: ReplaySection = ReplaySection()
    """How much old text is replayed."""

    mixture: MixtureSection = MixtureSection()
    """What changes the shares during the run."""

    batch: BatchSection
    """The global batch."""

    parallel: ParallelSection = ParallelSection()
    """The layout."""

    loss: LossSection = LossSection()
    """The loss."""

    optimizer: OptimizerSection = OptimizerSection()
    """The optimizer."""

    lr: RateSection
    """The learning rate."""

    training: TrainingSection
    """The length of the run."""

    evaluation: EvaluationSection = EvaluationSection()
    """Held-out evaluation."""

    forgetting: dict[DomainName, Annotated[float, Field(ge=0)]] = {}
    """Budgets: domain -> how far its held-out loss may rise above the base model's, in nats per token, as in
    {general: 0.02}. `evaluation.over_budget` says what happens beyond."""

    checkpoint: CheckpointSection = CheckpointSection()
    """Checkpoints."""

    guard: GuardSection = GuardSection()
    """Bad numbers."""

    logging: LoggingSection = LoggingSection()
    """Logs."""

    _origins: Origins = PrivateAttr(default_factory=Origins)

    def where(self, key: str) -> str:
        """The place of `key` ("data.domains.medical.shards") for an error: file, line and key as far as they are known.

        A key that was left to its default has the place of the section that could hold it.
        """
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            if line := self._origins.lines.get(".".join(parts[:length])):
                return f"{line}: {key}"
        return key

    def placed(self, where: str | None) -> str | None:
        """`where` of an error, by `self.where` if it is a key alone: what stands below the recipe knows no more."""
        section: object = self
        for part in (where or "").split("."):
            if not isinstance(section, BaseModel) or part not in type(section).model_fields:
                return where
            section = getattr(section, part)
        return self.where(where) if where else where
