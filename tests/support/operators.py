"""The definitions of KubeRay's and Kueue's resources, for an API server without those operators."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx2
import yaml

Object = dict[str, Any]

NOT_RUN = "needs the resource definitions of KubeRay and Kueue: name their folder in FATHOM_TEST_CRDS"
"""Why a test was skipped; tests/conftest.py counts these at the end."""
PATHS = {
    "ConfigMap": "api/v1/namespaces/{}/configmaps",
    "NetworkPolicy": "apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "Pod": "api/v1/namespaces/{}/pods",
    "RayJob": "apis/ray.io/v1/namespaces/{}/rayjobs",
    "Secret": "api/v1/namespaces/{}/secrets",
    "ServiceAccount": "api/v1/namespaces/{}/serviceaccounts",
}


def definitions(env: Mapping[str, str] = os.environ) -> list[Object] | None:
    """All of the folder that the environment names; None if it names none.

    Of each the version that is stored only, which is the one that we use: a server takes half of the time then.
    """
    named = env.get("FATHOM_TEST_CRDS")
    if not named:
        return None
    files = sorted(Path(named).glob("*.yaml"))
    found = [one for file in files for one in yaml.load_all(file.read_text(), yaml.CSafeLoader) if one]
    names = {one["metadata"]["name"] for one in found}
    missing = {"rayjobs.ray.io", "rayclusters.ray.io", "workloads.kueue.x-k8s.io"} - names
    assert not missing, f"FATHOM_TEST_CRDS is {named}, which lacks {', '.join(sorted(missing))}"
    for one in found:
        one["spec"]["versions"] = [version for version in one["spec"]["versions"] if version["storage"]]
        one["spec"].pop("conversion", None)
    return found


def not_run(reasons: Iterable[str]) -> str:
    """What is to be said loudly at the end, of the reasons why tests were skipped; "" if nothing."""
    count = sum(NOT_RUN in reason for reason in reasons)
    return f"{count} tests of rendered RayJobs did NOT run: set FATHOM_TEST_CRDS" if count else ""


def create(client: httpx2.Client, made: Object, namespace: str) -> httpx2.Response:
    """POST as the controller does, but in another namespace; fields that the server does not know are errors."""
    body = made | {"metadata": made["metadata"] | {"namespace": namespace}}
    path = PATHS[made["kind"]].format(namespace)
    return client.post(f"/{path}", json=body, params={"fieldValidation": "Strict"})
