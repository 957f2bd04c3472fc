"""TrainingJobs in a real API server, by plain HTTP."""

from __future__ import annotations

import copy
import json
from typing import Any

import httpx2

from orchestrator.spec import TrainingJob

Json = dict[str, Any]
NOW = "2026-06-01T12:00:00Z"


class KubeJobs:
    """Of one namespace. Answers are those of the server: tests look at them."""

    def __init__(self, client: httpx2.Client, namespace: str) -> None:
        self.client, self.namespace = client, namespace
        self._path = f"/apis/fathom.dev/v1alpha1/namespaces/{namespace}/trainingjobs"

    def post(self, document: Json, *, dry: bool = False) -> httpx2.Response:
        """As `kubectl create` does: a field that nobody knows is refused."""
        query = "?fieldValidation=Strict" + ("&dryRun=All" if dry else "")
        body = json.dumps(self.mine(document), allow_nan=False)
        return self.client.post(self._path + query, content=body, headers={"Content-Type": "application/json"})

    def mine(self, document: Json) -> Json:
        """The document for this namespace."""
        full = {"apiVersion": "fathom.dev/v1alpha1", "kind": "TrainingJob", **copy.deepcopy(document)}
        full["metadata"] = {**full["metadata"], "namespace": self.namespace}
        return full

    def create(self, document: Json) -> Json:
        answer = self.post(document)
        assert answer.status_code == 201, answer.text
        found: Json = answer.json()
        return found

    def get(self, name: str, **headers: str) -> Json:
        found: Json = self.client.get(f"{self._path}/{name}", headers=headers).json()
        return found

    def patch(self, name: str, change: Json, *, dry: bool = False, subresource: str = "") -> httpx2.Response:
        """A merge patch."""
        query = "?fieldValidation=Strict" + ("&dryRun=All" if dry else "")
        headers = {"Content-Type": "application/merge-patch+json"}
        return self.client.patch(f"{self._path}/{name}{subresource}{query}", json=change, headers=headers)

    def put(self, document: Json, *, dry: bool = False) -> httpx2.Response:
        query = "?fieldValidation=Strict" + ("&dryRun=All" if dry else "")
        return self.client.put(f"{self._path}/{document['metadata']['name']}{query}", json=document)

    def delete(self, name: str) -> httpx2.Response:
        """As kubectl does, without waiting."""
        return self.client.delete(f"{self._path}/{name}")

    def set_status(self, name: str, status: Json) -> httpx2.Response:
        """As the controller does."""
        return self.patch(name, {"status": status}, subresource="/status")

    def accept(self, name: str, **status: Any) -> Json:  # noqa: ANN401 - any part of a status
        """As the controller does with a job that can run."""
        condition = {"type": "Accepted", "status": "True", "reason": "Valid", "lastTransitionTime": NOW}
        answer = self.set_status(name, {"conditions": [condition]} | status)
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        return found


def faults(answer: httpx2.Response) -> dict[str, list[str]]:
    """What the server found wrong, by field."""
    assert answer.status_code == 422, answer.text
    found: dict[str, list[str]] = {}
    for cause in answer.json()["details"]["causes"]:
        found.setdefault(cause.get("field", ""), []).append(cause["message"])
    return found


def job_of(resource: Json) -> TrainingJob:
    """The job of a resource, without what Kubernetes keeps in its metadata."""
    metadata = {key: resource["metadata"][key] for key in ("name", "namespace")}
    return TrainingJob.model_validate(resource | {"metadata": metadata}, by_alias=True, by_name=False)
