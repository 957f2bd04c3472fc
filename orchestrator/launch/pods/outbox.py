"""What of a pod's run folder the controller does not have yet, packed into deliveries.

Nothing is kept but what was not acknowledged: the folder has all of it, and a controller that asks again for what came
before gets it from there. Used by one thread. Invariant: a delivery is within the bounds of `launch.delivery`, and as
long as something is left, an acknowledged delivery brings the next one forward.
"""

from __future__ import annotations

import base64
import codecs
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.launch.base import RunFolder
from orchestrator.launch.delivery import (
    MOST_EVENTS,
    MOST_FILE_BYTES,
    MOST_LOG_BYTES,
    Artifact,
    Delivery,
    Receipt,
)
from orchestrator.launch.events import Event, scan
from orchestrator.launch.resolve import Resolved

EVENT_BYTES = 1 << 20
"""Of the events of one delivery as JSON. With one whole artifact in Base64 (1.4 MB) and a log of control characters
alone (six times as long as JSON) this is below `delivery.MOST_BODY_BYTES`."""
FILE_BYTES = 4 * (MOST_FILE_BYTES // 3 + 1)
MOST_FILES = 20
_PIECE = 1 << 20
"""Bytes of the event file at one look."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9]+)*")
_ERRORS = "fathom-same-length"

Stamp = tuple[int, int]
"""Time of the last change in nanoseconds, and bytes."""


def _marks(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "?" * (error.end - error.start), error.end


codecs.register_error(_ERRORS, _marks)


@dataclass(frozen=True)
class Parcel:
    """A delivery, and what of it a receipt does not tell."""

    delivery: Delivery
    files: dict[str, Stamp] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether only the answer is wanted."""
        return not (self.delivery.events or self.delivery.log or self.delivery.artifacts)


class Outbox:
    """Of one incarnation of an attempt. Its files are replaced as a whole, so that no half of one is read."""

    def __init__(self, folder: RunFolder, resolved: Resolved, say: Callable[[str], None]) -> None:
        """`say` is told once of each file that is not delivered."""
        self._folder, self._resolved, self._say = folder, resolved, say
        self._waiting: deque[Event] = deque()
        """Read, and not acknowledged."""
        self._read = 0
        """Bytes of the event file."""
        self._seq = self._log = 0
        """Of what is stored."""
        self._files: dict[str, Stamp] = {}
        self._told: set[str] = set()

    def pack(self, *, final: bool = False) -> Parcel:
        """What is next. `final`: nothing more is written to the log. OSError if the folder cannot be read."""
        self._fill()
        artifacts, files = self._artifacts()
        job = self._resolved.job
        delivery = Delivery(
            namespace=job.namespace,
            name=job.name,
            job=job.uid,
            attempt=self._resolved.attempt,
            incarnation=self._resolved.incarnation,
            events=self._events(),
            log=self._piece(final=final),
            log_offset=self._log,
            artifacts=artifacts,
        )
        return Parcel(delivery, files)

    def acknowledged(self, parcel: Parcel, receipt: Receipt) -> bool:
        """Go on where the controller says; whether that is further than before. One that has lost something is
        believed, one that has more than it was ever given is not."""
        sent = parcel.delivery
        seq = min(receipt.seq, sent.events[-1].seq if sent.events else self._seq)
        log = min(receipt.log_offset, self._log + len(sent.log.encode()))
        back = seq < self._seq or log < self._log
        further = seq > self._seq or log > self._log or bool(parcel.files)
        if seq < self._seq:
            self._waiting.clear()
            self._read = 0
        self._seq, self._log = seq, log
        while self._waiting and self._waiting[0].seq <= seq:
            self._waiting.popleft()
        self._files = {} if back else self._files | parcel.files
        return further and not back

    # ------------------------------------------------------------------ events
    def _fill(self) -> None:
        keys = (self._resolved.job.uid, self._resolved.attempt, self._resolved.incarnation)
        while len(self._waiting) < MOST_EVENTS:
            found = scan(self._folder.events, self._read, _PIECE)
            if found.offset == self._read:
                return
            self._read = found.offset
            own = (event for event in found.events if (event.job, event.attempt, event.incarnation) == keys)
            self._waiting.extend(event for event in own if event.seq > self._seq)

    def _events(self) -> tuple[Event, ...]:
        taken: list[Event] = []
        room = EVENT_BYTES
        for event in self._waiting:
            room -= len(event.model_dump_json(by_alias=True).encode()) + 1
            if len(taken) == MOST_EVENTS or (taken and room < 0):
                break
            taken.append(event)
        return tuple(taken)

    # ------------------------------------------------------------------ log
    def _piece(self, *, final: bool) -> str:
        """As many bytes of UTF-8 as it has in the file: what is no UTF-8 becomes as many question marks."""
        try:
            with self._folder.log(self._resolved.attempt).open("rb") as file:
                file.seek(self._log)
                data = file.read(MOST_LOG_BYTES)
        except FileNotFoundError:
            return ""
        whole = final and len(data) < MOST_LOG_BYTES
        return codecs.getincrementaldecoder("utf-8")(_ERRORS).decode(data, whole)

    # ------------------------------------------------------------------ artifacts
    def _artifacts(self) -> tuple[tuple[Artifact, ...], dict[str, Stamp]]:
        """Those that are new or another by now; more than one delivery holds wait for the next."""
        taken: list[Artifact] = []
        stamps: dict[str, Stamp] = {}
        room = FILE_BYTES
        for path in self._changed():
            if (stamp := _stamp(path))[1] > MOST_FILE_BYTES:
                self._too_large(path.name, stamp[1])
                continue
            text = base64.b64encode(path.read_bytes()).decode()
            room -= len(text)
            if room < 0 or len(taken) == MOST_FILES:
                break
            taken.append(Artifact(name=path.name, data=text))
            stamps[path.name] = stamp
        return tuple(taken), stamps

    def _changed(self) -> list[Path]:
        folder = self._folder.artifacts
        found = sorted(folder.iterdir()) if folder.exists() else []
        named = [path for path in found if _NAME.fullmatch(path.name) and len(path.name) <= 100]
        return [path for path in named if _stamp(path) != self._files.get(path.name)]

    def _too_large(self, name: str, size: int) -> None:
        if name not in self._told:
            self._told.add(name)
            self._say(f"{name} has {size} bytes and {MOST_FILE_BYTES} are delivered at most: it stays in the pod")


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return found.st_mtime_ns, found.st_size
