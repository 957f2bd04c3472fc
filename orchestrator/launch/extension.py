"""`task: extend-context`: one phase of training weights for longer sequences. Called by `launch.choose` only.

After DeepSeek-V3 (arXiv 2412.19437, section 4.3): YaRN on the decoupled key, 1000 steps of 1920 sequences of 32K
tokens, then 1000 steps of 480 of 128K, both with one YaRN and at the rate that pre-training had ended with. Here each
phase is a job; the second starts from the weights of the first. Invariant: only what the job leaves open is chosen.
"""

from __future__ import annotations

import math

from pydantic import ValidationError

from model.config import ModelConfig, Yarn
from model.presets import preset
from orchestrator.launch.choices import Choice, Choices, refusal
from orchestrator.spec import Extension, TrainingJob

_RATE_DIVISOR = 30
"""2.2e-4 / 7.3e-6: the highest rate of DeepSeek-V3's pre-training over the last, which the extension keeps."""
_FIELDS = "spec.training.extension"


def extended(
    job: TrainingJob, config: ModelConfig, highest: tuple[float, str], choose: Choices
) -> tuple[TrainingJob, ModelConfig]:
    """The job with what this task chooses for its open fields, and the model for longer sequences.

    `config` is that of the weights, `highest` the highest learning rate of pre-training and why it is that. A job of
    another task comes back as it is. InvalidJob names the fields and the numbers.
    """
    sequence = job.spec.data.sequence_length
    if job.spec.task != "extend-context" or sequence is None:
        return job, config
    yarn = _yarn(job, config, sequence, choose)
    _require_longer(sequence, config, yarn)
    try:
        return _filled(job, highest, choose), config.stretched(sequence, yarn)
    except ValidationError as error:
        raise refusal("training.extension", str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
    except ValueError as error:
        raise refusal("training.extension.factor", str(error)) from None


def _yarn(job: TrainingJob, config: ModelConfig, sequence: int, choose: Choices) -> Yarn:
    """Given fields as they are; others as the weights have them, else the preset, else by rule."""
    wanted, own = job.spec.training.extension or Extension(), config.yarn
    known, whose = own, "as the weights have it, which were trained with it"
    if own is None and job.spec.model.preset is not None:
        known, whose = preset(job.spec.model.preset).yarn, f"as {job.spec.model.preset} ends with it"

    def original() -> tuple[int, str]:
        if own is not None:
            return own.original_max_position_embeddings, whose
        return config.max_position_embeddings, "max_position_embeddings in the weights' config.json"

    length = choose(f"{_FIELDS}.originalLength", wanted.original_length, original)

    def covering() -> tuple[float, str]:
        if known is not None:
            return known.factor, f"{whose}; one factor for all phases"
        return float(max(2, math.ceil(sequence / length))), f"{sequence} / {length} tokens, rounded up"

    factor = choose(f"{_FIELDS}.factor", wanted.factor, covering)
    if own is not None and factor != own.factor:
        note = f"given; the weights were trained with {own.factor:g} and have to get used to it"
        choose.made.append(Choice(path=f"{_FIELDS}.factor", value=str(factor), reason=note))
    usual, why = (known, whose) if known is not None else (Yarn(factor=factor), "as in DeepSeek-V3")
    fast = choose(f"{_FIELDS}.betaFast", wanted.beta_fast, lambda: (usual.beta_fast, why))
    slow = choose(f"{_FIELDS}.betaSlow", wanted.beta_slow, lambda: (usual.beta_slow, why))
    sharper = choose(f"{_FIELDS}.mscale", wanted.mscale, lambda: (usual.mscale_all_dim, why))
    try:
        return Yarn(
            factor=factor,
            original_max_position_embeddings=length,
            beta_fast=fast,
            beta_slow=slow,
            mscale=usual.mscale if wanted.mscale is None else sharper,
            mscale_all_dim=sharper,
        )
    except ValidationError:
        raise refusal("training.extension.betaFast", f"{fast:g} is below betaSlow {slow:g}: swap them") from None


def _require_longer(sequence: int, config: ModelConfig, yarn: Yarn) -> None:
    trained = config.max_position_embeddings if config.yarn else yarn.original_max_position_embeddings
    if sequence > trained:
        return
    hint = "" if config.yarn else "; if they saw shorter sequences only, give training.extension.originalLength"
    raise refusal(
        "data.sequenceLength",
        f"{sequence} is not above {trained}, the length that the weights of model.initFrom are for: raise it{hint}",
    )


def _filled(job: TrainingJob, highest: tuple[float, str], choose: Choices) -> TrainingJob:
    """The job with a constant learning rate, resting biases and the last weight of multi-token prediction."""
    training = job.spec.training
    wanted, path = training.schedule, "spec.training.schedule"
    most, why = highest
    rate = choose(
        f"{path}.learningRate",
        wanted.learning_rate,
        lambda: (float(f"{most / _RATE_DIVISOR:.2g}"), f"a {_RATE_DIVISOR}th of {most} ({why}), as in DeepSeek-V3"),
    )
    constant = 1.0 - (wanted.decay_share or 0.0)
    given = {
        "learning_rate": rate,
        "final_learning_rate": choose(
            f"{path}.finalLearningRate", wanted.final_learning_rate, lambda: (rate, "constant, as in DeepSeek-V3")
        ),
        "warmup_steps": choose(f"{path}.warmupSteps", wanted.warmup_steps, lambda: (0, "pre-training had it")),
        "constant_share": choose(f"{path}.constantShare", wanted.constant_share, lambda: (constant, "no decay")),
    }
    resting = choose(
        "spec.training.balance.biasUpdateSpeed",
        training.balance.bias_update_speed,
        lambda: (0.0, "biases rest, as since the end of pre-training in DeepSeek-V3"),
    )
    switch = choose("spec.training.mtp.switchShare", None, lambda: (0.0, "finalWeight, as at the end of pre-training"))
    changed = training.model_copy(
        update={
            "schedule": wanted.model_copy(update=given),
            "balance": training.balance.model_copy(update={"bias_update_speed": resting}),
            "mtp": training.mtp.model_copy(update={"switch_share": switch}),
        }
    )
    return job.model_copy(update={"spec": job.spec.model_copy(update={"training": changed})})
