"""Everything that a training run needs besides the architecture, fully decided. Imports no torch.

`orchestrator.launch.resolve` makes a `Recipe` from a TrainingJob; `model.train` obeys it. Nothing in here is
optional in meaning: what the user left open has been chosen by then.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from model.config import Frozen, ModelConfig
from model.dataset import SourceName
from model.ramp import BatchSchedule, BatchStage

PrecisionName = Literal["fp32", "bf16", "fp8"]
"""Policies of `model.precision`."""
MAX_BF16_DECAY = 0.99
"""Of moments that are stored in BF16: with 8 significant bits a decay by less than 1/512 is rounded away, and the
moment never falls again."""


class Schedule(Frozen):
    """Learning rate by optimizer step: linear warm-up, constant, cosine to `final_learning_rate`, constant."""

    learning_rate: float = Field(gt=0, le=1)
    final_learning_rate: float = Field(ge=0, le=1)
    warmup_steps: int = Field(ge=0)
    decay_start_step: int = Field(ge=0)
    decay_end_step: int = Field(ge=0)


class Optimizer(Frozen):
    """AdamW as in the paper; decay is applied to matrices only, not to norms and biases."""

    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    grad_clip: float = Field(1.0, gt=0)
    """Global gradient norm above which gradients are scaled down."""
    moments_precision: Literal["fp32", "bf16"] = "fp32"
    """In which both moments are stored; they are computed, and master weights are kept, in FP32."""

    @model_validator(mode="after")
    def _decays(self) -> Self:
        for name in ("beta1", "beta2"):
            if self.moments_precision == "bf16" and getattr(self, name) > MAX_BF16_DECAY:
                raise ValueError(f"{name} is {getattr(self, name)}, moments in bf16 allow at most {MAX_BF16_DECAY}")
        return self


class Balance(Frozen):
    """Load balancing of experts (arXiv 2412.19437, section 2.1.2)."""

    bias_update_speed: float = Field(0.001, ge=0)
    """gamma: the step by which an expert's selection bias moves after each optimizer step."""
    bias_stop_step: int = Field(ge=0)
    """From this step on gamma is 0 (in the paper the last 0.5T of 14.8T tokens)."""
    aux_loss_alpha: float = Field(1e-4, ge=0)
    """Weight of the sequence-wise auxiliary loss."""


class MultiToken(Frozen):
    """Weight of the multi-token prediction loss: `weight` until `switch_step`, then `final_weight`."""

    weight: float = Field(0.3, ge=0)
    final_weight: float = Field(0.1, ge=0)
    switch_step: int = Field(ge=0)


class Layout(Frozen):
    """How the processes share the model."""

    world_size: int = Field(ge=1)
    expert_parallel: int = Field(ge=1)
    """Processes that share one set of routed experts."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed ZeRO divides among the processes: 1 the optimizer's state, 2 gradients too, 3 weights too."""
    micro_batch: int = Field(ge=1)
    """Sequences per process and forward pass."""
    accumulation: int = Field(ge=1)
    """Forward passes per optimizer step."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What of the activations is computed again in the backward pass. selective: what norms, SwiGLU and up-projections
    of latent attention give, and attention weights (`model.again`); full: all of a layer but its input."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.world_size % self.expert_parallel:
            raise ValueError(f"expert_parallel ({self.expert_parallel}) must divide world_size ({self.world_size})")
        return self


class Checkpointing(Frozen):
    """Where and when to save."""

    uri: str
    """The job's storage, any fsspec URL; checkpoints go to `<uri>/checkpoints/step-N`."""
    interval_seconds: float = Field(gt=0)
    keep: int = Field(ge=1)


class Anomalies(Frozen):
    """What happens when a step's loss is not finite, or far above those before it (`model.anomaly`)."""

    action: Literal["warn", "replay", "skip"] = "skip"
    """warn: only say so (a loss that is not finite always ends the attempt at least); replay: go back to the last
    checkpoint and try the same data again; skip: as replay, and leave the step's data out if that did not help."""
    threshold: float = Field(8.0, gt=0)
    """Robust z-score from which a loss counts as a spike."""
    window: int = Field(128, ge=4)
    """Losses that a new one is compared with."""
    minimum: int = Field(32, ge=3)
    """Losses needed before any judgement."""
    max_rollbacks: int = Field(10, ge=0)
    """Rollbacks in the whole run; beyond them an anomaly ends it."""


class SourceWeight(Frozen):
    """A source's share of the training sequences, relative to the others'."""

    source: SourceName
    weight: float = Field(gt=0, allow_inf_nan=False)


class Recipe(Frozen):
    """One training run, fully decided."""

    model: ModelConfig
    data: str
    """Folder (or URL) of a prepared dataset, see `model.data`."""
    mixture: tuple[SourceWeight, ...] = ()
    """Weights of all sources, in place of the dataset's own."""
    isolate_documents: bool = False
    """Whether a token sees its own document only; otherwise all that stands before it in the sequence."""
    end_of_text: int = Field(0, ge=0)
    """Number of the token that ends a document."""
    seed: int = Field(ge=0)
    sequence_length: int = Field(ge=2)
    steps: int = Field(ge=1)
    batch_stages: tuple[BatchStage, ...] = ()
    """How the batch grows; empty: `batch_sequences` at every step."""
    precision: PrecisionName
    init_from: str | None = None
    """Folder (or URL) of whole weights in the released layout to start from; None: random weights by `seed`."""
    init_fingerprint: str | None = None
    """Of those weights, see `model.headers`: other ones are refused when the job starts again."""
    schedule: Schedule
    optimizer: Optimizer
    balance: Balance
    multi_token: MultiToken
    layout: Layout
    anomalies: Anomalies = Anomalies()
    checkpoint: Checkpointing
    eval_every_steps: int = Field(ge=1)
    eval_tokens: int = Field(ge=1)
    """Held-out tokens per evaluation; the last evaluation of a run uses the same."""
    eval_tasks: tuple[str, ...] = ()
    """Files of tasks that are scored with every evaluation, see `model.tasks`."""
    sample_tokens: int = Field(ge=0)
    """Tokens to write as a sample at the end of the run."""
    device: Literal["cpu", "cuda"]
    peak_flops: float | None = Field(None, gt=0)
    """Dense BF16 peak of one device in FLOP/s; None where no peak is known (then there is no MFU)."""

    @property
    def batch_sequences(self) -> int:
        """Sequences per optimizer step, over all processes, once the batch has grown."""
        return self.layout.world_size * self.layout.micro_batch * self.layout.accumulation

    @property
    def batch_tokens(self) -> int:
        """Tokens per optimizer step, over all processes, once the batch has grown."""
        return self.batch_sequences * self.sequence_length

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run: whole optimizer steps."""
        return self.batches.samples_before(self.steps) * self.sequence_length

    @property
    def batches(self) -> BatchSchedule:
        """Sequences of each step."""
        return BatchSchedule.of(self.batch_stages or (BatchStage(first_step=0, sequences=self.batch_sequences),))

    @model_validator(mode="after")
    def _batches_end(self) -> Self:
        stages, each = self.batch_stages, self.layout.world_size * self.layout.micro_batch
        if stages and stages[-1].sequences != self.batch_sequences:
            raise ValueError(
                f"the batch grows to {stages[-1].sequences} sequences, but the layout has {self.batch_sequences}"
            )
        for stage in stages:
            if stage.sequences % each:
                raise ValueError(f"{each} sequences at a time do not make up the {stage.sequences} of a step")
        return self
