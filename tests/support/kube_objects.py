"""Small objects for tests that do not care what is in them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from orchestrator.kube.resources import Json, Target
from orchestrator.kube.writes import HASH_LABEL

CONFIG_MAPS = Target("", "v1", "configmaps", "ConfigMap")
_PATIENCE = 30.0


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
