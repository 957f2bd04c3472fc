from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError

from model.config import ModelConfig
from model.recipe import Anomalies
from orchestrator.plan.hardware import accelerator
from orchestrator.spec import Compute, TrainingJob
from orchestrator.spec_model import MODEL_FIELDS, ModelOverrides

SAMPLES = Path(__file__).parents[2] / "k8s" / "samples"
NOT_OVERRIDABLE = {
    # the kind of routing, which follows the preset's family
    "scoring_func", "topk_method", "norm_topk_prob",
    # counted, not trainable
    "index_n_heads", "index_head_dim", "index_topk",
    # objects and constants
    "yarn", "tie_word_embeddings", "rms_norm_eps",
}  # fmt: skip
CPU: dict[str, Any] = {"accelerator": "cpu", "workers": 4}


def document(**spec: Any) -> dict[str, Any]:  # noqa: ANN401 - hostile values are the point
    parts = {
        "model": {"preset": "mini"},
        "data": {"source": "runs/data"},
        "training": {"tokens": 1000},
        "compute": CPU,
    }
    return {"metadata": {"name": "mini"}, "spec": parts | spec}


def parse(**spec: Any) -> TrainingJob:  # noqa: ANN401 - hostile values are the point
    return TrainingJob.model_validate(document(**spec))


def test_every_field_of_the_model_is_overridable_or_named_here() -> None:
    assert set(MODEL_FIELDS.values()) | NOT_OVERRIDABLE == set(ModelConfig.model_fields)
    assert not set(MODEL_FIELDS.values()) & NOT_OVERRIDABLE
    assert set(MODEL_FIELDS) == set(ModelOverrides.model_fields)
    assert len(set(MODEL_FIELDS.values())) == len(MODEL_FIELDS)


def test_overrides_become_changes_of_the_configuration() -> None:
    overrides = ModelOverrides(layers=8, query_rank=0, experts_per_token=2, rope_theta=5e4)
    assert overrides.config_changes() == {
        "num_hidden_layers": 8,
        "q_lora_rank": None,
        "num_experts_per_tok": 2,
        "rope_theta": 5e4,
    }
    assert ModelOverrides().config_changes() == {}


def test_every_accelerator_is_known_to_the_planner() -> None:
    names = get_args(Compute.model_fields["accelerator"].annotation)
    assert names[0] == "cpu"
    for name in names[1:]:
        assert accelerator(name).name == name


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_samples_survive_the_round_trip(path: Path) -> None:
    job = TrainingJob.model_validate(yaml.safe_load(path.read_text()))
    assert TrainingJob.model_validate(job.document()) == job
    assert TrainingJob.model_validate_json(job.model_dump_json()) == job


def test_defaults() -> None:
    job = parse()
    assert job.metadata.namespace == "default"
    assert job.spec.training.optimizer.weight_decay == 0.1
    assert job.spec.training.global_batch_tokens is None
    assert job.spec.compute.world_size == 4
    assert job.spec.budget is None


def test_defaults_of_anomalies_are_those_of_the_recipe() -> None:
    ours, theirs = parse().spec.training.anomalies.model_dump(by_alias=False), Anomalies().model_dump()
    assert ours == {name: theirs[name] for name in ours}
    assert set(theirs) - set(ours) == {"minimum"}


def test_jobs_are_values() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(parse().spec.training, "tokens", 5)  # noqa: B010 - mypy would refuse the plain assignment


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"training": {"tokens": "1000"}}, "spec.training.tokens"),
        ({"training": {"tokens": True}}, "spec.training.tokens"),
        ({"training": {"tokens": 1000.0}}, "spec.training.tokens"),
        ({"training": {"tokens": 0}}, "spec.training.tokens"),
        ({"training": {"tokens": 10**16}}, "spec.training.tokens"),
        ({"training": {"tokens": 1, "precision": "fp4"}}, "spec.training.precision"),
        ({"training": {"tokens": 1, "mtp": {"weight": float("nan")}}}, "spec.training.mtp.weight"),
        ({"notify": {"url": "ftp://x.test/"}}, "spec.notify.url"),
        ({"notify": {"url": "https://user:secret@x.test/"}}, "spec.notify.url"),
        ({"notify": {"url": "https://x.test/a b"}}, "spec.notify.url"),
        ({"notify": {"url": "https://x.test/", "when": []}}, "spec.notify.when"),
        ({"notify": {"url": "https://x.test/", "when": ["ended", "ended"]}}, "spec.notify"),
        ({"notify": {"url": "https://x.test/", "when": ["started"]}}, "spec.notify.when.0"),
        ({"budget": {"limit": 5.0}}, "spec.budget.limit"),
        ({"budget": {"limit": "-5"}}, "spec.budget.limit"),
        ({"budget": {"limit": "5", "warnAt": [0.0]}}, "spec.budget.warnAt.0"),
        ({"budget": {"limit": "5", "warnAt": [1.0]}}, "spec.budget.warnAt.0"),
        ({"budget": {"limit": "5", "warnAt": ["0.5"]}}, "spec.budget.warnAt.0"),
        ({"budget": {"limit": "5", "warnAt": [0.01 * n for n in range(1, 12)]}}, "spec.budget.warnAt"),
        ({"budget": {"limit": "1e5"}}, "spec.budget.limit"),
        ({"budget": {"limit": "5", "currency": "usd"}}, "spec.budget.currency"),
        ({"data": {"source": "a\nb"}}, "spec.data.source"),
        ({"data": {"source": ""}}, "spec.data.source"),
        ({"model": {"preset": "../x"}}, "spec.model.preset"),
        ({"model": {"preset": "mini", "overrides": {"size": 1}}}, "spec.model.overrides.size"),
        ({"compute": CPU | {"memoryPerWorker": "2GB"}}, "spec.compute.memoryPerWorker"),
        ({"compute": CPU | {"image": "a b; rm -rf /"}}, "spec.compute.image"),
        ({"parallelism": {"zeroStage": 4}}, "spec.parallelism.zeroStage"),
        ({"parallelism": {"pipeline": 0}}, "spec.parallelism.pipeline"),
        ({"retry": {"stallMinutes": 0.04}}, "spec.retry.stallMinutes"),
        ({"retry": {"stallMinutes": 1441}}, "spec.retry.stallMinutes"),
        ({"training": {"tokens": 1, "anomalies": {"action": "ignore"}}}, "spec.training.anomalies.action"),
        ({"training": {"tokens": 1, "anomalies": {"window": 3}}}, "spec.training.anomalies.window"),
        ({"tracking": {"tags": {f"t{n}": "x" for n in range(33)}}}, "spec.tracking.tags"),
        ({"tracking": {"tags": {"a": 1}}}, "spec.tracking.tags.a"),
        ({"suspend": "yes"}, "spec.suspend"),
        ({"initFrom": "x"}, "spec.initFrom"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_at_their_field(spec: dict[str, Any], path: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(**spec)
    [error] = caught.value.errors()
    assert ".".join(str(part) for part in error["loc"]) == path


@pytest.mark.parametrize("name", ["a" * 41, "", "1a", "a_b", "A", "a-", "a\n", "a.b"])
def test_bad_names(name: str) -> None:
    with pytest.raises(ValidationError):
        TrainingJob.model_validate(document() | {"metadata": {"name": name}})


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"compute": {"accelerator": "cpu"}}, "workers", ["required"]),
        ({"compute": CPU | {"gpus": 8}}, "gpus", ["8", "cpu"]),
        ({"compute": CPU | {"gpusPerNode": 8}}, "gpusPerNode", ["8", "cpu"]),
        ({"compute": {"accelerator": "H100"}}, "gpus", ["required", "H100"]),
        ({"compute": {"accelerator": "H100", "gpus": 8, "workers": 2}}, "workers", ["2", "H100"]),
        ({"compute": {"accelerator": "H100", "gpus": 12, "gpusPerNode": 8}}, "gpus", ["12", "8", "16"]),
        ({"parallelism": {"expert": 3}}, "parallelism.expert", ["3", "4", "1, 2, 4"]),
        (
            {"parallelism": {"expert": 4}, "model": {"preset": "mini", "overrides": {"experts": 6}}},
            "parallelism.expert",
            ["4", "6"],
        ),
        ({"training": {"tokens": 100, "globalBatchTokens": 200}}, "training.tokens", ["100", "200"]),
        ({"storage": {"secretRef": "a", "claim": "b"}}, "claim", ["'a'", "'b'"]),
        ({"budget": {"limit": "0.00"}}, "limit", ["0.00"]),
        ({"budget": {"limit": "5", "warnAt": [0.5, 0.4]}}, "warnAt", ["0.4", "0.5", "rising order"]),
        ({"budget": {"limit": "5", "warnAt": [0.5, 0.5]}}, "warnAt", ["0.5", "once"]),
        ({"tracking": {"tags": {"mlflow.user": "x"}}}, "tags.mlflow.user", ["reserved"]),
        (
            {"training": {"tokens": 1, "schedule": {"constantShare": 0.7, "decayShare": 0.5}}},
            "decayShare",
            ["0.5", "0.7", "1.2"],
        ),
        (
            {"training": {"tokens": 1, "schedule": {"learningRate": 0.1, "finalLearningRate": 0.2}}},
            "finalLearningRate",
            ["0.2", "0.1"],
        ),
        (
            {"training": {"tokens": 1, "optimizer": {"momentsPrecision": "bf16", "beta2": 0.999}}},
            "beta2",
            ["0.999", "0.99"],
        ),
    ],
)
def test_impossible_combinations_name_the_field_and_both_numbers(
    spec: dict[str, Any], field: str, words: list[str]
) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(**spec)
    [error] = caught.value.errors()
    assert error["type"] == "combination"
    assert error["ctx"]["field"] == field
    for word in words:
        assert word in error["msg"]


def test_fewer_gpus_than_a_machine_has_are_fine() -> None:
    job = parse(compute={"accelerator": "H100", "gpus": 2, "gpusPerNode": 8})
    assert job.spec.compute.world_size == 2
