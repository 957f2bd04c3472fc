"""What a Lease says, and whether it may be taken. Pure: times are handed in."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from datetime import datetime

from orchestrator.kube.resources import Json, Target

_LONGEST_S = 3600.0


@dataclass(frozen=True)
class Terms:
    """Seconds."""

    duration: float = 15.0
    """Nobody else takes the Lease for so long after it saw a renewal."""
    deadline: float = 10.0
    """Nothing is written later than this after the last renewal was asked for."""
    period: float = 2.0
    """Between two renewals, or two looks."""

    def __post_init__(self) -> None:
        assert 0 < self.period < self.deadline < self.duration, self
        assert self.duration == int(self.duration), "the API holds whole seconds"


@dataclass(frozen=True)
class Record:
    """`spec` of a Lease, as far as it can be read."""

    holder: str = ""
    """Empty: nobody's."""
    duration: float = 0.0
    renewed: str = ""
    """As it stands there: only whether it changes says anything, since clocks differ."""
    version: str = ""


class Watched:
    """What one replica has seen of a Lease, and when by its own clock."""

    def __init__(self, identity: str, terms: Terms) -> None:
        self._identity, self._terms = identity, terms
        self._record = Record()
        self._changed_at = float("-inf")

    @property
    def holder(self) -> str:
        return self._record.holder

    def saw(self, record: Record | None, now: float) -> None:
        """None: there is no Lease. One that vanishes while it is held is held all the same until it would run out."""
        if record is None or record == self._record:
            return
        self._record, self._changed_at = record, now

    def held_by_other(self) -> bool:
        return self._record.holder not in ("", self._identity)

    def may_take(self, now: float) -> bool:
        """It is ours, nobody's, or has not changed for as long as its holder said and for as long as we would say."""
        if not self.held_by_other():
            return True
        lasts = max(self._terms.duration, min(self._record.duration, _LONGEST_S))
        return now - self._changed_at > lasts


def record_of(lease: Json) -> Record:
    """What cannot be read counts as absent: a Lease without a holder is free."""
    spec, metadata = lease.get("spec"), lease.get("metadata")
    spec = spec if isinstance(spec, dict) else {}
    seconds = spec.get("leaseDurationSeconds")
    return Record(
        holder=str(spec.get("holderIdentity") or ""),
        duration=float(seconds) if isinstance(seconds, int) else 0.0,
        renewed=str(spec.get("renewTime") or ""),
        version=str(metadata.get("resourceVersion") or "") if isinstance(metadata, dict) else "",
    )


def taken(lease: Json | None, target: Target, identity: str, terms: Terms, now: datetime) -> Json:
    """The Lease as its holder writes it: anew, or over what was read (whose resourceVersion goes along)."""
    body = copy.deepcopy(lease) or {
        "apiVersion": target.api_version,
        "kind": target.kind,
        "metadata": {"namespace": target.namespace, "name": target.name},
    }
    spec = dict(body.get("spec") or {})
    before = record_of(body).holder
    spec |= {"holderIdentity": identity, "leaseDurationSeconds": int(terms.duration), "renewTime": micro_time(now)}
    if before != identity:
        spec["acquireTime"] = micro_time(now)
        spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (1 if lease is not None else 0)
    return body | {"spec": spec}


def released(lease: Json, now: datetime) -> Json:
    """Nobody's."""
    spec = (lease.get("spec") or {}) | {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": micro_time(now)}
    return lease | {"spec": spec}


def micro_time(now: datetime) -> str:
    """As Kubernetes writes times with microseconds."""
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
