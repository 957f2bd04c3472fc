"""All TrainingJobs that are known, each small, in the orders in which they are asked for.

What the watch brings and what this process has read or written itself come together here: of one job the newer counts,
so that nobody sees a state from before his own change. Invariant: `open` and the order are computed when a job changes,
never when somebody asks: 20,000 finished jobs cost nothing in a turn of the controller.
"""

from __future__ import annotations

import bisect
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from orchestrator.kube.cache import Version, without_managed_fields
from orchestrator.kube.resources import Json, key_of
from orchestrator.status import Phase
from orchestrator.store.base import Query
from orchestrator.store.cursor import position_at
from orchestrator.store.packing import pack, unpack
from orchestrator.store.resource import created_at, generation_of, is_claimed, is_leaving, observed

_GONE = 4096
"""So many of the last jobs that are gone are known as such: events of before may still be on their way."""
_COST = ("spent", "wasted", "burnPerHour", "currency")
Place = tuple[int, bytes]
"""When a job was made, in microseconds, and 16 bytes of its own: the order of lists."""


@dataclass(frozen=True, slots=True)
class Row:
    """One job, packed: as Python's own objects 20,000 of them would not fit into a controller."""

    uid: str
    key: str
    """`namespace/name`."""
    version: int
    generation: int
    place: Place
    phase: Phase
    open: bool
    claimed: bool
    deleting: bool
    leaving: bool
    money: str
    """`status.cost`, as the words of `_COST`; empty: there is none."""
    packed: bytes

    @classmethod
    def of(cls, found: Json) -> Row:
        metadata, status = found["metadata"], found.get("status") or {}
        phase, generation = _phase(status), generation_of(found)
        deleting = metadata.get("deletionTimestamp") is not None
        body = json.dumps(without_managed_fields(found), ensure_ascii=False, separators=(",", ":"))
        tie = blake2b(metadata["uid"].encode(), digest_size=16).digest()
        return cls(
            uid=metadata["uid"],
            key=key_of(found),
            version=int(metadata["resourceVersion"]),
            generation=generation,
            place=(int(created_at(found).timestamp() * 1e6), tie),
            phase=phase,
            open=not phase.terminal or deleting or observed(status) < generation,
            claimed=is_claimed(found),
            deleting=deleting,
            leaving=is_leaving(found),
            money=" ".join(str(cost[word]) for word in _COST) if (cost := status.get("cost")) else "",
            packed=pack(body.encode()),
        )

    @property
    def namespace(self) -> str:
        return self.key.partition("/")[0]

    @property
    def name(self) -> str:
        return self.key.partition("/")[2]

    @property
    def cost(self) -> dict[str, str] | None:
        """As the status has it."""
        return dict(zip(_COST, self.money.split(" "), strict=True)) if self.money else None

    def text(self) -> bytes:
        """JSON, as the server had it."""
        return unpack(self.packed)

    def found(self) -> Json:
        """The object, anew for each who asks."""
        body: Json = json.loads(self.text())
        return body


def version_of(kept: Json) -> Version:
    """Of what `Index.kept` gives."""
    row: Row = kept["row"]
    return row.uid, str(row.version)


def _phase(status: Json) -> Phase:
    try:
        return Phase(status.get("phase", Phase.PENDING))
    except ValueError:  # of another version: something may be to be done with it
        return Phase.PENDING


class Index:
    """Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._rows: dict[str, Row] = {}
        self._uids: dict[str, str] = {}
        """By `namespace/name`."""
        self._open: dict[str, Row] = {}
        self._order: list[tuple[Place, str]] = []
        self._gone: OrderedDict[str, None] = OrderedDict()

    # ------------------------------------------------------------------ what becomes known
    def kept(self, found: Json) -> Json:
        """What an informer's cache keeps of an object: its row; that which is here, where this process knows it already
        since it has written it itself."""
        metadata, here = found["metadata"], self.by_uid(found["metadata"]["uid"])
        if here is not None and here.version == int(metadata["resourceVersion"]):
            return {"row": here}
        return {"row": Row.of(found)}

    def put(self, row: Row) -> bool:
        """-> whether it tells of a wish: a new job, or another generation. What is older than what is known is not."""
        with self._lock:
            before = self._rows.get(row.uid)
            if row.uid in self._gone or (before is not None and before.version >= row.version):
                return False
            if row.leaving:
                self.gone(row.uid)
                return True
            other = self._rows.get(self._uids.get(row.key, ""))
            if other is not None and other.uid != row.uid:
                if other.version > row.version:  # an earlier job of that name
                    return False
                self.gone(other.uid)
            self._rows[row.uid], self._uids[row.key] = row, row.uid
            if before is None or before.place != row.place:
                if before is not None:
                    self._unlist(before)
                bisect.insort(self._order, (row.place, row.uid))
            if row.open:
                self._open[row.uid] = row
            else:
                self._open.pop(row.uid, None)
            return before is None or before.generation != row.generation

    def absent(self, key: str, at: int) -> None:
        """Nothing of that name was there at a version; what is known to be newer stays."""
        with self._lock:
            row = self._rows.get(self._uids.get(key, ""))
            if row is not None and row.version <= at:
                self.gone(row.uid)

    def gone(self, uid: str) -> None:
        """For good: what may still be heard of it is old."""
        with self._lock:
            self._gone[uid] = None
            while len(self._gone) > _GONE:
                self._gone.popitem(last=False)
            row = self._rows.pop(uid, None)
            if row is None:
                return
            self._open.pop(uid, None)
            if self._uids.get(row.key) == uid:
                del self._uids[row.key]
            self._unlist(row)

    def _unlist(self, row: Row) -> None:
        del self._order[bisect.bisect_left(self._order, (row.place, row.uid))]

    def restart(self, rows: Iterable[Row]) -> None:
        """The server was set back: only what it has now counts."""
        with self._lock:
            for known in (self._rows, self._uids, self._open, self._order, self._gone):
                known.clear()
            for row in rows:
                self.put(row)

    # ------------------------------------------------------------------ what is asked
    def get(self, key: str) -> Row | None:
        with self._lock:
            return self._rows.get(self._uids.get(key, ""))

    def by_uid(self, uid: str) -> Row | None:
        with self._lock:
            return self._rows.get(uid)

    def open(self) -> Sequence[Row]:
        """Oldest first."""
        with self._lock:
            return sorted(self._open.values(), key=lambda row: (row.place, row.uid))

    def all(self) -> Sequence[Row]:
        """Oldest first."""
        with self._lock:
            return [self._rows[uid] for _, uid in self._order]

    def page(self, query: Query) -> tuple[Sequence[Row], bool]:
        """Newest first, and whether more follow. UsageError for a wrong cursor."""
        found: list[Row] = []
        with self._lock:
            end = bisect.bisect_left(self._order, (position_at(query.after), "")) if query.after else len(self._order)
            for number in range(end - 1, -1, -1):
                row = self._rows[self._order[number][1]]
                if _wanted(row, query):
                    if len(found) == query.limit:
                        return found, True
                    found.append(row)
        return found, False


def _wanted(row: Row, query: Query) -> bool:
    return (
        (query.namespace is None or row.namespace == query.namespace)
        and (not query.phases or row.phase in query.phases)
        and query.name_contains in row.name
    )
