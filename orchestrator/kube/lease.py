"""Who of several replicas may write: the holder of a Lease, for as long as it renews it in time.

The package `kubernetes` (37.0.1) has an elector, and it cannot carry this:
- leaderelection.py:112-118 counts the time to renew by the wall clock, so that a clock set back lets a leader go on for
  hours after it lost the lease; nobody can ask when it last renewed, and lines 194 and 226 date a renewal by when the
  answer came instead of when it was asked for;
- leaselock.py reads and writes without a time limit and catches ApiException alone: a connection that hangs holds the
  loop for ever, one that is cut ends its thread without `onstopped_leading`;
- leaderelection.py:205 holds others to its own duration instead of the holder's; it cannot be stopped, and releases
  nothing.

So this loop is ours, over the same Lease, which client-go's electors understand. Ages are measured by a clock that
nobody can set and that goes on while the machine sleeps, from before a renewal was sent. No two replicas compare
clocks: whoever follows waits from when it saw the Lease change. What remains is a process that is paused between
`require` and its write: the server sees that by the uid, the resourceVersion or the name in each of our writes.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from orchestrator.errors import Conflict, FathomError, NotFound, Unavailable
from orchestrator.kube.client import Kube
from orchestrator.kube.lease_record import Terms, Watched, record_of, released, taken
from orchestrator.kube.resources import LEASES, Json

_LOG = logging.getLogger(__name__)
EXIT_LOST = 75
"""Exit status of a process that lost its lease: to be started again."""


class LostLease(Unavailable):
    """This process may no longer write, and will not again: it ends."""


def steady() -> float:
    """Seconds of a clock that is never set and goes on while the machine sleeps, where there is such a one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def end_process() -> None:
    """Without another word: whatever this process is in the midst of, another leads."""
    os._exit(EXIT_LOST)


class LeaderLease:
    """`acquire` it once; ask `require` before every write; `release` it at the end."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        name: str,
        replica: str,
        *,
        terms: Terms = Terms(),  # noqa: B008 - frozen
        on_lost: Callable[[], None] = end_process,
        die_at: Callable[[float | None], None] = lambda at: None,
        clock: Callable[[], float] = steady,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`replica`: e.g. the pod's name. `on_lost`: called by a thread of ours. `die_at`: told by each renewal when
        this process must be dead, by `clock`, if no other follows; None: it may live. See `kube.deadman`."""
        # a container that was started again in its pod is another holder
        self.identity = f"{replica}_{secrets.token_hex(4)}"
        self._kube, self._target = kube, LEASES.at(namespace, name)
        self._terms, self._on_lost, self._die_at, self._clock, self._wall = terms, on_lost, die_at, clock, wall
        self._lock = threading.Lock()
        self._renewed: float | None = None  # asked for at this time, and granted; None: we do not lead
        self._ended = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched = Watched(self.identity, terms)

    # ------------------------------------------------------------------ for those who write
    def require(self) -> float:
        """-> seconds within which a write must be over. LostLease: none may begin."""
        with self._lock:
            age = None if self._renewed is None else self._clock() - self._renewed
            if age is not None and not self._ended and age <= self._terms.deadline:
                return self._terms.duration - age
            self._ended = self._ended or age is not None
        if age is None:
            raise LostLease(f"{self.identity} does not hold {self._target}: only its holder writes")
        raise LostLease(
            f"{self.identity} renewed {self._target} {age:.1f} s ago, and {self._terms.deadline:g} s are the limit: "
            "another replica may write by now, this process ends"
        )

    @property
    def leads(self) -> bool:
        """At this moment, as far as can be told without asking."""
        try:
            return self.require() > 0
        except LostLease:
            return False

    # ------------------------------------------------------------------ life
    def acquire(self, stop: threading.Event) -> bool:
        """Waits until we lead, and renews from then on; -> False if `stop` came first."""
        while not stop.is_set():
            if self._try():
                _LOG.info("%s leads by %s", self.identity, self._target)
                thread = threading.Thread(target=self._keep, name="lease", daemon=True)
                thread.start()
                self._thread = thread  # not before: `release` may come from another thread at any moment, and joins it
                return True
            stop.wait(self._terms.period * random.uniform(0.8, 1.2))
        return False

    def release(self) -> None:
        """Nothing is written from here on; another replica may lead at once. Silent if the server cannot be told."""
        with self._lock:
            led, self._ended, self._renewed = self._renewed is not None and not self._ended, True, None
            self._die_at(None)
        self._stop.set()
        if self._thread is not None:
            self._thread.join(self._terms.deadline)
        if not led:
            return
        try:
            found = self._kube.get(self._target, timeouts=self._kube.timeouts.within(self._terms.period))
            if record_of(found).holder == self.identity:
                self._kube.replace(self._target, released(found, self._wall()))
        except FathomError as error:
            _LOG.warning("%s is not released, it runs out: %s", self._target, error)

    def _keep(self) -> None:
        """Renews, and ends the process when that was not possible in time."""
        while not self._stop.wait(self._terms.period):
            renewed = self.leads and self._try()
            if self._stop.is_set():
                return
            if not renewed and (self._watched.holder != self.identity or not self.leads):
                with self._lock:
                    self._ended = True
                _LOG.error("%s lost %s to %s", self.identity, self._target, self._watched.holder or "nobody")
                self._on_lost()
                return

    # ------------------------------------------------------------------ one turn
    def _try(self) -> bool:
        """Take or renew it; -> whether we hold it by what was asked for just now."""
        asked = self._clock()
        if self._ended:
            return False
        try:
            found = self._write()
        except (Conflict, NotFound):  # somebody was quicker, which the next look shows
            return False
        except FathomError as error:
            _LOG.warning("%s: %s", self._target, error)
            return False
        if found is None:
            return False
        self._watched.saw(record_of(found), self._clock())
        return self._granted(asked)

    def _granted(self, asked: float) -> bool:
        with self._lock:
            if not self._ended:
                self._renewed = asked
                # whoever runs ends in order before that, and nobody else leads until after it
                self._die_at(asked + (self._terms.deadline + self._terms.duration) / 2)
            return not self._ended

    def _write(self) -> Json | None:
        """-> the Lease as we wrote it; None: it is another's."""
        found = self._look()
        leading = self._renewed is not None
        # whoever led and finds the Lease in other hands, or in none, has lost it even if it could be had again
        if self._watched.holder != self.identity if leading else not self._watched.may_take(self._clock()):
            return None
        ours = taken(found, self._target, self.identity, self._terms, self._wall())
        limits = self._kube.timeouts.within(self._terms.deadline / 3)
        if found is None:
            return self._kube.create(self._target, ours, timeouts=limits)
        return self._kube.replace(self._target, ours, timeouts=limits)

    def _look(self) -> Json | None:
        """The Lease as it is; remembered with the time when it was seen."""
        try:
            found: Json | None = self._kube.get(
                self._target, timeouts=self._kube.timeouts.within(self._terms.deadline / 3)
            )
        except NotFound:
            found = None
        self._watched.saw(None if found is None else record_of(found), self._clock())
        return found
