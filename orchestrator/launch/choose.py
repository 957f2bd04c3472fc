"""Chooses the recipe of a job: model, layout and schedule. Called by `orchestrator.launch.resolve` only.

Reads the preset, or the weights to start from, the dataset's manifest, and the user's own hardware and efficiencies.
Invariant: whatever is chosen is noted with its reason; what cannot run is refused by field and numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from model.config import ModelConfig
from model.dataset import DatasetManifest
from model.ramp import BatchSchedule
from model.recipe import Anomalies, Balance, Checkpointing, MultiToken, Optimizer, PrecisionName, Recipe, Schedule
from orchestrator.launch.architecture import choose_architecture, require_same_tokenizer
from orchestrator.launch.batches import choose_batches, choose_mixture, choose_tasks
from orchestrator.launch.choices import Choice, Choices, absolute, refusal
from orchestrator.launch.dataset import MAX_EVAL_TOKENS, check_lengths, choose_eval_tokens, read_dataset
from orchestrator.launch.extension import extended
from orchestrator.launch.layout import choose_layout
from orchestrator.plan import defaults
from orchestrator.plan.hardware import accelerator
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob

LEARNING_RATES: dict[str, float] = {"v2-lite-16b": 4.2e-4, "v3-671b": 2.2e-4}
"""Highest learning rate by preset, where one was published or measured; others go by width."""

_WIDTH, _RATE = 7168, 2.2e-4
"""DeepSeek-V3. Scaled by the root of the width this gives 4.1e-4 for V2-Lite (2048), which used 4.2e-4."""

_CONSTANT_SHARE = 0.67
"""10T of 14.8T tokens in DeepSeek-V3."""
_BIAS_STOP_SHARE = 0.97
"""14.3T of 14.8T tokens in DeepSeek-V3."""
_DECIDED_ANEW = (
    "spec.parallelism.", "spec.compute.", "spec.checkpoint.", "spec.tracking.", "spec.training.precision",
)  # fmt: skip
"""Choices that a later attempt makes for itself; all others stay as the first attempt made them."""


# What is trained


def choose_recipe(
    job: TrainingJob,
    storage: str,
    settings: Settings,
    choose: Choices,
    *,
    pending: bool = False,
    elsewhere: bool = False,
) -> Recipe:
    """All of the model's side. `pending`: nothing of the dataset is read, `launch.pending` adds what it decides;
    `elsewhere`: see `choose_architecture`."""
    architecture = choose_architecture(job, choose, elsewhere=elsewhere)
    initial, config = architecture.initial, architecture.config
    job, config = extended(job, config, _highest_rate(job, config), choose)
    spec = job.spec
    data = absolute(spec.data.source)
    manifest = None if pending else read_dataset(job, data, config)
    if initial is not None and manifest is not None:
        require_same_tokenizer(initial, manifest, spec.data.source, data)
    sequence = choose(
        "spec.data.sequenceLength",
        spec.data.sequence_length,
        lambda: defaults.sequence_length(config.max_position_embeddings),
    )
    _check_length(sequence, config)
    if manifest is not None:
        check_lengths(sequence, config, manifest)
    precision = _precision(job, choose)
    layout = choose_layout(job, config, sequence, choose, settings=settings, precision=precision)
    stages = choose_batches(job, layout, sequence, choose)
    steps = BatchSchedule.of(stages).steps_for(math.ceil(spec.training.tokens / sequence))
    every, tokens = _evaluation(job, steps, manifest, choose)
    on_cpu = spec.compute.accelerator == "cpu"
    return Recipe(
        model=config,
        data=data,
        mixture=() if manifest is None else choose_mixture(job, manifest),
        isolate_documents=spec.data.isolate_documents,
        end_of_text=0 if manifest is None else manifest.tokenizer.end_of_text,
        seed=spec.training.seed,
        sequence_length=sequence,
        steps=steps,
        batch_stages=stages if len(stages) > 1 else (),
        precision=precision,
        init_from=initial.uri if initial else None,
        init_fingerprint=initial.fingerprint if initial else None,
        schedule=_schedule(job, config, steps, choose),
        optimizer=_optimizer(job),
        balance=_balance(job, steps, choose),
        multi_token=MultiToken(
            weight=spec.training.mtp.weight,
            final_weight=spec.training.mtp.final_weight,
            switch_step=round(steps * spec.training.mtp.switch_share),
        ),
        layout=layout,
        anomalies=_anomalies(job),
        checkpoint=_checkpointing(job, storage, choose),
        eval_every_steps=every,
        eval_tokens=tokens,
        eval_tasks=choose_tasks(job, pending=pending),
        sample_tokens=spec.training.sample_tokens,
        device="cpu" if on_cpu else "cuda",
        peak_flops=None if on_cpu else accelerator(spec.compute.accelerator, settings.hardware_file).bf16_flops,
    )


def continue_recipe(
    job: TrainingJob, storage: str, begun: Recipe, settings: Settings, choose: Choices, *, pending: bool = False
) -> Recipe:
    """The recipe that the run has begun with, on the layout and in the precision that the job asks for now. `pending`:
    the dataset is not read."""
    if not pending:
        read_dataset(job, begun.data, begun.model)
    precision = _precision(job, choose)
    layout = choose_layout(
        job, begun.model, begun.sequence_length, choose, settings=settings, precision=precision, begun=begun
    )
    optimizer = begun.optimizer.model_copy(update={"moments_precision": job.spec.training.optimizer.moments_precision})
    changed = {"layout": layout, "precision": precision, "optimizer": optimizer}
    return begun.model_copy(update=changed | {"checkpoint": _checkpointing(job, storage, choose)})


def kept_choices(chosen: Iterable[Choice]) -> list[Choice]:
    """Of those of an earlier attempt, the ones that `continue_recipe` keeps."""
    return [choice for choice in chosen if not choice.path.startswith(_DECIDED_ANEW)]


def _check_length(sequence: int, config: ModelConfig) -> None:
    """One training sequence must fit into the model."""
    if sequence > config.max_position_embeddings:
        raise refusal(
            "data.sequenceLength",
            f"{sequence} exceeds the model's longest, {config.max_position_embeddings}: shorten it, or "
            f"raise model.overrides.maxPositions",
        )


def _precision(job: TrainingJob, choose: Choices) -> PrecisionName:
    given, device = job.spec.training.precision, job.spec.compute.accelerator
    choose("spec.training.precision", given, lambda: defaults.precision_on(device))
    return given or defaults.precision_on(device)[0]


# When


def _schedule(job: TrainingJob, config: ModelConfig, steps: int, choose: Choices) -> Schedule:
    """Learning rate over the run, in the proportions of DeepSeek-V3."""
    wanted, path = job.spec.training.schedule, "spec.training.schedule"
    rate = choose(f"{path}.learningRate", wanted.learning_rate, lambda: _highest_rate(job, config))
    if (wanted.final_learning_rate or 0) > rate:
        raise refusal(
            "training.schedule.finalLearningRate", f"{wanted.final_learning_rate} exceeds learningRate {rate}"
        )
    final = choose(
        f"{path}.finalLearningRate",
        wanted.final_learning_rate,
        lambda: (float(f"{rate / 10:.6g}"), "a tenth"),
    )
    warmup = choose(
        f"{path}.warmupSteps",
        wanted.warmup_steps,
        lambda: (min(2000, math.ceil(0.03 * steps)), f"3 % of {steps} steps, at most 2000"),
    )
    decayed = wanted.decay_share or 0.0
    constant = choose(
        f"{path}.constantShare",
        wanted.constant_share,
        lambda: (min(_CONSTANT_SHARE, 1 - decayed), "10T of 14.8T tokens in DeepSeek-V3"),
    )
    decay = choose(f"{path}.decayShare", wanted.decay_share, lambda: (round(1 - constant, 9), "all that is left"))
    start = round(steps * constant)
    if warmup > start:
        raise refusal("training.schedule.warmupSteps", f"{warmup} exceeds the {start} steps before the decay")
    return Schedule(
        learning_rate=rate,
        final_learning_rate=final,
        warmup_steps=warmup,
        decay_start_step=start,
        decay_end_step=min(steps, round(steps * (constant + decay))),
    )


def _highest_rate(job: TrainingJob, config: ModelConfig) -> tuple[float, str]:
    """Of pre-training, and why."""
    if job.spec.model.preset in LEARNING_RATES and not job.spec.model.overrides.hidden_size:
        return LEARNING_RATES[job.spec.model.preset], f"known for {job.spec.model.preset}"
    scaled = _RATE * math.sqrt(_WIDTH / config.hidden_size)
    return float(f"{scaled:.2g}"), f"{_RATE} x sqrt({_WIDTH} / hiddenSize {config.hidden_size})"


def _evaluation(job: TrainingJob, steps: int, manifest: DatasetManifest | None, choose: Choices) -> tuple[int, int]:
    """Steps between evaluations, and held-out tokens of each: the most that they may be, where no dataset is read."""
    wanted, path = job.spec.training.evaluation, "spec.training.evaluation"
    every = choose(f"{path}.everySteps", wanted.every_steps, lambda: (max(1, steps // 10), f"a tenth of {steps} steps"))
    return every, (wanted.tokens or MAX_EVAL_TOKENS) if manifest is None else choose_eval_tokens(job, manifest, choose)


def _optimizer(job: TrainingJob) -> Optimizer:
    wanted = job.spec.training.optimizer
    return Optimizer(
        beta1=wanted.beta1,
        beta2=wanted.beta2,
        eps=wanted.epsilon,
        weight_decay=wanted.weight_decay,
        grad_clip=wanted.gradient_clipping,
        moments_precision=wanted.moments_precision,
    )


def _balance(job: TrainingJob, steps: int, choose: Choices) -> Balance:
    """Bias updates; a short run takes larger ones.

    Affinities lie in (0, 1). With gamma x steps >= 10 a bias can cross that range in a tenth of the run; the
    paper's 0.001 does so from 10,000 steps on. Above 0.01 single updates would reorder experts.
    """
    speed = choose(
        "spec.training.balance.biasUpdateSpeed",
        job.spec.training.balance.bias_update_speed,
        lambda: (
            float(f"{min(0.01, max(0.001, 10 / steps)):.3g}"),
            f"10 / {steps} steps, within 0.001 and 0.01",
        ),
    )
    return Balance(
        bias_update_speed=speed,
        bias_stop_step=round(steps * _BIAS_STOP_SHARE),
        aux_loss_alpha=job.spec.training.balance.aux_loss_alpha,
    )


def _anomalies(job: TrainingJob) -> Anomalies:
    wanted = job.spec.training.anomalies
    return Anomalies(
        action=wanted.action,
        threshold=wanted.threshold,
        window=wanted.window,
        minimum=min(Anomalies().minimum, wanted.window),
        max_rollbacks=wanted.max_rollbacks,
    )


def _checkpointing(job: TrainingJob, storage: str, choose: Choices) -> Checkpointing:
    on_cpu = job.spec.compute.accelerator == "cpu"
    minutes = choose(
        "spec.checkpoint.intervalMinutes",
        job.spec.checkpoint.interval_minutes,
        lambda: (2.0, "short runs on CPUs") if on_cpu else (20.0, "the usual on GPUs"),
    )
    return Checkpointing(uri=storage, interval_seconds=minutes * 60, keep=job.spec.checkpoint.keep)
