"""Values that cannot be meant are refused before anything is made, in words that name them."""

from __future__ import annotations

from typing import Any

import pytest
from support.helm import DIGEST, Helm


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replica": 2}, ["additional properties 'replica' not allowed"]),
        ({"replicas": 9}, ["'/replicas'", "maximum: got 9, want 5"]),
        ({"replicas": "two"}, ["'/replicas'", "got string, want integer"]),
        ({"replicas": 2}, ["replicas is 2", "one node only", "persistence.accessMode=ReadWriteMany"]),
        ({"persistence": {"accessMode": "ReadOnlyMany"}}, ["'/persistence/accessMode'", "'ReadWriteMany'"]),
        ({"persistence": {"size": "much"}}, ["'/persistence/size'", "'much' does not match pattern"]),
        ({"images": {"controller": None}}, ["images.controller: none is published", "controller.Dockerfile"]),
        ({"images": {"tracking": None}}, ["images.tracking: none is published"]),
        ({"images": {"controller": "r.example.com/c:latest"}}, ['"r.example.com/c:latest"', "requireDigest=false"]),
        ({"images": {"controller": f"r.example.com/c{DIGEST[:-1]}"}}, ["is not named by digest"]),
        ({"images": {"tracking": "a b"}}, ["'/images/tracking'", "'a b' does not match pattern"]),
        ({"serviceAccount": {"create": False}}, ["serviceAccount.name: name yours"]),
        ({"metrics": {"serviceMonitor": {"enabled": True}}}, ["metrics.serviceMonitor.tokenSecret"]),
        ({"mlflow": {"trackingUri": "mlflow:5000"}}, ["'/mlflow/trackingUri'"]),
        ({"mlflow": {"allowedHosts": ["*"]}}, ["'/mlflow/allowedHosts/0'", "'*' does not match pattern"]),
        ({"watchNamespaces": ["Team A"]}, ["'/watchNamespaces/0'", "'Team A'"]),
        ({"env": {"1BAD": "x"}}, ["'/env'", "'1BAD'"]),
        ({"service": {"port": 70000}}, ["'/service/port'", "maximum: got 70,000, want 65,535"]),
        ({"prices": [{"accelerator": "H100"}]}, ["'/prices/0'", "missing properties", "'amount'"]),
        ({"budgets": [{"team": "a", "limit": "1 000", "currency": "USD"}]}, ["'/budgets/0/limit'", "'1 000'"]),
        ({"cluster": {"images": {"train": "x"}}}, ["'/cluster'", "additional properties 'images' not allowed"]),
        ({"cluster": {"controller": {"port": 1}}}, ["'/cluster/controller'", "'port' not allowed"]),
        ({"cluster": {"rayVersion": "2.9.0"}}, ["'/cluster/rayVersion'", "'2.9.0'"]),
        ({"cluster": {"accelerators": {"H100": {"gpus": 8}}}}, ["'/cluster/accelerators/H100'", "'gpus' not allowed"]),
        ({"cluster": {"networks": {"own": {"env": {"LD_PRELOAD": "x"}}}}}, ["'/cluster/networks/own/env'"]),
        ({"cluster": {"stopping": {"leastSeconds": 1}}}, ["minimum: got 1, want 10"]),
    ],
    ids=str,
)
def test_refused(helm: Helm, values: dict[str, Any], words: list[str]) -> None:
    said = helm.refused(values)
    for word in words:
        assert word in said, said


def test_tags_may_be_tried_out(helm: Helm) -> None:
    names = {"controller": "fathom-controller:dev", "tracking": "fathom-tracking:dev", "requireDigest": False}
    [cluster] = [one for one in helm.rendered({"images": names}) if one["metadata"]["name"] == "fathom-settings"]
    assert "requireDigest: false" in cluster["data"]["cluster.yaml"], "jobs may try them, too"
