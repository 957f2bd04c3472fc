"""A driver in its pod, as controllers that are processes hear of it: by deliveries, with the pod's own token."""

from __future__ import annotations

import time
from typing import Any

import httpx2

from orchestrator.launch.delivery import PATH, Delivery
from orchestrator.launch.rayjob.names import attempt_name
from support.apiserver import ApiServer
from support.controller_process import ControllerProcess
from support.kube_people import KubePeople
from support.runs import event


class KubeDriver:
    """Of one attempt, in the head's pod of this Ray cluster."""

    def __init__(self, server: ApiServer, job: dict[str, Any], attempt: int, cluster: str) -> None:
        """`job`: the TrainingJob's metadata."""
        self._job, self._attempt, self._cluster, self._seq = job, attempt, cluster, 0
        place, account = job["namespace"], attempt_name(job["name"], attempt)
        pod = server.client().get(f"/api/v1/namespaces/{place}/pods/{cluster}-head").json()
        self._token = KubePeople(server).token(place, account, "fathom-controller", pod=pod)

    def tells(self, controller: ControllerProcess, kind: str, **fields: Any) -> httpx2.Response:  # noqa: ANN401
        """One more event."""
        self._seq += 1
        about = {"job": self._job["uid"], "attempt": self._attempt, "incarnation": self._cluster}
        told = event(kind, time.time(), seq=self._seq, **about, **fields)
        delivery = Delivery(namespace=self._job["namespace"], name=self._job["name"], events=(told,), **about)
        headers = {"Authorization": f"Bearer {self._token}"}
        body = delivery.model_dump(mode="json", by_alias=True)
        return httpx2.post(controller.url + PATH, headers=headers, json=body, timeout=30, trust_env=False)
