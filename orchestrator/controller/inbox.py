"""What the pods of a run deliver, written into the run's folder: each event once, each byte of the log once.

Deliveries come again when an answer was lost, late, and in several copies; this process may die between any two writes.
Nothing is remembered beside the files: what is stored already follows from them, under the lock of the events' file.
Invariants: events keep the numbers that their driver gave them, which follow each other without a gap; what an
incarnation says after a newer one has begun, or after the attempt is over, is refused (Fenced) before anything is
written; only deliveries write the logs of attempts in a cluster.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import Field, ValidationError

from model.config import Frozen
from orchestrator.errors import Fenced, Unavailable, UsageError
from orchestrator.launch.base import RunFolder
from orchestrator.launch.delivery import Artifact, Delivery, Receipt
from orchestrator.launch.events import (
    ASIDES,
    Answer,
    BudgetNote,
    Continue,
    Ended,
    Evaluated,
    Event,
    appending,
    read_control,
    scan,
    write_lines,
    write_whole,
)
from orchestrator.launch.files import replace_bytes, replace_file

MOST_EVENT_BYTES = 2 << 30
"""Of a run: two million steps of a kilobyte each."""
MOST_LOG_BYTES = 1 << 30
"""Of an attempt; what comes after is left where it is, in the pod."""
MOST_ARTIFACTS = 1000
_KEPT = 4096
_LOG = logging.getLogger(__name__)


@dataclass
class Heard:
    """What a run's events say of who has spoken. Grows by `add`; else pure."""

    last: dict[tuple[int, str], int] = field(default_factory=dict)
    """Number of the last event, by attempt and incarnation."""
    newest: dict[int, str] = field(default_factory=dict)
    """By attempt: the incarnation that began last."""
    ended: dict[int, str] = field(default_factory=dict)
    """By attempt that is over: the incarnation whose word that was."""

    def add(self, event: Event) -> None:
        """In the order of the file."""
        if isinstance(event, Evaluated | BudgetNote):
            return  # of no driver
        key = event.attempt, event.incarnation
        if key not in self.last:
            self.newest[event.attempt] = event.incarnation
        self.last[key] = max(self.last.get(key, 0), event.seq)
        if isinstance(event, Ended):
            self.ended.setdefault(event.attempt, event.incarnation)

    def take(self, delivery: Delivery, *, leaving: bool) -> tuple[Event, ...]:
        """Those of its events that are to be written now. `leaving`: the pod is on its way out, and begins nothing.

        Fenced if it counts no more; UsageError if its events are not one row of its own. After a gap nothing is taken:
        the receipt says where to go on.
        """
        attempt, who = delivery.attempt, delivery.incarnation
        known = self.last.get((attempt, who), 0)
        newest, over = self.newest.get(attempt, who), self.ended.get(attempt, who)
        if newest != who and (known or leaving):
            raise Fenced(f"attempt {attempt} goes on in {newest}: {who} counts no more")
        if over != who:
            raise Fenced(f"attempt {attempt} is over, which {over} said: {who} counts no more")
        _require_row(delivery)
        news = tuple(event for event in delivery.events if event.seq > known)
        if attempt in self.ended and any(not isinstance(event, ASIDES) for event in news):
            raise Fenced(f"attempt {attempt} is over: {who} has nothing more to say")
        return news if news and news[0].seq == known + 1 else ()


def _require_row(delivery: Delivery) -> None:
    owner, before = (delivery.job, delivery.attempt, delivery.incarnation), 0
    for event in delivery.events:
        if (event.job, event.attempt, event.incarnation) != owner:
            raise UsageError(f"event {event.seq} is of {event.job}/{event.attempt}/{event.incarnation}, not of {owner}")
        if event.seq <= before:
            raise UsageError(f"event {event.seq} follows {before}: send them in the order of their numbers")
        before = event.seq


def fresh(known: int, offset: int, data: bytes) -> bytes:
    """What of a piece at `offset` comes right after `known` bytes; empty if it is there already, or after a gap."""
    return data[known - offset :] if offset <= known else b""


class LogStart(Frozen):
    """Where the log of an incarnation begins in that of its attempt; written before its first byte."""

    incarnation: str
    base: int = Field(ge=0)


@dataclass(frozen=True)
class Stored:
    """What has come of a delivery."""

    receipt: Receipt
    events: int
    """New ones."""
    log_bytes: int
    """New ones."""


class Inbox:
    """Of one run. Threads and processes may share its folder."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._heard, self._offset = Heard(), 0

    def store(self, delivery: Delivery, *, leaving: bool) -> Stored:
        """All of it that is new. Fenced, UsageError, or Unavailable if the disk is full: then it comes again."""
        last = self._folder.last_attempt()
        if delivery.attempt != last:
            raise Fenced(f"attempt {delivery.attempt} counts no more: the newest is {last}")
        try:
            with appending(self._folder.events) as events:
                news = self._news(delivery, leaving=leaving)
                # what a reader of an `ended` looks for is there before it
                for artifact in delivery.artifacts:
                    self._keep(artifact)
                log_offset, written = self._log(delivery)
                self._write(events, news)
                seq = self._heard.last.get((delivery.attempt, delivery.incarnation), 0)
                answer = _answer(self._folder)
        except OSError as error:
            why = error.strerror or str(error)
            raise Unavailable(f"what attempt {delivery.attempt} delivers cannot be stored: {why}") from error
        return Stored(Receipt(seq=seq, log_offset=log_offset, answer=answer), len(news), written)

    def _news(self, delivery: Delivery, *, leaving: bool) -> tuple[Event, ...]:
        found = scan(self._folder.events, self._offset)
        if found.offset < self._offset:  # the file was replaced
            self._heard = Heard()
        self._offset = found.offset
        for event in found.events:
            self._heard.add(event)
        return self._heard.take(delivery, leaving=leaving)

    def _write(self, descriptor: int, news: Sequence[Event]) -> None:
        if not news:
            return
        if os.fstat(descriptor).st_size > MOST_EVENT_BYTES:
            raise UsageError(
                f"the events of this run have more than {MOST_EVENT_BYTES} bytes: nothing is added to them"
            )
        write_lines(descriptor, news)
        if any(isinstance(event, Ended) for event in news):
            os.fsync(descriptor)  # its pod is gone soon, and would not send it again
        for event in news:
            self._heard.add(event)
        self._offset = os.fstat(descriptor).st_size

    def _log(self, delivery: Delivery) -> tuple[int, int]:
        """-> bytes of the incarnation's log that are stored, and how many of them are new."""
        data = delivery.log.encode()
        path = self._folder.log(delivery.attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as log:
            base = self._base(log.fileno(), delivery)
            size = os.fstat(log.fileno()).st_size
            if size >= MOST_LOG_BYTES:
                return delivery.log_offset + len(data), 0
            new = fresh(size - base, delivery.log_offset, data)
            if new:
                write_whole(log.fileno(), new)
        return size - base + len(new), len(new)

    def _base(self, log: int, delivery: Delivery) -> int:
        path = self._folder.delivered(delivery.attempt)
        try:
            found = LogStart.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            found = None
        if found is None or found.incarnation != delivery.incarnation:
            size = os.fstat(log).st_size
            if size and os.pread(log, 1, size - 1) != b"\n":
                write_whole(log, b"\n")
            found = LogStart(incarnation=delivery.incarnation, base=os.fstat(log).st_size)
            replace_file(path, found.model_dump_json(), durable=True)
        return found.base

    def _keep(self, artifact: Artifact) -> None:
        """Beside the run; its name is that of a file, by its type."""
        path = self._folder.artifacts / artifact.name
        if path == self._folder.forecast:
            return  # it was made here, before the run began
        if not path.exists() and path.parent.is_dir() and len(os.listdir(path.parent)) >= MOST_ARTIFACTS:
            _LOG.warning("%s is not kept: the run has %d artifacts already", path, MOST_ARTIFACTS)
            return
        replace_bytes(path, artifact.content)


def _answer(folder: RunFolder) -> Answer:
    try:
        return read_control(folder.control)
    except ValueError as error:
        _LOG.error("%s", error)
        return Continue()


class Inboxes:
    """Of all runs of a home: each file of events is read once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Inbox] = OrderedDict()

    def of(self, folder: RunFolder) -> Inbox:
        """The one of a run."""
        with self._lock:
            found = self._known.setdefault(str(folder.root), Inbox(folder))
            self._known.move_to_end(str(folder.root))
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return found
