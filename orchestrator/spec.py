"""The TrainingJob: what a user writes. The one source of the resource schema, the API, help and documents.

Read by everybody, made by `orchestrator.jobfile` (files) or in Python. An absent field means "chosen before
launch" (`orchestrator.launch.resolve`). Values are strict (no text where a number belongs), because the API
server is too; enumerations hold exactly what runs today. Fields marked "Kubernetes only" rest elsewhere.
"""

from __future__ import annotations

import itertools
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from model.recipe import MAX_BF16_DECAY, PrecisionName
from orchestrator import spec_words as words
from orchestrator.schema import Currency, Money
from orchestrator.spec_model import Model, SpecPart, Uri, ZeroStage, wrong
from orchestrator.spec_words import figure
from orchestrator.status import JobStatus

Name = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
ObjectName = Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")]
Share = Annotated[float, Field(ge=0, le=1)]


class Metadata(SpecPart):
    """What the job is called, and whose it is."""

    name: str = Field(max_length=40, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    """Unique in the namespace: at most 40 lower-case letters, digits and "-", a letter first."""
    namespace: Name = "default"
    """The team that the job belongs to."""


class SourceWeight(SpecPart):
    """How much of a source training sees."""

    source: str = Field(max_length=32, pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Name of a source of the dataset; `fathom data inspect` lists them."""
    weight: float = Field(gt=0, le=1e9)
    """Share of the training sequences, relative to the other sources'."""


class Data(SpecPart):
    """The text to train on."""

    source: Uri
    """Folder or URL of a dataset made by `fathom data prepare`."""
    tokenizer: Uri | None = None
    """A tokenizer.json that the dataset must have been made with; absent: whichever it was."""
    mixture: list[SourceWeight] = Field(default=[], max_length=64)
    """Weights of all the dataset's sources; absent: those it was prepared with."""
    isolate_documents: bool = False
    """Whether tokens attend to their own document only, where several share a sequence."""
    sequence_length: int | None = Field(None, ge=2, le=100_000_000)
    """Tokens per training sequence; absent: the model's longest, at most 4096."""
    license: str | None = Field(None, max_length=200)
    """Licence of the text, copied to MLflow."""
    provenance: str | None = Field(None, max_length=1000)
    """Where the text comes from, copied to MLflow."""


class Schedule(SpecPart):
    """Learning rate over the run: linear warm-up, constant, cosine down, constant at the end."""

    learning_rate: float | None = Field(None, gt=0, le=1)
    """Highest learning rate; absent: chosen by the width of the model (extend-context: a thirtieth of that)."""
    final_learning_rate: float | None = Field(None, ge=0, le=1)
    """Learning rate after the decay; absent: a tenth of the highest (extend-context: the same)."""
    warmup_steps: int | None = Field(None, ge=0, le=10_000_000)
    """Steps of the linear rise; absent: 3 % of all, at most 2000 (extend-context: none)."""
    constant_share: Share | None = None
    """Share of all steps, warm-up included, before the decay begins; absent: 0.67 (extend-context: all)."""
    decay_share: Share | None = None
    """Share of all steps that the decay takes; absent: all that is left."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        constant, decay = self.constant_share, self.decay_share
        if constant is not None and decay is not None and constant + decay > 1 + 1e-9:
            total = f"{constant + decay:g}"
            wrong("decayShare", words.SHARES.format(decay=figure(decay), constant=figure(constant), sum=total))
        highest, final = self.learning_rate, self.final_learning_rate
        if highest is not None and final is not None and final > highest:
            wrong("finalLearningRate", words.RATES.format(final=figure(final), highest=figure(highest)))
        return self


class Optimizer(SpecPart):
    """AdamW; the defaults are those of the DeepSeek-V3 paper."""

    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: float = Field(1e-8, gt=0, le=1)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.1, ge=0, le=10)
    """Decay of matrices; norms and biases have none."""
    gradient_clipping: float = Field(1.0, gt=0, le=1e6)
    """Global gradient norm above which gradients are scaled down."""
    moments_precision: Literal["fp32", "bf16"] = "fp32"
    """In which both moments are stored; bf16 halves their memory, as in DeepSeek-V3. Master weights are always FP32."""

    @model_validator(mode="after")
    def _decays(self) -> Self:
        for field, decay in (("beta1", self.beta1), ("beta2", self.beta2)):
            if self.moments_precision == "bf16" and decay > MAX_BF16_DECAY:
                wrong(field, words.MOMENTS.format(decay=figure(decay), most=MAX_BF16_DECAY))
        return self


class Balance(SpecPart):
    """How the load of experts is kept even."""

    bias_update_speed: float | None = Field(None, ge=0, le=1)
    """Step of an expert's selection bias per optimizer step (gamma); absent: by the number of steps
    (extend-context: 0)."""
    aux_loss_alpha: float = Field(1e-4, ge=0, le=10)
    """Weight of the sequence-wise auxiliary loss."""


class Mtp(SpecPart):
    """Weight of the multi-token prediction loss."""

    weight: float = Field(0.3, ge=0, le=10)
    """Weight in the first part of the run."""
    final_weight: float = Field(0.1, ge=0, le=10)
    """Weight in the rest."""
    switch_share: Share = 0.67
    """Share of all steps after which the weight changes; extend-context has the final weight from the first step."""


class Evaluation(SpecPart):
    """Measuring on held-out text."""

    every_steps: int | None = Field(None, ge=1, le=10_000_000)
    """Steps between evaluations; absent: a tenth of the run."""
    tokens: int | None = Field(None, ge=1, le=10**12)
    """Held-out tokens per evaluation; absent: all, at most 131,072."""
    tasks: list[Uri] = Field(default=[], max_length=16)
    """Files of multiple-choice and completion tasks, scored with every evaluation: JSONL, or YAML as of lm-eval."""


class Anomalies(SpecPart):
    """What happens when a step's loss is not finite, or far above those before it."""

    action: Literal["warn", "replay", "skip"] = "skip"
    """warn: only say so; replay: go back to the last checkpoint; skip: and leave the data out if it happens again."""
    threshold: float = Field(8.0, gt=0, le=1e6)
    """Robust deviations above the median of the losses before from which a loss counts as a spike."""
    window: int = Field(128, ge=4, le=100_000)
    """Losses that a new one is compared with."""
    max_rollbacks: int = Field(10, ge=0, le=1000)
    """Times that the whole run goes back to a checkpoint; beyond them an anomaly is accepted, or ends the run."""


class BatchRamp(SpecPart):
    """Smaller batches at the start of the run, in the proportions of DeepSeek-V3 unless it says otherwise."""

    start_tokens: int | None = Field(None, ge=2, le=10**12)
    """Tokens per optimizer step at the start; absent: a fifth of globalBatchTokens (3072 of 15360 sequences)."""
    share: float = Field(0.0317, gt=0, le=1)
    """Share of the run's tokens over which the batch grows (469B of 14.8T tokens)."""


class Extension(SpecPart):
    """How `task: extend-context` stretches the rotary positions (YaRN, on the decoupled key only)."""

    factor: float | None = Field(None, gt=1, le=1_000_000)
    """Longest length of all phases / originalLength, at least; absent: as the weights or the preset have it, else by
    data.sequenceLength. Best the same in all phases."""
    original_length: int | None = Field(None, ge=2, le=100_000_000)
    """Tokens per sequence of pre-training; absent: the longest that the weights' config.json names."""
    beta_fast: float | None = Field(None, gt=0, le=1_000_000)
    """Turns within originalLength from which a rotary frequency stays as it is; absent: as factor, else 32."""
    beta_slow: float | None = Field(None, gt=0, le=1_000_000)
    """Turns up to which a frequency is divided by the whole factor; absent: as factor, else 1."""
    mscale: float | None = Field(None, gt=0, le=100)
    """Scores are sharpened by (0.1 x mscale x ln(factor) + 1) squared; absent: as factor, else 1."""


class Training(SpecPart):
    """How much to train, and how."""

    tokens: int = Field(ge=1, le=10**15)
    """Tokens of the whole run, rounded up to whole optimizer steps."""
    global_batch_tokens: int | None = Field(None, ge=2, le=10**12)
    """Tokens per optimizer step, over all workers; absent: chosen by the length of the run."""
    batch_ramp: BatchRamp | None = None
    """Smaller batches at the start of the run; absent: none, `{}`: as DeepSeek-V3."""
    precision: PrecisionName | None = None
    """Arithmetic of the matrix products; absent: bf16 on GPUs, fp32 on CPUs. fp8: 8-bit products in linear layers and
    experts; needs GPUs of Hopper's generation or newer, and is emulated on CPUs."""
    seed: int = Field(1, ge=0, le=2**31 - 1)
    """Decides initial weights and the order of the data."""
    schedule: Schedule = Schedule()
    """Learning rate over the run."""
    optimizer: Optimizer = Optimizer()
    """AdamW."""
    balance: Balance = Balance()
    """Load of experts."""
    mtp: Mtp = Mtp()
    """Multi-token prediction."""
    anomalies: Anomalies = Anomalies()
    """Loss spikes, and losses that are not finite."""
    extension: Extension | None = None
    """Longer context, with task extend-context only; absent: all of it is chosen."""
    evaluation: Evaluation = Evaluation()
    """Measuring on held-out text."""
    sample_tokens: int = Field(256, ge=0, le=65_536)
    """Tokens of text that the model writes at the end of the run."""


class Parallelism(SpecPart):
    """How the workers share the model."""

    expert: int | None = Field(None, ge=1, le=100_000)
    """Workers that share one set of experts; divides the number of workers and of experts; absent: on GPUs the fastest
    that fits, on CPUs the largest power of two."""
    zero_stage: ZeroStage | None = None
    """DeepSpeed ZeRO, what the workers share out: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too; absent:
    on GPUs the fastest that fits, on CPUs 1."""
    pipeline: int | None = Field(None, ge=1, le=1000)
    """Groups of layers that pass activations on to each other; absent or 1: none. More is refused for now."""
    micro_batch: int | None = Field(None, ge=1, le=100_000)
    """Sequences per worker and forward pass; absent: on GPUs the fastest that fits, on CPUs at most 8,192 tokens."""
    recompute: Literal["none", "selective", "full"] | None = None
    """What of the activations is computed again in the backward pass, which saves memory: nothing; norms, SwiGLU and
    attention's up-projections, which are about half of it, for a few percent of the time; whole layers; absent: on GPUs
    the fastest that fits, on CPUs none."""


class Compute(SpecPart):
    """The machines."""

    accelerator: Literal["cpu", "A100", "H100", "H800", "H200", "B200"]
    """Kind of device; on a GPU each worker has one."""
    gpus: int | None = Field(None, ge=1, le=100_000)
    """GPUs of the whole job."""
    gpus_per_node: int | None = Field(None, ge=1, le=72)
    """GPUs of one machine; absent: 8, or all if there are fewer."""
    workers: int | None = Field(None, ge=1, le=1000)
    """Processes of a job on CPUs."""
    cpu_per_worker: int | None = Field(None, ge=1, le=1024)
    """Processor cores per worker; absent: 1."""
    memory_per_worker: str | None = Field(None, max_length=20, pattern=r"^[1-9][0-9]{0,14}(Ki|Mi|Gi|Ti|k|M|G|T)?$")
    """Main memory per worker as a Kubernetes quantity, e.g. 2Gi; absent: not limited, on Kubernetes what its settings
    say."""
    price_class: str = Field("on-demand", max_length=32, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    """Which price of the price list applies, e.g. on-demand."""
    image: str | None = Field(None, max_length=512, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$")
    """Container image of the workers (Kubernetes only)."""
    service_account_name: ObjectName | None = None
    """Service account of the pods (Kubernetes only)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.accelerator == "cpu":
            for field, value in (("gpus", self.gpus), ("gpusPerNode", self.gpus_per_node)):
                if value is not None:
                    wrong(field, words.NO_GPU.format(value=value))
            if self.workers is None:
                wrong("workers", words.WORKERS_MISSING)
            return self
        if self.workers is not None:
            wrong("workers", words.WORKERS.format(workers=self.workers, accelerator=self.accelerator))
        if self.gpus is None:
            wrong("gpus", words.GPUS_MISSING.format(accelerator=self.accelerator))
        size = self.gpus_per_node or 1
        if self.gpus > size and self.gpus % size:
            fits = self.gpus // size * size
            wrong("gpus", words.MACHINES.format(gpus=self.gpus, size=size, fewer=fits, more=fits + size))
        return self

    @property
    def world_size(self) -> int:
        """Workers of the whole job: one per GPU, or the CPU processes."""
        size = self.workers if self.accelerator == "cpu" else self.gpus
        assert size is not None, "validation requires workers on CPUs and gpus on GPUs"
        return size


class Storage(SpecPart):
    """How pods reach data and checkpoints (Kubernetes only)."""

    secret_ref: ObjectName | None = None
    """Secret with the credentials of an object store."""
    claim: ObjectName | None = None
    """Persistent volume claim to mount."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.secret_ref and self.claim:
            wrong("claim", words.STORAGES.format(claim=self.claim, secret=self.secret_ref))
        return self


class Budget(SpecPart):
    """The money that the job may spend."""

    limit: Money
    """Amount at which the job stops, all attempts together, as text: "5000.00"."""
    currency: Currency = "USD"
    """ISO 4217 code; must be that of the price list."""
    warn_at: list[Annotated[float, Field(gt=0, lt=1)]] = Field(default=[0.5, 0.8, 0.95], max_length=10)
    """Shares of the limit that a person is told of when they are spent, each once; in rising order."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.amount == 0:
            wrong("limit", words.NOTHING.format(limit=self.limit))
        for before, after in itertools.pairwise(self.warn_at):
            if after <= before:
                wrong("warnAt", words.WARNINGS.format(after=figure(after), before=figure(before)))
        return self

    @property
    def amount(self) -> Decimal:
        """The limit as a number."""
        return Decimal(self.limit)


class Checkpoint(SpecPart):
    """Where and how often the state is saved."""

    uri: Uri | None = None
    """Storage of the job, any URL that fsspec knows; absent: the run's own folder."""
    interval_minutes: float | None = Field(None, gt=0, le=10_080)
    """Minutes between checkpoints; absent: 2 on CPUs, 20 on GPUs."""
    keep: int = Field(3, ge=1, le=1000)
    """Newest checkpoints that are kept."""


class Retry(SpecPart):
    """What happens when something breaks."""

    max_attempts: int = Field(5, ge=1, le=1000)
    """Attempts at most, the first included. An attempt has one driver, which may restart its workers many times."""
    stop_after_attempts_without_progress: int = Field(2, ge=1, le=1000)
    """Attempts, and inside an attempt restarts of workers, that may follow each other without a new checkpoint."""
    stall_minutes: float = Field(5.0, ge=0.05, le=1440)
    """Least time without a step that counts as a stall (ten times the usual step, if longer); six times as much for
    the start and for the end of the workers. A stall is tried again once."""


TagName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_. /:-]*$")]
TagValue = Annotated[str, Field(max_length=500)]


class Tracking(SpecPart):
    """MLflow."""

    experiment: str | None = Field(None, min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")
    """Experiment that the run belongs to; absent: the name of the job."""
    tags: dict[TagName, TagValue] = Field(default={}, max_length=32)
    """Tags of the run."""

    @model_validator(mode="after")
    def _not_reserved(self) -> Self:
        for name in self.tags:
            if name.startswith(words.RESERVED_TAGS):
                wrong(f"tags.{name}", words.TAGS)
        return self


class Notify(SpecPart):
    """Word of the job for another program, by HTTP; docs/webhooks.md."""

    url: str = Field(max_length=2048, pattern=r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[!-~]*)?$")
    """Where it is posted to. http, and hosts that are not public, only where FATHOM_WEBHOOK_HOSTS names the host."""
    when: list[Literal["failed", "budget-warning", "ended"]] = Field(
        default=["failed", "budget-warning", "ended"], min_length=1, max_length=3
    )
    """When: an attempt has failed; a share of budget.warnAt is spent, or all that the limit allows; the job is over."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.when)) != len(self.when):
            wrong("when", words.OCCASIONS.format(named=len(self.when), different=len(set(self.when))))
        return self


class Queue(SpecPart):
    """Admission (Kubernetes with Kueue only)."""

    name: Name | None = None
    """Queue that the job waits in; absent: none."""
    priority_class: ObjectName | None = None
    """Workload priority class."""


class JobSpec(SpecPart):
    """What to train, on what, for how much."""

    task: Literal["pretrain", "extend-context"] = "pretrain"
    """Kind of training; extend-context: one phase of training weights (model.initFrom) for longer sequences."""
    model: Model
    """The architecture to train."""
    data: Data
    """The text to train on."""
    training: Training
    """How much to train, and how."""
    parallelism: Parallelism = Parallelism()
    """How the workers share the model."""
    compute: Compute
    """The machines."""
    storage: Storage = Storage()
    """How pods reach data and checkpoints (Kubernetes only)."""
    budget: Budget | None = None
    """The money that the job may spend; absent: no limit."""
    checkpoint: Checkpoint = Checkpoint()
    """Where and how often the state is saved."""
    retry: Retry = Retry()
    """What happens when something breaks."""
    tracking: Tracking = Tracking()
    """MLflow."""
    notify: Notify | None = None
    """Word of the job for another program; absent: none but that of the team."""
    queue: Queue = Queue()
    """Admission (Kubernetes with Kueue only)."""
    suspend: bool = False
    """Whether the job shall let go of its machines and wait."""

    @model_validator(mode="after")
    def _fits_the_task(self) -> Self:
        if self.task == "pretrain":
            if self.training.extension is not None:
                wrong("training.extension", words.EXTENSION)
            return self
        if self.model.init_from is None:
            wrong("model.initFrom", words.WEIGHTS_MISSING)
        if self.data.sequence_length is None:
            wrong("data.sequenceLength", words.LENGTH_MISSING)
        positions, length = self.model.overrides.max_positions, self.data.sequence_length
        if positions is not None:
            wrong("model.overrides.maxPositions", words.POSITIONS.format(positions=positions, length=length))
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        world, expert = self.compute.world_size, self.parallelism.expert
        if expert is not None and world % expert:
            divisors = [size for size in range(1, words.DIVISORS + 1) if world % size == 0]
            message = words.EXPERT.format(expert=expert, workers=world, divisors=divisors)
            wrong("parallelism.expert", message)
        experts = self.model.overrides.experts
        if expert is not None and experts is not None and experts % expert:
            wrong("parallelism.expert", words.EXPERTS.format(expert=expert, experts=experts))
        batch, tokens = self.training.global_batch_tokens, self.training.tokens
        if batch is not None and tokens < batch:
            wrong("training.tokens", words.TOKENS.format(tokens=tokens, batch=batch))
        return self


class TrainingJob(SpecPart):
    """One training run, as a document."""

    api_version: Literal["fathom.dev/v1alpha1"] = "fathom.dev/v1alpha1"
    """Version of this form."""
    kind: Literal["TrainingJob"] = "TrainingJob"
    """What this document is."""
    metadata: Metadata
    """What the job is called, and whose it is."""
    spec: JobSpec
    """What to train, on what, for how much: written by the user."""
    status: JobStatus | None = None
    """How it stands: written by Fathom."""
