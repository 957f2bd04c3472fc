from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError
from support.bad_documents import COMBINATIONS, CPU, NAMES, TAG_NAMES, VALUES, Bad

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


@pytest.mark.parametrize("bad", VALUES, ids=lambda bad: bad.path)
def test_bad_values_are_refused_at_their_field(bad: Bad) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingJob.model_validate(bad.document, by_alias=True, by_name=False)
    [error] = caught.value.errors()
    assert ".".join(str(part) for part in error["loc"]) == bad.path


@pytest.mark.parametrize("name", NAMES)
def test_bad_names(name: str) -> None:
    with pytest.raises(ValidationError):
        TrainingJob.model_validate(document() | {"metadata": {"name": name}})


@pytest.mark.parametrize("name", TAG_NAMES)
def test_bad_names_of_tags(name: str) -> None:
    with pytest.raises(ValidationError):
        parse(tracking={"tags": {name: "x"}})


@pytest.mark.parametrize("bad", COMBINATIONS, ids=lambda bad: bad.path)
def test_impossible_combinations_name_the_field_and_both_numbers(bad: Bad) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingJob.model_validate(bad.document, by_alias=True, by_name=False)
    [error] = caught.value.errors()
    assert error["type"] == "combination"
    at = ".".join(str(part) for part in error["loc"])
    assert f"{at}.{error['ctx']['field']}" == bad.path
    for word in bad.words:
        assert word in error["msg"]


def test_fewer_gpus_than_a_machine_has_are_fine() -> None:
    job = parse(compute={"accelerator": "H100", "gpus": 2, "gpusPerNode": 8})
    assert job.spec.compute.world_size == 2
