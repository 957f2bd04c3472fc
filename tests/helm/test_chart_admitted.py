"""A real API server takes what the chart makes, and the samples; its pods where only restricted ones may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.apiserver import ApiServer
from support.chart_cases import CASES
from support.discovery import Kinds
from support.helm import Helm, Object, merged, pod_specs

pytestmark = pytest.mark.kube
K8S = Path(__file__).parents[2] / "k8s"
DOCUMENTS = sorted([*K8S.glob("samples/**/*.yaml"), *K8S.glob("rbac/*.yaml")])


def _here(value: dict[str, Any], namespace: str) -> dict[str, Any]:
    """Values for namespaces that there are."""
    return merged(value, {"watchNamespaces": [namespace]}) if "watchNamespaces" in value else value


def _admitted(server: ApiServer, spec: Object, namespace: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "trial"}}
    pod["spec"] = {**spec, "restartPolicy": spec.get("restartPolicy", "Always")}
    # no such class is needed to be let in
    pod["spec"].pop("priorityClassName", None)
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    answer = server.client().post(f"/api/v1/namespaces/{namespace}/pods", json=pod, params=query)
    assert answer.status_code == 201, answer.text
    assert "Warning" not in answer.headers


@pytest.mark.parametrize("name", CASES)
def test_all_that_the_chart_makes(operated: ApiServer, kinds: Kinds, restricted: str, helm: Helm, name: str) -> None:
    objects = helm.rendered(_here(CASES[name], restricted), restricted)
    for one in objects:
        answer = kinds.try_out(one, restricted)
        assert answer.status_code in (200, 201), f"{one['kind']} {one['metadata']['name']}: {answer.text}"
        assert "Warning" not in answer.headers
    for spec in pod_specs(objects).values():
        _admitted(operated, spec, restricted)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_all_that_people_are_given_to_start_from(
    operated: ApiServer, kinds: Kinds, restricted: str, path: Path
) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    for one in documents:
        if one["metadata"].get("namespace") is not None:
            one["metadata"]["namespace"] = restricted
        answer = kinds.try_out(one, restricted)
        assert answer.status_code in (200, 201), f"{one['kind']}: {answer.text}"
        assert "Warning" not in answer.headers
    for spec in pod_specs(documents).values():
        _admitted(operated, spec, restricted)


def test_a_mistake_would_be_seen(kinds: Kinds, restricted: str, helm: Helm) -> None:
    [claim, *_] = [one for one in helm.rendered({}, restricted) if one["kind"] == "PersistentVolumeClaim"]
    claim["spec"]["acessModes"] = claim["spec"].pop("accessModes")
    assert "acessModes" in kinds.try_out(claim, restricted).text
