"""Makes the objects of an attempt, and takes them away again. Each step may be the last one of this process.

Invariants: everything before the RayJob is harmless, and is replaced where an earlier try left another form of it; of
an attempt there is one RayJob at most, whoever made it; nothing that belongs to another job is ever touched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from orchestrator.errors import Conflict, FathomError, NotFound
from orchestrator.kube.client import Kube
from orchestrator.kube.lease import LostLease
from orchestrator.kube.resources import Json
from orchestrator.kube.writes import Writer
from orchestrator.launch.cluster.kinds import RAY_JOBS, SUPPORTING, labels_of, owner_uid
from orchestrator.launch.rayjob import Rendered, agreed

GATED_BY = "kueue.x-k8s.io/admission-gated-by"
_LOG = logging.getLogger(__name__)
_PAGE = 500


class Objects:
    """Of attempts, by one process. Threads may share it."""

    def __init__(self, kube: Kube, writer: Writer) -> None:
        self._kube, self._writer = kube, writer

    def make(self, rendered: Rendered) -> Json:
        """All of them; -> the RayJob. Conflict if another job has one of the names."""
        for body in reversed(rendered.supporting):  # the ConfigMap is there first and goes last: see `supported`
            self._supporting(body)
        ray_job = self._ray_job(rendered.ray_job)
        try:
            self.let_in(ray_job)
        except LostLease:
            raise
        except FathomError as error:  # whoever sees the RayJob next does it
            _LOG.warning("%s is gated still: %s", rendered.name, error)
        return ray_job

    def let_in(self, ray_job: Json) -> None:
        """Plan and budget have agreed, or there would be no RayJob: Kueue may admit it."""
        if is_gated(ray_job):
            metadata = ray_job["metadata"]
            target = RAY_JOBS.at(metadata["namespace"], metadata["name"])
            self._writer.annotate(target, metadata["uid"], {GATED_BY: None})

    def find(self, namespace: str, name: str, owner: str) -> Json | None:
        """The RayJob, as the server has it now; None: there is none of this owner."""
        try:
            found = self._kube.get(RAY_JOBS.at(namespace, name))
        except NotFound:
            return None
        return found if owner_uid(found) == owner else None

    def end(self, namespace: str, name: str, uid: str) -> None:
        """Delete the RayJob of this uid, and what KubeRay has made of it."""
        self._writer.delete(RAY_JOBS.at(namespace, name), uid)

    def clear(self, namespace: str, name: str, owner: str) -> None:
        """What had to be there before the RayJob, of an attempt of which nothing runs any more."""
        for kind in SUPPORTING.values():
            target = kind.at(namespace, name)
            try:
                found = self._kube.get(target)
            except NotFound:
                continue
            if owner_uid(found) == owner and agreed.JOB_UID in labels_of(found):
                self._writer.delete(target, found["metadata"]["uid"])

    def supported(self, namespaces: tuple[str, ...]) -> Iterator[Json]:
        """The ConfigMap of each attempt of which something is left."""
        for place in [SUPPORTING["ConfigMap"].at(one) for one in namespaces] or [SUPPORTING["ConfigMap"]]:
            more = ""
            while True:
                query = [("labelSelector", f"{agreed.MANAGED_BY}=fathom,{agreed.JOB_UID}"), ("limit", str(_PAGE))]
                answer = self._kube.get(place, query=[*query, *([("continue", more)] if more else [])])
                yield from answer.get("items") or []
                if not (more := (answer.get("metadata") or {}).get("continue") or ""):
                    break

    # ------------------------------------------------------------------ one of them
    def _supporting(self, body: Json) -> None:
        target = SUPPORTING[body["kind"]].at(body["metadata"]["namespace"], body["metadata"]["name"])
        try:
            self._writer.create_if_absent(target, body)
        except Conflict:
            found = self._kube.get(target)
            if owner_uid(found) != owner_uid(body):
                raise
            # of an earlier try that was decided at other prices, say, and never came to its RayJob
            self._writer.delete(target, found["metadata"]["uid"])
            self._writer.create_if_absent(target, body)

    def _ray_job(self, body: Json) -> Json:
        metadata = body["metadata"]
        try:
            return self._writer.create_if_absent(RAY_JOBS.at(metadata["namespace"], metadata["name"]), body)
        except Conflict:
            # made by an earlier try whose answer came late: what it was given differs in nothing that matters
            found = self.find(metadata["namespace"], metadata["name"], owner_uid(body))
            if found is None:
                raise
            return found


def is_gated(ray_job: Json) -> bool:
    """Whether Kueue waits for our word."""
    annotations: dict[str, str] = ray_job["metadata"].get("annotations") or {}
    return annotations.get(GATED_BY) == agreed.GATE
