"""What a job starts from: a preset, or weights that are looked at before anything starts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.recipes import TINY
from support.runs import dataset

from model.config import ModelConfig, Yarn
from model.recipe import Recipe
from model.transformer import CausalLM
from model.weights import write_weights
from orchestrator.errors import InvalidJob
from orchestrator.launch.resolve import resolve
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob

TOKENIZER = '{"model": {"vocab": {"a": 0}}, "version": "1.0"}'
FILE = "model-00001.safetensors"


def stored(folder: Path, config: ModelConfig = TINY) -> Path:
    made = CausalLM(config)
    made.initialise(3)
    write_weights(str(folder), config, made.state_dict().items(), TOKENIZER, write=True)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    sha256 = hashlib.sha256(TOKENIZER.encode()).hexdigest()
    return dataset(tmp_path / "data", vocabulary=257, sha256=sha256)


CONFIG = TINY.replace(vocab_size=300)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return stored(tmp_path / "weights", CONFIG)


def recipe(data: Path, model: dict[str, Any]) -> Recipe:
    spec = {
        "model": model,
        "data": {"source": str(data)},
        "training": {"tokens": 2_000_000, "globalBatchTokens": 8192},
        "compute": {"accelerator": "cpu", "workers": 2},
    }
    job = TrainingJob.model_validate({"metadata": {"name": "a"}, "spec": spec})
    settings = Settings.load({"FATHOM_HOME": "/nowhere"})
    return resolve(job, uid="u", attempt=1, incarnation="i", settings=settings, storage_uri="/nowhere/run").recipe


def refusal(data: Path, model: dict[str, Any]) -> str:
    with pytest.raises(InvalidJob) as caught:
        recipe(data, model)
    return "\n".join(f"{problem.path}: {problem.message}" for problem in caught.value.problems)


def test_the_weights_decide_the_architecture(data: Path, weights: Path) -> None:
    decided = recipe(data, {"initFrom": str(weights)})
    assert decided.model == CONFIG
    assert decided.init_from == str(weights)
    assert len(str(decided.init_fingerprint)) == 64


def test_a_runs_folder_stands_for_its_weights(data: Path, weights: Path) -> None:
    assert recipe(data, {"initFrom": str(weights.parent)}).init_from == str(weights)


def test_other_weights_have_another_fingerprint(data: Path, tmp_path: Path, weights: Path) -> None:
    first = recipe(data, {"initFrom": str(weights)}).init_fingerprint
    assert recipe(data, {"initFrom": str(weights)}).init_fingerprint == first
    tensors = load_file(weights / FILE)
    tensors["lm_head.weight"].add_(1e-3)
    save_file(tensors, weights / FILE)
    assert recipe(data, {"initFrom": str(weights)}).init_fingerprint != first


def test_released_yarn_stays(data: Path, tmp_path: Path) -> None:
    yarn = Yarn(factor=4.0, original_max_position_embeddings=512)
    extended = CONFIG.replace(yarn=yarn.model_dump(), max_position_embeddings=2048)
    decided = recipe(data, {"initFrom": str(stored(tmp_path / "long", extended))})
    assert decided.model.yarn == yarn
    assert decided.sequence_length == 2048


def test_overrides_that_leave_the_weights_as_they_are(data: Path, weights: Path) -> None:
    overrides = {"mtpDepth": 0, "maxPositions": 128, "routedScalingFactor": 2.0, "hiddenSize": 32}
    decided = recipe(data, {"initFrom": str(weights), "overrides": overrides}).model
    changed = {"num_nextn_predict_layers": 0, "max_position_embeddings": 128, "routed_scaling_factor": 2.0}
    assert decided == CONFIG.replace(**changed)


def test_overrides_that_would_not_fit_are_all_named(data: Path, weights: Path) -> None:
    told = refusal(data, {"initFrom": str(weights), "overrides": {"hiddenSize": 64, "experts": 16, "layers": 3}})
    assert "spec.model.overrides.hiddenSize: is 64, the weights of model.initFrom are made for 32" in told
    assert "spec.model.overrides.experts: is 16, the weights of model.initFrom are made for 8" in told
    assert "layers" not in told


def test_more_prediction_modules_than_are_there(data: Path, weights: Path) -> None:
    told = refusal(data, {"initFrom": str(weights), "overrides": {"mtpDepth": 2}})
    assert "spec.model.overrides.mtpDepth: 2 prediction modules are wanted" in told
    assert "mtpDepth=1" in told


def test_a_configuration_that_promises_modules_which_transformers_did_not_write(data: Path, weights: Path) -> None:
    tensors = {name: t for name, t in load_file(weights / FILE).items() if not name.startswith("model.layers.3.")}
    save_file(tensors, weights / FILE)
    index = json.loads((weights / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(tensors, FILE)
    (weights / "model.safetensors.index.json").write_text(json.dumps(index))
    told = refusal(data, {"initFrom": str(weights)})
    assert "1 prediction modules are wanted" in told
    assert "mtpDepth=0" in told
    decided = recipe(data, {"initFrom": str(weights), "overrides": {"mtpDepth": 0}})
    assert decided.model.num_nextn_predict_layers == 0


def test_preset_and_weights_must_agree(data: Path, weights: Path, tmp_path: Path) -> None:
    told = refusal(data, {"preset": "mini", "initFrom": str(weights)})
    assert told.startswith("spec.model.preset: mini is not the architecture in")
    # both values of every field that differs
    assert "hiddenSize 160 and 32" in told
    assert "vocabSize 4096 and 300" in told


def test_a_preset_that_agrees(data: Path, tmp_path: Path) -> None:
    from model.presets import preset

    size = {"vocab_size": 300, "num_hidden_layers": 2, "n_routed_experts": 8}
    folder = stored(tmp_path / "mini", preset("mini").replace(**size))
    overrides = {"vocabSize": 300, "layers": 2, "experts": 8}
    decided = recipe(data, {"preset": "mini", "initFrom": str(folder), "overrides": overrides})
    assert decided.model == preset("mini").replace(**size)


def test_neither_preset_nor_weights(data: Path) -> None:
    with pytest.raises(ValueError, match="is required: name an architecture, or weights to start from"):
        recipe(data, {})


def test_damaged_weights_are_refused_before_anything_starts(data: Path, weights: Path) -> None:
    whole = (weights / FILE).read_bytes()
    (weights / FILE).write_bytes(whole[:-1])
    told = refusal(data, {"initFrom": str(weights)})
    assert told.startswith(f"spec.model.initFrom: {weights} does not hold the weights")
    assert f"{FILE}: has {len(whole) - 1} bytes, its header describes {len(whole)}: cut off" in told


def test_another_vocabulary(data: Path, weights: Path) -> None:
    config = json.loads((weights / "config.json").read_text())
    (weights / "config.json").write_text(json.dumps(config | {"vocab_size": 301}))
    told = refusal(data, {"initFrom": str(weights)})
    assert "4 of another shape" in told  # the copies of the prediction module too
    assert "model.embed_tokens.weight has [300, 32], the model needs [301, 32]" in told


@pytest.mark.parametrize("break_it", ["no config", "bad config", "no files"])
def test_folders_that_are_no_weights(data: Path, weights: Path, break_it: str) -> None:
    if break_it == "no config":
        (weights / "config.json").unlink()
    elif break_it == "bad config":
        (weights / "config.json").write_text("{")
    else:
        (weights / "model.safetensors.index.json").unlink()
    told = refusal(data, {"initFrom": str(weights)})
    assert told.startswith("spec.model.initFrom: ")
    assert str(weights) in told


def test_a_tokenizer_must_be_the_datasets(data: Path, weights: Path) -> None:
    (weights / "tokenizer.json").write_text('{"model": {"vocab": {"b": 0}}}')
    told = refusal(data, {"initFrom": str(weights)})
    assert told.startswith("spec.data.source: ")
    assert f"--tokenizer {weights}/tokenizer.json" in told
    # the same tokens, written differently
    (data / "tokenizer.json").write_text(TOKENIZER)
    (weights / "tokenizer.json").write_text(json.dumps(json.loads(TOKENIZER), indent=2))
    assert recipe(data, {"initFrom": str(weights)}).init_from
    (weights / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(data, {"initFrom": str(weights)})


def test_weights_with_an_indexer(data: Path, weights: Path) -> None:
    config = json.loads((weights / "config.json").read_text())
    indexer = {"model_type": "deepseek_v32", "index_n_heads": 2, "index_head_dim": 8, "index_topk": 4}
    (weights / "config.json").write_text(json.dumps(config | indexer))
    assert "sparse-attention indexer of 2 heads" in refusal(data, {"initFrom": str(weights)})


def test_fp32_bits_start_the_run(weights: Path) -> None:
    """The engine's side: what the recipe names is what training begins with, and nothing else is."""
    from model.weights import load_weights

    made = CausalLM(CONFIG)
    made.initialise(3)
    again = CausalLM(CONFIG)
    load_weights(again, str(weights))
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="have changed since the job began"):
        load_weights(again, str(weights), "0" * 64)
