"""Keeps a cache equal to what the API server has, whatever the connection does: list, watch, list again.

The package's own informer asks without limits of time, lists without pages, and notices neither an idle connection nor
a lost event; its `Watch` gives up at half a line. Here every list repairs whatever a watch has missed, and lists come
from time to time even if nothing seems to be wrong.
"""

from __future__ import annotations

import json
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from orchestrator.errors import FathomError, NotFound, Unavailable
from orchestrator.kube.cache import Cache
from orchestrator.kube.client import Kube
from orchestrator.kube.problems import Gone, said_in_watch, wait_asked
from orchestrator.kube.resources import Json, Target
from orchestrator.kube.stream import Stream

_LOG = logging.getLogger(__name__)
_OLD_LISTS = 3
_MISSED = 3
_BRIEF_S = 1.0
_CATCH_UP_S = 3
"""The server sends a bookmark two seconds before it ends a watch."""
_CATCH_UPS = 3
_NOBODY = "none.fathom.dev"


@dataclass(frozen=True)
class Rhythm:
    """Seconds, unless said."""

    page: int = 500
    """Objects of one answer to a list."""
    watch: float = 300.0
    """How long the server keeps a watch open."""
    slack: float = 15.0
    """What the client waits beyond that."""
    relist: float = 600.0
    """A list at least this often, and up to a fifth earlier, so that not all kinds are listed at once."""
    idle: float = 180.0
    """Neither event nor bookmark for so long: the connection is taken for dead. The server sends one a minute."""
    first_wait: float = 0.2
    longest_wait: float = 30.0
    """Between failures: doubled each time, give or take half."""


class Informer:
    """Objects of one kind, of one namespace or of all. `start` it once; `stop` it once."""

    def __init__(
        self,
        kube: Kube,
        target: Target,
        *,
        labels: str = "",
        rhythm: Rhythm = Rhythm(),
        cache: Cache | None = None,
    ) -> None:
        """`labels`: a selector. `target` names no object."""
        self.cache = Cache() if cache is None else cache
        self.synced = threading.Event()
        """Whether the cache held a whole list once; since `catch_up`, all that the server had then."""
        self.problem = ""
        """Why it does not follow the server now, e.g. that this kind is not installed; empty: it does."""
        self.missing = False
        """Whether the server did not know this kind when it answered last."""
        self._kube, self._target, self._rhythm = kube, target, rhythm
        self._selector = [("labelSelector", labels)] if labels else []
        self._handlers: list[Callable[[str], None]] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._asked = self._answered = 0  # how often it was to catch up, and the last of these that it has
        self._woken = False
        self._stream: Stream | None = None
        self._alive = time.monotonic()
        self._version = ""  # what the watch goes on from; empty: list first
        self._newest = 0
        self._events = 0
        self._opened = math.inf
        self._old_lists = 0
        self._list_due = 0.0
        self._threads = [
            threading.Thread(target=work, name=f"{target.plural}-{work.__name__.strip('_')}", daemon=True)
            for work in (self._keep, self._guard)
        ]

    # ------------------------------------------------------------------ for others
    def on_change(self, handler: Callable[[str], None]) -> None:
        """Called with the key of whatever is new, changed or gone, by the informer's thread: it must be quick."""
        self._handlers.append(handler)

    def start(self) -> None:
        """Returns at once; `synced` tells when the cache can be relied on."""
        for thread in self._threads:
            thread.start()

    def catch_up(self) -> None:
        """Until `synced`, the cache may lack what the server has now: for a process that begins to write by what it has
        only looked at before. Returns at once. What others have done until now comes by the watch, without a list."""
        with self._lock:
            self.synced.clear()
            self._asked += 1
            self._woken = True
        self._abort()

    def stop(self, patience: float = 1.0) -> None:
        """No handler is called any more; a request that hangs is left behind after `patience` seconds."""
        self._stop.set()
        self._abort()
        until = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def silent_for(self) -> float:
        """Seconds since the server last said something of this kind."""
        return time.monotonic() - self._alive

    @property
    def reached(self) -> int:
        """The cache holds all that the server had at this resourceVersion, or later; 0: nobody knows."""
        version = self._version
        return int(version) if version.isdecimal() else 0

    # ------------------------------------------------------------------ the loop
    def _keep(self) -> None:
        failures = 0
        while not self._stop.is_set():
            self._opened, events = math.inf, self._events
            broken: Exception | None = None
            try:
                if not self._version or time.monotonic() >= self._list_due:
                    self._list()
                if self._answered != self._asked:
                    self._catch_up()
                self._watch(min(self._rhythm.watch, self._list_due - time.monotonic()))
            except Exception as error:  # noqa: BLE001 - a cache that nobody fills any more is worse than any defect here
                broken = None if self._is_woken() else error
            # lists alone are no success: one after the other would be asked for
            if self._events > events or time.monotonic() - self._opened >= _BRIEF_S:
                failures = 0
            elif broken is None:
                failures += 1  # a watch that ends at once and has said nothing
            if broken is not None:
                failures = self._failed(broken, failures)
            if failures >= _MISSED:
                self._version = ""
            if failures > 1 or (failures and self._version):
                self._rest(failures)

    def _failed(self, error: Exception, failures: int) -> int:
        """-> how many that makes."""
        if self._stop.is_set():
            return 0
        if isinstance(error, Gone):
            self._version = ""
        self.missing = self.missing or isinstance(error, NotFound)
        known = isinstance(error, FathomError)
        if str(error) != self.problem:  # the same again is not said again
            _LOG.warning("%s: %s", self._target.plural, error, exc_info=None if known else error)
        self.problem = str(error) or type(error).__name__
        if asked := wait_asked(error):
            self._stop.wait(min(asked, self._rhythm.longest_wait))
        return failures + 1

    def _is_woken(self) -> bool:
        """Whether the watch was ended by us, to catch up."""
        with self._lock:
            woken, self._woken = self._woken, False
        return woken

    def _rest(self, failures: int) -> None:
        rhythm = self._rhythm
        seconds = min(rhythm.longest_wait, rhythm.first_wait * 2.0 ** min(failures - 1, 20))
        self._stop.wait(seconds * random.uniform(0.5, 1.5))

    def _guard(self) -> None:
        """Ends a watch that says nothing."""
        ended: Stream | None = None
        while not self._stop.wait(min(1.0, self._rhythm.idle / 4)):
            stream = self._stream
            if stream is not None and stream is not ended and self.silent_for() > self._rhythm.idle:
                _LOG.warning("%s: nothing for %.0f s, the watch is made anew", self._target.plural, self.silent_for())
                ended = stream
                stream.abort()

    def _abort(self) -> None:
        stream = self._stream
        if stream is not None:
            stream.abort()

    # ------------------------------------------------------------------ list
    def _list(self) -> None:
        asked = self._asked
        pages = self._pages()
        first, version = next(pages)
        self._refuse_old(version)
        self.missing = False
        # one page at a time: whole objects of all of them would take more room than all else
        changed = self.cache.replace(chain(first, chain.from_iterable(page for page, _ in pages)))
        self._reached(version)
        for key in changed:
            self._tell(key)
        self._list_due = time.monotonic() + self._rhythm.relist * random.uniform(0.8, 1.0)
        self._settle(asked)

    def _settle(self, asked: int) -> None:
        """Known is what the server had when that was asked for."""
        with self._lock:
            self._answered = asked
            if asked == self._asked:
                self.synced.set()

    def _catch_up(self) -> None:
        """All that there is now: a short watch ends with a bookmark, which says up to when there was nothing else."""
        self._is_woken()
        asked = self._asked
        answer = self._kube.get(self._target, query=[("fieldSelector", f"metadata.name={_NOBODY}")])
        wanted = int(answer["metadata"]["resourceVersion"])
        for _ in range(_CATCH_UPS):
            if self.reached >= wanted or self._stop.is_set():
                return self._settle(asked)
            self._watch(_CATCH_UP_S, wanted)
        self._list()  # a server that sends no bookmark in time

    def _pages(self) -> Iterator[tuple[list[Json], str]]:
        """Each with the version of the list. Unavailable if we end meanwhile: what there is of it is no list."""
        query = [("limit", str(self._rhythm.page)), *self._selector]
        more = ""
        while not self._stop.is_set():
            answer = self._kube.get(self._target, query=[*query, *([("continue", more)] if more else [])])
            metadata, items = answer.get("metadata"), answer.get("items")
            if not isinstance(metadata, dict) or not isinstance(items, list) or not metadata.get("resourceVersion"):
                raise Unavailable(f"list {self._target}: an answer without items or resourceVersion")
            self._alive = time.monotonic()
            yield items, str(metadata["resourceVersion"])
            if not (more := metadata.get("continue") or ""):
                return
        raise Unavailable(f"list {self._target}: ended")

    def _refuse_old(self, version: str) -> None:
        """A list from before what we have seen would bring back what is gone; a server restored from a backup may."""
        number = int(version) if version.isdecimal() else 0
        if number < self._newest and self._old_lists < _OLD_LISTS:
            self._old_lists += 1
            raise Unavailable(f"list {self._target}: it is of {number}, and {self._newest} was seen: asked again")
        self._old_lists = 0
        self._newest = number

    # ------------------------------------------------------------------ watch
    def _watch(self, longest: float, wanted: int | None = None) -> None:
        """Until the server ends it, after so many seconds at most; or until that version is reached."""
        rhythm, seconds = self._rhythm, max(1, math.ceil(longest))
        query = [
            ("resourceVersion", self._version),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(seconds)),
            *self._selector,
        ]
        stream = self._kube.watch(self._target, query=query, silence=seconds + rhythm.slack)
        try:
            self._stream = stream
            self._opened = self._alive = time.monotonic()
            self.problem = ""
            # whoever stopped us or woke us looked for a stream before there was this one
            if self._stop.is_set() or (wanted is None and self._answered != self._asked):
                return
            for line in stream.lines():
                if self._stop.is_set():
                    return
                self._event(line)
                if wanted is not None and self.reached >= wanted:
                    return
        finally:
            self._stream = None
            stream.close()

    def _event(self, line: bytes) -> None:
        doing = f"watch {self._target}"
        try:
            event: Any = json.loads(line)
            kind, found = event["type"], event["object"]
            if kind == "ERROR":
                raise said_in_watch(doing, found)
            version = str(found["metadata"]["resourceVersion"])
            if kind == "BOOKMARK":
                key = None
            elif kind in ("ADDED", "MODIFIED"):
                key = self.cache.put(found)
            elif kind == "DELETED":
                key = self.cache.remove(found)
            else:
                raise ValueError(f"an event of type {kind!r}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unavailable(f"{doing}: a line that is no event ({error!r}): the connection is made anew") from error
        self._reached(version)
        self._events += 1
        if key is not None:
            self._tell(key)

    def _reached(self, version: str) -> None:
        self._version = version
        self._newest = max(self._newest, int(version)) if version.isdecimal() else self._newest
        self._alive = time.monotonic()

    def _tell(self, key: str) -> None:
        for handler in self._handlers:
            if self._stop.is_set():
                return
            try:
                handler(key)
            except Exception:  # noqa: BLE001 - it is logged with its trace
                _LOG.exception("%s: a handler failed on %s; the others are told", self._target.plural, key)
