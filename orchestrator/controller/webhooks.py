"""Tells other programs of jobs: by a thread of its own, which the controller never waits for.

The controller calls `tell` after it has written a status; what is to be said is written down at once and posted later,
again and again for a day, also by the next process. So a note may arrive twice, with the same id; see docs/webhooks.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from orchestrator.controller import outbox
from orchestrator.controller.files import WatchedFile
from orchestrator.controller.hooks import TeamHook, read_hooks, signature
from orchestrator.controller.notes import Note, notes
from orchestrator.controller.outbox import Entry
from orchestrator.controller.posting import Reach, Undelivered, post
from orchestrator.errors import UsageError
from orchestrator.launch.events import Event
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob
from orchestrator.status import JobStatus

IDLE_SECONDS = 5.0
"""Between two looks at what is due."""
_MOST_OPEN = 10_000
"""Jobs with notes on their way that are remembered; of others the files are found when there is room again."""


class Post(Protocol):
    """Undelivered unless the other side has taken it."""

    def __call__(self, url: str, body: bytes, headers: dict[str, str], reach: Reach) -> None: ...


class Notifier:
    """One for each service. `say` is called from its thread, too."""

    def __init__(
        self,
        settings: Settings,
        say: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.time,
        send: Post = post,
    ) -> None:
        """`clock`: unix seconds, by which pauses go on over restarts."""
        self._home, self._reach = settings.home, Reach(settings.webhook_hosts)
        self._say, self._clock, self._send = say, clock, send
        self._file = None if settings.webhooks_file is None else WatchedFile(settings.webhooks_file)
        self._hooks: dict[str, TeamHook] = {}
        self._told: set[str] = set()
        self._lock = threading.Lock()
        """Held while a file of notes is read and replaced; never while something is posted."""
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._open: set[Path] = set()
        self._more = True
        """Whether there may be files that are not in `_open`; at the start, those of an earlier process."""

    def tell(
        self,
        uid: str,
        job: TrainingJob,
        before: JobStatus | None,
        after: JobStatus,
        events: Iterable[Event] = (),
        *,
        deleted: bool = False,
    ) -> None:
        """After a status was written. `before`: that of before, None at the first look of this process, together with
        all events of the job; `events`: since the last look; `deleted`: the job is about to be forgotten. Takes no time
        and raises nothing."""
        try:
            self._take(uid, job, before, after, events, deleted)
        except Exception as error:  # noqa: BLE001 - a full disk, or our own mistake: no reason to neglect the job
            self._once(f"webhook of {job.metadata.namespace}/{job.metadata.name}: nothing is sent: {error}")

    def start(self) -> None:
        """Deliver from now on, also what an earlier process has left."""
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
        self._thread.start()

    def close(self, patience: float = 2.0) -> None:
        """End the thread; what is on its way is tried again by the next process."""
        self._ended.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(patience)

    def deliver(self) -> None:
        """Try once what is due. Called by the thread."""
        self._find()
        for path in sorted(self._open):
            if self._ended.is_set():
                return
            if not self._deliver(path):
                self._open.discard(path)

    # ------------------------------------------------------------------ what is to be said
    def _take(
        self,
        uid: str,
        job: TrainingJob,
        before: JobStatus | None,
        after: JobStatus,
        events: Iterable[Event],
        deleted: bool,
    ) -> None:
        own, team = job.spec.notify, self._teams().get(job.metadata.namespace)
        if own is None and team is None:
            return
        now = self._clock()
        found = notes(uid, job, before, after, events, datetime.fromtimestamp(now, UTC), deleted=deleted)
        new = [one for note in found for one in _addressed(note, job, team)]
        if not new:
            return
        path = outbox.outbox(self._home, uid)
        with self._lock:
            known = outbox.read(path)
            entries = outbox.added(known, new, now)
            if entries == known:
                return
            outbox.write(path, entries)
        self._remember(path)
        self._wake.set()

    def _teams(self) -> dict[str, TeamHook]:
        """By the file as it is now; as it was, while it cannot be read."""
        if self._file is not None and self._file.changed():
            try:
                self._hooks = read_hooks(self._file.path)
            except UsageError as error:
                self._once(f"{error}; the webhooks of before stay in force")
        return self._hooks

    # ------------------------------------------------------------------ the thread
    def _run(self) -> None:
        while not self._ended.is_set():
            self._wake.clear()
            try:
                self.deliver()
            except Exception as error:  # noqa: BLE001 - e.g. a disk that fails for a moment: the thread must go on
                self._once(f"webhooks: {error}")
            self._wake.wait(IDLE_SECONDS)

    def _find(self) -> None:
        """Files of an earlier process, and those for which there was no room."""
        if not self._more or len(self._open) >= _MOST_OPEN:
            return
        found = sorted(outbox.folder(self._home).glob("*.json"))
        self._more = len(found) > _MOST_OPEN
        self._open |= set(found[: _MOST_OPEN - len(self._open)])

    def _remember(self, path: Path) -> None:
        if len(self._open) < _MOST_OPEN:
            self._open.add(path)
        else:
            self._more = True

    def _deliver(self, path: Path) -> bool:
        """What is due of one job, in its order; whether anything is left to be delivered."""
        dead: set[str | None] = set()
        for one in outbox.read(path):
            if one.due(self._clock()) and one.url not in dead and not self._ended.is_set():
                tried = self._try(one)
                if tried.done != "delivered":
                    dead.add(one.url)  # what comes later waits, too
                self._replace(path, tried)
        with self._lock:
            left = outbox.added(outbox.read(path), [], self._clock())
            outbox.write(path, left)
        return any(one.done is None for one in left)

    def _try(self, one: Entry) -> Entry:
        try:
            self._post(one)
        except Undelivered as error:
            after = one.failed(str(error), self._clock())
            if after.done == "given up":
                self._say(f"webhook of the {one.to}: note {one.id} was not delivered for a day: {error}")
            else:
                self._once(f"webhook of the {one.to}: {error}; it is tried again for a day")
            return after
        return one.delivered()

    def _post(self, one: Entry) -> None:
        team = self._teams().get(one.team)
        url = one.url if one.to == "job" else None if team is None else team.url
        if url is None:
            raise Undelivered(f"FATHOM_WEBHOOKS names no address for team {one.team} any more")
        body, now = one.text.encode(), int(self._clock())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "fathom",
            "webhook-id": one.id,
            "webhook-timestamp": str(now),
        }
        if team is not None:
            headers["webhook-signature"] = signature(team.secret, one.id, now, body)
        self._send(url, body, headers, Reach(trusted=True) if one.to == "team" else self._reach)

    def _replace(self, path: Path, tried: Entry) -> None:
        with self._lock:
            entries = [tried if (one.id, one.to) == (tried.id, tried.to) else one for one in outbox.read(path)]
            outbox.write(path, entries)

    def _once(self, message: str) -> None:
        if message not in self._told and len(self._told) < 1000:
            self._told.add(message)
            self._say(message)


def _addressed(note: Note, job: TrainingJob, team: TeamHook | None) -> list[Entry]:
    """To the job's own webhook, to that of its team, to both, or to none."""
    entries, namespace = [], job.metadata.namespace
    if job.spec.notify is not None and note.kind in job.spec.notify.when:
        entries.append(outbox.entry(note, "job", namespace, job.spec.notify.url))
    if team is not None and note.kind in team.when:
        entries.append(outbox.entry(note, "team", namespace, None))
    return entries
