"""What a platform team may say of its cluster, and what it may not."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from support.rendering import job, rendered

from orchestrator.launch.rayjob import ClusterSettings
from orchestrator.schema import structural_schema


def test_defaults_know_every_accelerator_that_a_job_may_name() -> None:
    from typing import get_args

    from orchestrator.spec import Compute

    named = get_args(Compute.model_fields["accelerator"].annotation)
    assert set(ClusterSettings().accelerators) == set(named)


def test_every_field_says_what_it_is_and_has_a_default() -> None:
    seen: list[str] = []

    def walk(model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            where = f"{model.__name__}.{name}"
            assert field.description, where
            seen.append(where)

    from orchestrator.launch.rayjob import placement, settings

    for module in (placement, settings):
        for one in vars(module).values():
            if isinstance(one, type) and issubclass(one, BaseModel) and one.__module__ == module.__name__:
                walk(one)
    assert {"Head.memory", "AcceleratorClass.per_node", "ClusterSettings.start_seconds"} <= set(seen)
    ClusterSettings()  # nothing is required


def test_settings_are_written_in_camel_case_and_read_back() -> None:
    found = ClusterSettings.model_validate({"images": {"requireDigest": False}, "startSeconds": 600})
    assert (found.images.require_digest, found.start_seconds) == (False, 600)
    assert ClusterSettings.model_validate(found.document()) == found


def test_the_charts_schema_can_be_made_of_them() -> None:
    schema = structural_schema(ClusterSettings)
    assert schema["properties"]["stopping"]["properties"]["leastSeconds"]["minimum"] == 10
    assert schema["properties"]["accelerators"]["additionalProperties"]["properties"]["perNode"]["description"]


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ({"rayVersion": "2.51.0"}, "rayVersion"),
        ({"rayVersion": "2.9.0"}, "rayVersion"),
        ({"rayVersion": "nightly"}, "rayVersion"),
        ({"startSeconds": 0}, "startSeconds"),
        ({"stopping": {"leastSeconds": 100, "mostSeconds": 50}}, "mostSeconds 50 is less than leastSeconds 100"),
        ({"accelerators": {"H100": {"network": "token-ring"}}}, "'token-ring'"),
        ({"labels": {"kueue.x-k8s.io/queue-name": "mine"}}, "reserved"),
        ({"labels": {"ray.io/cluster": "mine"}}, "reserved"),
        ({"labels": {"app.kubernetes.io/managed-by": "me"}}, "reserved"),
        ({"labels": {"example.com/a": "not a label"}}, "labels"),
        ({"networks": {"own": {"env": {"LD_PRELOAD": "/x.so"}}}}, "LD_PRELOAD"),
        ({"networks": {"own": {"resources": {"gpu": 1}}}}, "resources"),
        ({"isolation": {"egress": [{"cidr": "10.0.0.0/33"}]}}, "10.0.0.0/33"),
        ({"controller": {"tokenSeconds": 60}}, "tokenSeconds"),
        ({"head": {"memory": "4 GB"}}, "memory"),
        ({"priceClasses": {"Spot": {}}}, "Spot"),
        ({"topology": {"level": "rack"}}, "level"),
        ({"capabilities": ["IPC_LOCK"]}, "capabilities"),
    ],
)
def test_what_no_cluster_can_mean(document: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ClusterSettings.model_validate(document)
    assert word in str(caught.value)


@pytest.mark.parametrize("version", ["2.52.0", "2.60.0", "2.61.3", "2.100.0"])
def test_versions_of_ray_that_know_tokens(version: str) -> None:
    by = ClusterSettings.model_validate({"rayVersion": version, "images": {"train": "x", "requireDigest": False}})
    assert rendered(job(), by).ray_job["spec"]["rayClusterSpec"]["rayVersion"] == version
