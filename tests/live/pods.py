"""When pods of a namespace held a node, seen from outside: what the ledger is compared with."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self

from live.kubectl import kubectl, say

Json = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """One pod. Times are unix seconds."""

    name: str
    uid: str
    job: str
    attempt: int
    kind: str
    """head, worker or submitter."""
    scheduled: float | None = None
    gone: float | None = None


class PodWatch:
    """Until it is left; begun before the first pod."""

    def __init__(self, namespace: str) -> None:
        self._path, self._pods = f"/api/v1/namespaces/{namespace}/pods", dict[str, Seen]()
        self._process: subprocess.Popen[str] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._process is not None:
            self._process.terminate()
        self._thread.join()

    def of(self, job: str) -> list[Seen]:
        """All pods that a job has had, in the order in which they were placed."""
        found = [one for one in list(self._pods.values()) if one.job == job]
        return sorted(found, key=lambda one: one.scheduled or float("inf"))

    def _follow(self) -> None:
        """An API server ends every watch after half an hour to an hour: from a new list on, then."""
        while not self._over.is_set():
            try:
                listed = json.loads(kubectl("get", "--raw", self._path))
            except SystemExit as error:  # it is busy, or away for a moment
                say(str(error))
                self._over.wait(1)
                continue
            self._took(listed["items"])
            path = f"{self._path}?watch=1&resourceVersion={listed['metadata']['resourceVersion']}"
            with subprocess.Popen(["kubectl", "get", "--raw", path], stdout=subprocess.PIPE, text=True) as process:
                self._process = process
                if self._over.is_set():
                    process.terminate()
                assert process.stdout is not None
                for line in process.stdout:
                    event = json.loads(line)
                    if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                        self._take(event["object"], gone=event["type"] == "DELETED")

    def _took(self, pods: list[Json]) -> None:
        """All that there are: what was known and is not among them has gone meanwhile."""
        there = {pod["metadata"]["uid"] for pod in pods}
        for uid, seen in self._pods.items():
            if uid not in there and seen.gone is None:
                self._pods[uid] = replace(seen, gone=time.time())
        for pod in pods:
            self._take(pod, gone=False)

    def _take(self, pod: Json, *, gone: bool) -> None:
        metadata, labels = pod["metadata"], pod["metadata"].get("labels", {})
        if "fathom.dev/job" not in labels:
            return
        kind = labels.get("ray.io/node-type", "submitter")
        own = Seen(metadata["name"], metadata["uid"], labels["fathom.dev/job"], int(labels["fathom.dev/attempt"]), kind)
        found = self._pods.get(own.uid, own)
        for condition in pod["status"].get("conditions", []):
            if (condition["type"], condition["status"]) == ("PodScheduled", "True"):
                since = datetime.fromisoformat(condition["lastTransitionTime"])
                found = replace(found, scheduled=since.timestamp())
        if found.gone is None:
            found = replace(found, gone=time.time() if gone else _let_go(pod["status"]))
        self._pods[own.uid] = found


def _let_go(status: Json) -> float | None:
    """When all its containers had ended for good, by which its node has its resources again."""
    if status.get("phase") not in ("Succeeded", "Failed"):
        return None
    ends = [one["state"].get("terminated", {}).get("finishedAt") for one in status.get("containerStatuses", [])]
    return max((datetime.fromisoformat(end).timestamp() for end in ends if end), default=time.time())


def held_seconds(pods: list[Seen], attempt: int) -> float:
    """From the first worker on a node until the last one is gone."""
    own = [one for one in pods if (one.attempt, one.kind) == (attempt, "worker") and one.scheduled is not None]
    if not own:
        return 0.0
    return max(one.gone or time.time() for one in own) - min(one.scheduled or 0.0 for one in own)
