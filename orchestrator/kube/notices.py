"""Events of Kubernetes (events.k8s.io): what `kubectl describe` and `kubectl events` show of a job.

For people: one that could not be written is logged and forgotten. The same words about the same object are one Event
with a count, also over a restart, since its name is made of them; it is written at most once in a while.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from orchestrator.errors import Conflict, FathomError, NotFound
from orchestrator.kube.again import Holder
from orchestrator.kube.client import Kube
from orchestrator.kube.lease import LostLease
from orchestrator.kube.lease_record import micro_time
from orchestrator.kube.resources import EVENTS, Json
from orchestrator.kube.writes import MANAGER

_LOG = logging.getLogger(__name__)
_KEPT = 4096
_NOTE, _WORD, _NAME = 1024, 128, 253
"""Bounds of the API: bytes of a note, letters of a reason, an action and an instance, and of a name."""


@dataclass(frozen=True)
class Notice:
    """What happened to an object."""

    regarding: Json
    """The object itself."""
    reason: str
    """One word, e.g. `Admitted`."""
    action: str
    """What was done, one word, e.g. `Queue`."""
    note: str
    """A sentence."""
    kind: Literal["Normal", "Warning"] = "Normal"


@dataclass
class _Told:
    at: float
    unsaid: int = 0


class Notices:
    """Threads may share it."""

    def __init__(
        self,
        kube: Kube,
        holder: Holder,
        instance: str,
        *,
        quiet: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`instance`: e.g. the pod's name. `quiet`: seconds in which a repetition is only counted."""
        self._kube, self._holder, self._instance, self._quiet = kube, holder, instance[:_WORD], quiet
        self._clock, self._wall = clock, wall
        self._lock = threading.Lock()
        self._told: OrderedDict[str, _Told] = OrderedDict()

    def tell(self, notice: Notice) -> None:
        """At most one attempt. LostLease if another replica speaks now."""
        name, now = _name(notice), self._clock()
        with self._lock:
            told = self._told.setdefault(name, _Told(float("-inf")))
            self._told.move_to_end(name)
            while len(self._told) > _KEPT:
                self._told.popitem(last=False)
            told.unsaid += 1
            if now - told.at < self._quiet:
                return
            told.at, times, told.unsaid = now, told.unsaid, 0
        try:
            self._write(notice, name, times)
        except LostLease:
            raise
        except FathomError as error:
            _LOG.warning("event %s: %s", notice.reason, error)

    def _write(self, notice: Notice, name: str, times: int) -> None:
        limits = self._kube.timeouts.within(self._holder.require())
        target = EVENTS.at(notice.regarding["metadata"].get("namespace") or "default", name)
        try:
            found = self._kube.get(target, timeouts=limits)
        except NotFound:
            try:
                body = _event(notice, target.namespace, name, self._instance, self._wall())
                self._kube.create(target, body, query=[("fieldManager", MANAGER)], timeouts=limits)
            except Conflict:  # made meanwhile: it counts one less than it might
                return
            return
        count = int((found.get("series") or {}).get("count") or 1) + times
        series = {"count": count, "lastObservedTime": micro_time(self._wall())}
        body = {"metadata": {"resourceVersion": found["metadata"]["resourceVersion"]}, "series": series}
        self._kube.patch(target, body, "merge", query=[("fieldManager", MANAGER)], timeouts=limits)


def _name(notice: Notice) -> str:
    """Of its words: the same Event for the same words."""
    metadata = notice.regarding["metadata"]
    words = (metadata["uid"], notice.kind, notice.reason, notice.action, notice.note)
    digest = hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
    return f"{metadata['name'][: _NAME - 17]}.{digest}"


def _event(notice: Notice, namespace: str, name: str, instance: str, now: datetime) -> Json:
    found = notice.regarding
    metadata = found["metadata"]
    regarding = {"apiVersion": found["apiVersion"], "kind": found["kind"], "name": metadata["name"]}
    regarding |= {key: metadata[key] for key in ("namespace", "uid", "resourceVersion") if metadata.get(key)}
    return {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        "metadata": {"namespace": namespace, "name": name},
        "eventTime": micro_time(now),
        "reportingController": f"fathom.dev/{MANAGER}",
        "reportingInstance": instance,
        "type": notice.kind,
        "reason": notice.reason[:_WORD],
        "action": notice.action[:_WORD],
        "note": _shortened(notice.note),
        "regarding": regarding,
    }


def _shortened(note: str) -> str:
    """To what the server takes, at a letter's end."""
    raw = note.encode()
    return note if len(raw) <= _NOTE else raw[: _NOTE - 3].decode(errors="ignore") + "..."
