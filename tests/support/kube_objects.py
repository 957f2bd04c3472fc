"""Small objects for tests that do not care what is in them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from orchestrator.kube.client import Kube, Timeouts
from orchestrator.kube.resources import Json, Target
from orchestrator.kube.writes import HASH_LABEL

CONFIG_MAPS = Target("", "v1", "configmaps", "ConfigMap")
_PATIENCE = 120.0
PATIENT = Timeouts(connect=60.0, read=60.0)
"""Of requests whose limit no test is about: a server on a busy machine takes its time, and is not away."""


def config_map(namespace: str, name: str, **data: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": namespace, "name": name, "labels": {"of": "test"}},
        "data": data,
    }


def owned(namespace: str, name: str, owner: str, content: str = "a1", **data: str) -> Json:
    """As the controller makes its objects: with an owner and a hash."""
    body = config_map(namespace, name, **data)
    reference = {
        "apiVersion": "fathom.dev/v1alpha1",
        "kind": "TrainingJob",
        "name": "j",
        "uid": owner,
        "controller": True,
    }
    body["metadata"] |= {"ownerReferences": [reference], "labels": {HASH_LABEL: content}}
    return body


def until(true: Callable[[], Any], why: Callable[[], object] = lambda: "it never came") -> Any:  # noqa: ANN401
    """-> what it returned when it was true at last."""
    end = time.monotonic() + _PATIENCE
    while not (found := true()):
        assert time.monotonic() < end, why()
        time.sleep(0.01)
    return found


class World:
    """Changes ConfigMaps behind the back of whoever watches them."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube, self.namespace = kube, namespace

    def make(self, name: str, **data: str) -> None:
        self.kube.create(CONFIG_MAPS.at(self.namespace, name), config_map(self.namespace, name, **data))

    def change(self, name: str, **data: str) -> None:
        self.kube.patch(CONFIG_MAPS.at(self.namespace, name), {"data": data}, "merge")

    def remove(self, name: str) -> None:
        self.kube.delete(CONFIG_MAPS.at(self.namespace, name), {})

    def truth(self) -> dict[str, str]:
        return versions(self.kube.get(CONFIG_MAPS.at(self.namespace))["items"])


def versions(found: list[Json]) -> dict[str, str]:
    return {one["metadata"]["name"]: one["metadata"]["resourceVersion"] for one in found}
