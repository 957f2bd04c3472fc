"""The job store of a cluster: TrainingJobs of the Kubernetes API. See `store.base` for what each method promises.

Reads come from what informers have brought and what this process has read or written itself, whichever is newer;
changes of wishes are made of the live object, and of no other. A job that our models refuse stops nobody else: it is
told so in its own conditions.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from json import dumps

from orchestrator.errors import Conflict, FathomError, NotFound, Unavailable, UsageError
from orchestrator.kube.cache import Cache
from orchestrator.kube.client import Kube
from orchestrator.kube.resources import TRAINING_JOBS, Json, Target
from orchestrator.kube.watch import Informer, Rhythm
from orchestrator.kube.writes import Writer
from orchestrator.spec import TrainingJob
from orchestrator.status import JobStatus, Reason
from orchestrator.store.base import MAX_LIMIT, DocumentPage, Page, Query, StoredJob, TextPage, Wish, is_unlinked
from orchestrator.store.cursor import cursor_at
from orchestrator.store.index import Index, Row, version_of
from orchestrator.store.intake import Intake, Pause
from orchestrator.store.resource import (
    document_of,
    is_claimed,
    is_leaving,
    new_resource,
    release,
    same_status,
    status_body,
    stored_of,
    target_of,
    wish_patch,
)
from orchestrator.store.tally import TeamTally, tally

_LOG = logging.getLogger(__name__)
_LINK, _AWAY = b'"mlflow":{', f'"reason":"{Reason.SERVER_UNREACHABLE}"'.encode()
_TRIES = 20
"""Of a change that others are quicker than each time."""
_WAY_SECONDS = 0.01


class KubeStore:
    """The `JobStore` of a controller in a cluster; one for all threads of a process. `start` it once, `stop` it once.

    Every method but these raises Unavailable until all jobs were read once, and what `kube.problems` makes of answers.
    """

    def __init__(
        self,
        kube: Kube,
        writer: Writer,
        *,
        namespaces: Sequence[str] = (),
        rhythm: Rhythm = Rhythm(),  # noqa: B008 - frozen
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`namespaces`: only the jobs in these; empty: all."""
        self._kube, self._writer, self._clock = kube, writer, clock
        self._index = Index()
        self._informers = {
            name: Informer(
                kube,
                TRAINING_JOBS.at(name) if name else TRAINING_JOBS,
                rhythm=rhythm,
                cache=Cache(self._index.kept, version_of),
            )
            for name in (namespaces or ("",))
        }
        for informer in self._informers.values():
            informer.on_change(_Told(informer, self._index, self._set_back, self._wished))
        self._handlers: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._ahead: dict[str, Row] = {}
        """What this process knows and its informer may not know yet, by uid."""
        self._pause = Pause()
        self._intake = Intake(writer, self._pause, self._took, clock)

    # ------------------------------------------------------------------ life
    def start(self) -> None:
        """Returns at once; `synced` tells when there is something to read."""
        for informer in self._informers.values():
            informer.start()

    def catch_up(self) -> None:
        """Whoever has looked at the jobs until now begins to write: until `synced` again, others may have done more."""
        for informer in self._informers.values():
            informer.catch_up()

    def stop(self) -> None:
        """Nothing becomes known any more."""
        for informer in self._informers.values():
            informer.stop()
        self._intake.stop()

    @property
    def synced(self) -> bool:
        """Whether all jobs were read once."""
        return all(informer.synced.is_set() for informer in self._informers.values())

    def on_wish(self, handler: Callable[[], object]) -> None:
        """Called when somebody else has made a job, changed what is wished of it, or deleted it, e.g. with
        `Controller.wake`; by an informer's thread: it must be quick."""
        self._handlers.append(handler)

    # ------------------------------------------------------------------ reads
    def get(self, namespace: str, name: str) -> StoredJob:
        index, informer = self._known(), self._informer(namespace)
        row = index.get(f"{namespace}/{name}")
        if row is None or informer is None or informer.problem:  # made a moment ago, or nobody tells us of changes
            return stored_of(self._live(namespace, name))
        return stored_of(row.found())

    def by_uid(self, uid: str) -> StoredJob | None:
        row = self._known().by_uid(uid)
        return None if row is None else self._intake.read_of(row) or stored_of(row.found())

    def list(self, query: Query) -> Page:
        rows, following = self._page(query)
        return Page(tuple(_readable(rows)), following)

    def documents(self, query: Query) -> DocumentPage:
        rows, following = self._page(query)
        return DocumentPage(tuple(document_of(row.found()) for row in rows), following)

    def texts(self, query: Query) -> TextPage:
        page = self.documents(query)
        texts = (dumps(one, ensure_ascii=False, separators=(",", ":")) for one in page.documents)
        return TextPage(tuple(texts), page.next)

    def open_jobs(self) -> Sequence[StoredJob]:
        """By the controller only. Jobs that people have made are held up first, so that they do not vanish while
        something of them runs; those for which there was no time yet are left out."""
        return self._intake.look(self._known().open())

    def unlinked(self) -> Sequence[StoredJob]:
        texts = ((row, row.text()) for row in self._known().all())
        found = _readable(row for row, said in texts if _LINK not in said or _AWAY in said)  # or some message says so
        return tuple(job for job in found if is_unlinked(job.status))

    def tally(self, team: str | None = None) -> Sequence[TeamTally]:
        rows = self._known().all()
        return tally((row.namespace, row.phase, row.cost) for row in rows if team in (None, row.namespace))

    def _page(self, query: Query) -> tuple[Sequence[Row], str]:
        if not 1 <= query.limit <= MAX_LIMIT:
            raise UsageError(f"limit is {query.limit}: from 1 to {MAX_LIMIT} jobs fit on a page")
        rows, more = self._known().page(query)
        return rows, cursor_at(*rows[-1].place) if more else ""

    # ------------------------------------------------------------------ wishes
    def create(self, job: TrainingJob, *, by: str) -> StoredJob:
        target = self._target(job.metadata.namespace, job.metadata.name)
        self._require_looked_after(target)
        try:
            found = self._writer.create(target, new_resource(job, by, self._clock()))
        except Conflict:
            raise Conflict(
                f"{target.namespace}/{target.name} exists already{self._there(target)}: give the job another name, or "
                "delete that one first"
            ) from None
        return stored_of(self._took(found))

    def change(
        self,
        namespace: str,
        name: str,
        edit: Callable[[Wish], Wish],
        *,
        generation: int | None = None,
        uid: str | None = None,
    ) -> StoredJob:
        for number in range(_TRIES):
            _give_way(number)
            found = self._live(namespace, name)
            before = stored_of(found)
            before.require(generation=generation, uid=uid)
            wish = edit(before.wish)
            if wish == before.wish:
                return before
            before.wish.require_lasting(wish)
            try:
                return self._wish(found, before.wish, wish)
            except Conflict:
                continue  # somebody was quicker: it may be the status only
        raise Conflict(f"{namespace}/{name} was changed by others {_TRIES} times meanwhile: do it again")

    def _wish(self, found: Json, before: Wish, after: Wish) -> StoredJob:
        """Conflict if it is no longer so. What is wished beside a deletion comes first: that cannot be taken back."""
        target, uid = target_of(found), found["metadata"]["uid"]
        if patch := wish_patch(found, before, after):
            found = self._took(self._writer.change(target, found, patch))
        if after.deleted_at is None or before.deleted_at is not None:
            return stored_of(found)
        self._writer.delete(target, uid)
        if (left := self._again(target, uid)) is not None:
            return stored_of(left)
        last = stored_of(found)  # it is gone already
        return replace(last, wish=after, generation=last.generation + 1)

    # ------------------------------------------------------------------ by the controller
    def set_status(self, uid: str, status: JobStatus) -> bool:
        row = self._known().by_uid(uid)
        found = None if row is None else row.found()
        for _ in range(_TRIES):
            if found is None:
                return False
            body, target = status_body(status, found), target_of(found)
            if same_status(body, found):  # nothing new: no version, no write
                return True
            try:
                with self._pause:
                    self._took(self._writer.set_status(target, found, body))
                return True
            except NotFound:
                self._index.gone(uid)
                return False
            except Conflict:  # of a wish: nobody else writes a status
                found = self._again(target, uid)
        raise Conflict(f"the status of {uid} could not be written: others changed the job {_TRIES} times meanwhile")

    def remove(self, uid: str) -> None:
        row = self._known().by_uid(uid)
        found = None if row is None else row.found()
        for _ in range(_TRIES):
            if found is None:
                return
            target = target_of(found)
            try:
                if not found["metadata"].get("deletionTimestamp"):
                    self._writer.delete(target, uid)
                    found = self._again(target, uid)
                elif is_claimed(found):
                    found = self._took(self._writer.change(target, found, release(found)))
                if found is None or is_leaving(found):
                    break
            except NotFound:
                break
            except Conflict:
                found = self._again(target, uid)
        else:
            raise Conflict(f"{uid} could not be removed: others changed the job {_TRIES} times meanwhile")
        self._index.gone(uid)

    # ------------------------------------------------------------------ what is known
    def _known(self) -> Index:
        """With all that the informers could not tell: jobs of ours that went between two lists."""
        for name, one in self._informers.items():
            if not one.synced.is_set():
                where, why = f" of {name}" if name else "", f": {one.problem}" if one.problem else ""
                raise Unavailable(f"the TrainingJobs{where} are not read yet{why}")
        with self._lock:
            ahead = list(self._ahead.values())
        for row in ahead:
            informer = self._informer(row.namespace)
            reached = 0 if informer is None else informer.reached
            if informer is None or reached < row.version:
                continue
            if informer.cache.get(row.key) is None:
                self._index.absent(row.key, reached)
            with self._lock:
                if self._ahead.get(row.uid) is row:
                    del self._ahead[row.uid]
        return self._index

    def _informer(self, namespace: str) -> Informer | None:
        """Who tells of that namespace; None: nobody."""
        return self._informers.get("") or self._informers.get(namespace)

    def _took(self, found: Json) -> Json:
        """From the server itself: nobody here shall see an older one."""
        row = Row.of(found)
        self._index.put(row)
        if not row.leaving:
            with self._lock:
                self._ahead[row.uid] = row
        return found

    def _live(self, namespace: str, name: str) -> Json:
        """As the server has it now. NotFound where there is none, or only what is left of one."""
        target = self._target(namespace, name)
        before = self._known().get(f"{namespace}/{name}")
        found = None
        if self._informer(namespace) is not None:
            try:
                found = self._kube.get(target)
            except NotFound:
                if before is not None:
                    self._index.absent(before.key, before.version)
        if found is None or is_leaving(self._took(found)):
            raise NotFound(_nothing(target))
        return found

    def _again(self, target: Target, uid: str) -> Json | None:
        """The same job as it is now; None if it is gone."""
        try:
            found = self._live(target.namespace, target.name)
        except NotFound:
            found = None
        if found is not None and found["metadata"]["uid"] == uid:
            return found
        self._index.gone(uid)
        return None

    def _there(self, target: Target) -> str:
        """What has that name, in words."""
        try:
            found = self._kube.get(target)
        except FathomError:
            return ""
        phase, made = (found.get("status") or {}).get("phase", "Pending"), found["metadata"]["creationTimestamp"]
        leaving = ", being deleted" if found["metadata"].get("deletionTimestamp") else ""
        return f" ({phase}, of {made}{leaving})"

    def _target(self, namespace: str, name: str) -> Target:
        return TRAINING_JOBS.at(namespace, name)

    def _require_looked_after(self, target: Target) -> None:
        if self._informer(target.namespace) is None:
            raise UsageError(
                f"nobody looks after jobs in the namespace {target.namespace}: this controller does in "
                f"{', '.join(self._informers)}"
            )

    # ------------------------------------------------------------------ what informers tell
    def _set_back(self) -> None:
        """The server has an older state than it had: a backup was restored."""
        caches = [informer.cache for informer in self._informers.values()]
        self._index.restart(one["row"] for cache in caches for one in cache.all())

    def _wished(self) -> None:
        for handler in self._handlers:
            handler()


class _Told:
    """Hands on what one informer tells."""

    def __init__(
        self, informer: Informer, index: Index, set_back: Callable[[], None], wished: Callable[[], None]
    ) -> None:
        self._informer, self._index, self._set_back, self._wished = informer, index, set_back, wished
        self._reached = 0

    def __call__(self, key: str) -> None:
        reached, kept = self._informer.reached, self._informer.cache.get(key)
        before, self._reached = self._reached, reached
        if reached < before:
            self._set_back()
            self._wished()
        elif kept is None:
            self._index.absent(key, reached)
            self._wished()
        elif self._index.put(kept["row"]):
            self._wished()


def _nothing(target: Target) -> str:
    return f"there is no job {target.namespace}/{target.name}: `fathom list` shows those there are"


def _give_way(number: int) -> None:
    """Before the n-th try of a change: two that keep pace would be in each other's way for ever."""
    if number > 1:
        time.sleep(random.uniform(0.0, _WAY_SECONDS * number))


def _readable(rows: Iterable[Row]) -> Iterator[StoredJob]:
    for row in rows:
        try:
            yield stored_of(row.found())
        except Unavailable as error:
            _LOG.error("left out: %s", error)
