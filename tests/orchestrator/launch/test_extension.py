"""`task: extend-context`: what a phase chooses, and what it refuses."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.recipes import TINY
from support.runs import dataset

from model.config import ModelConfig, Yarn
from model.presets import preset
from model.transformer import CausalLM
from model.weights import write_weights
from orchestrator.errors import InvalidJob
from orchestrator.launch.choices import Choices
from orchestrator.launch.extension import extended
from orchestrator.launch.resolve import Resolved, resolve
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob

Patch = dict[str, Any]
TOKENIZER = '{"model": {"vocab": {"a": 0}}, "version": "1.0"}'
OLD = 64
CONFIG = TINY.replace(vocab_size=300, max_position_embeddings=OLD)
YARN = Yarn(factor=4, original_max_position_embeddings=OLD)


def stored(folder: Path, config: ModelConfig) -> str:
    made = CausalLM(config)
    made.initialise(3)
    write_weights(str(folder), config, made.state_dict().items(), TOKENIZER, write=True)
    return str(folder)


@pytest.fixture
def data(tmp_path: Path) -> str:
    sha256 = hashlib.sha256(TOKENIZER.encode()).hexdigest()
    return str(dataset(tmp_path / "data", vocabulary=257, sha256=sha256))


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return stored(tmp_path / "weights", CONFIG)


def job(
    data: str, weights: str | None, length: int | None = 2 * OLD, model: Patch | None = None, **training: object
) -> TrainingJob:
    spec = {
        "task": "extend-context",
        "model": {"initFrom": weights} | (model or {}),
        "data": {"source": data, "sequenceLength": length},
        "training": {"tokens": 2_000_000} | training,
        "compute": {"accelerator": "cpu", "workers": 2},
    }
    return TrainingJob.model_validate({"metadata": {"name": "a"}, "spec": spec})


def run(*arguments: Any, **more: Any) -> Resolved:  # noqa: ANN401
    settings = Settings.load({"FATHOM_HOME": "/nowhere"})
    made = job(*arguments, **more)
    return resolve(made, uid="u", attempt=1, incarnation="i", settings=settings, storage_uri="/nowhere/run")


def refusal(*arguments: Any, **more: Any) -> str:  # noqa: ANN401
    with pytest.raises(InvalidJob) as caught:
        run(*arguments, **more)
    return "\n".join(f"{problem.path}: {problem.message}" for problem in caught.value.problems)


# ------------------------------------------------------------------- what is chosen
def test_a_first_phase(data: str, weights: str) -> None:
    resolved = run(data, weights)
    recipe = resolved.recipe
    yarn = Yarn(factor=2, original_max_position_embeddings=OLD)
    assert recipe.model == CONFIG.replace(yarn=yarn, max_position_embeddings=2 * OLD)
    assert (recipe.init_from, recipe.sequence_length) == (weights, 2 * OLD)
    schedule = recipe.schedule
    highest = 2.2e-4 * (7168 / CONFIG.hidden_size) ** 0.5
    assert schedule.learning_rate == schedule.final_learning_rate == pytest.approx(highest / 30, rel=0.05)
    assert (schedule.warmup_steps, schedule.decay_start_step, schedule.decay_end_step) == (
        0,
        recipe.steps,
        recipe.steps,
    )
    assert recipe.balance.bias_update_speed == 0
    assert (recipe.multi_token.switch_step, recipe.multi_token.final_weight) == (0, 0.1)
    reasons = {choice.path: choice for choice in resolved.chosen}
    for field, value in {
        "training.extension.factor": "2.0",
        "training.extension.originalLength": "64",
        "training.extension.betaFast": "32.0",
        "training.extension.betaSlow": "1.0",
        "training.extension.mscale": "1.0",
        "training.schedule.learningRate": str(schedule.learning_rate),
        "training.schedule.warmupSteps": "0",
        "training.schedule.constantShare": "1.0",
        "training.balance.biasUpdateSpeed": "0.0",
        "training.mtp.switchShare": "0.0",
    }.items():
        assert reasons[f"spec.{field}"].value == value
        assert reasons[f"spec.{field}"].reason
    assert len(reasons) == len(resolved.chosen), "nothing is chosen twice"


def test_a_second_phase_keeps_the_first_ones_yarn_and_its_tokens_per_step(
    data: str, weights: str, tmp_path: Path
) -> None:
    first = run(data, weights, extension={"factor": 4.0, "betaFast": 16.0}).recipe
    second = run(data, stored(tmp_path / "first", first.model), 4 * OLD).recipe
    assert second.model.yarn == first.model.yarn == Yarn(factor=4, original_max_position_embeddings=OLD, beta_fast=16)
    assert second.model.max_position_embeddings == 4 * OLD
    assert second.batch_tokens == first.batch_tokens
    assert second.batch_sequences * 2 == first.batch_sequences


def test_what_is_given_stays(data: str, weights: str) -> None:
    schedule = {"learningRate": 1e-3, "finalLearningRate": 1e-4, "warmupSteps": 5, "decayShare": 0.25}
    yarn = {"factor": 8.0, "originalLength": 32, "betaFast": 4.0, "betaSlow": 2.0, "mscale": 0.5}
    recipe = run(data, weights, schedule=schedule, balance={"biasUpdateSpeed": 0.002}, extension=yarn).recipe
    assert recipe.model.yarn == Yarn(
        factor=8, original_max_position_embeddings=32, beta_fast=4, beta_slow=2, mscale=0.5, mscale_all_dim=0.5
    )
    assert (recipe.schedule.learning_rate, recipe.schedule.final_learning_rate) == (1e-3, 1e-4)
    assert (recipe.schedule.warmup_steps, recipe.schedule.decay_start_step) == (5, round(0.75 * recipe.steps))
    assert recipe.balance.bias_update_speed == 0.002


def test_deepseek_v3_itself() -> None:
    config = preset("v3-671b").replace(yarn=None, max_position_embeddings=4096)
    asked, choose = job("d", "w", 32_768, {"preset": "v3-671b"}), Choices()
    filled, first = extended(asked, config, (2.2e-4, "known"), choose)
    assert filled.spec.training.schedule.learning_rate == 7.3e-6
    assert first == config.replace(yarn=Yarn(factor=40), max_position_embeddings=32_768)
    _, second = extended(job("d", "w", 131_072), first, (2.2e-4, "known"), choose)
    assert second == preset("v3-671b").replace(max_position_embeddings=131_072)


def test_another_factor_than_the_weights_is_possible_and_said(data: str, tmp_path: Path) -> None:
    weights = stored(tmp_path / "first", CONFIG.stretched(2 * OLD, YARN))
    resolved = run(data, weights, 4 * OLD, extension={"factor": 6.0})
    assert resolved.recipe.model.yarn == YARN.model_copy(update={"factor": 6.0})
    [note] = [choice for choice in resolved.chosen if choice.path == "spec.training.extension.factor"]
    assert "trained with 4 " in note.reason


def test_pretraining_is_as_it_was(data: str, weights: str) -> None:
    choose = Choices()
    plain = job(data, weights).model_copy(deep=True)
    plain = plain.model_copy(update={"spec": plain.spec.model_copy(update={"task": "pretrain"})})
    assert extended(plain, CONFIG, (1e-3, ""), choose) == (plain, CONFIG)
    assert choose.made == []


# ------------------------------------------------------------------- what is refused
@pytest.mark.parametrize("length", [OLD, OLD - 1])
def test_a_length_that_is_not_longer(data: str, weights: str, length: int) -> None:
    told = refusal(data, weights, length)
    assert told.startswith(f"spec.data.sequenceLength: {length} is not above 64, ")
    assert "training.extension.originalLength" in told


def test_weights_that_were_trained_on_less_than_their_configuration_promises(data: str, weights: str) -> None:
    yarn = run(data, weights, OLD, extension={"originalLength": 16}).recipe.model.yarn
    assert yarn == Yarn(factor=4, original_max_position_embeddings=16)


def test_a_length_of_the_phase_before(data: str, tmp_path: Path) -> None:
    weights = stored(tmp_path / "first", CONFIG.stretched(2 * OLD, YARN))
    assert refusal(data, weights).startswith("spec.data.sequenceLength: 128 is not above 128, ")


def test_a_factor_that_covers_less(data: str, weights: str, tmp_path: Path) -> None:
    told = refusal(data, weights, 4 * OLD, extension={"factor": 3.0})
    assert told.startswith("spec.training.extension.factor: factor 3 makes 192 positions of 64, 256 are wanted")
    assert told.endswith("use a factor of 4")
    first = stored(tmp_path / "first", CONFIG.stretched(2 * OLD, YARN))
    told = refusal(data, first, 5 * OLD)
    assert "factor 4 makes 256 positions of 64, 320 are wanted: use a factor of 5" in told


def test_bounds_that_are_swapped(data: str, weights: str) -> None:
    told = refusal(data, weights, extension={"betaFast": 1.0, "betaSlow": 3.0})
    assert told == "spec.training.extension.betaFast: 1 is below betaSlow 3: swap them"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": None, "model": {"preset": "mini"}}, ["model.initFrom", "is required with task extend-context"]),
        ({"length": None}, ["data.sequenceLength", "is required with task extend-context"]),
        ({"model": {"overrides": {"maxPositions": 99}}}, ["model.overrides.maxPositions", "99", "128"]),
        ({"extension": {"factor": 1.0}}, ["'extension', 'factor'", "greater than 1"]),
    ],
)
def test_what_the_form_does_not_allow(change: Patch, words: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        job(**({"data": "d", "weights": "w"} | change))
    for word in words:
        assert word in str(caught.value.errors()[0])


def test_an_extension_of_another_task() -> None:
    spec = job("d", "w").model_dump(mode="json", by_alias=True)["spec"]
    spec |= {"task": "pretrain", "training": spec["training"] | {"extension": {}}}
    with pytest.raises(ValidationError, match="is for task extend-context, but task is pretrain"):
        TrainingJob.model_validate({"metadata": {"name": "a"}, "spec": spec})
