"""Brings MLflow to what the files of a run's folder say, whoever wrote them, and whoever calls.

The launcher calls in a thread while training goes on and at its end; `fathom sync` and later launchers finish what
others have left. Invariants: nothing that MLflow does reaches the caller as an error; two never send for one run at
once (`tracking.lock`); a run that another process follows, or whose driver lives, is left alone by everybody else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.controller.history import History
from orchestrator.controller.pictures import refresh_artifacts, refresh_load
from orchestrator.controller.record import Record
from orchestrator.controller.wanted import Wanted
from orchestrator.errors import Conflict, FathomError
from orchestrator.launch import local
from orchestrator.launch.base import RECORDS, RunFolder
from orchestrator.launch.locks import is_locked, locked
from orchestrator.settings import Settings
from orchestrator.tracking import client as requests
from orchestrator.tracking import trouble
from orchestrator.tracking.mlflow import MadeWay, Mirroring, Reference, reference, target
from orchestrator.tracking.points import Fold
from orchestrator.tracking.reached import Reached
from orchestrator.tracking.spool import Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

RETRY_SECONDS = 10.0
"""A server that failed is left alone for that long."""


class Mirror:
    """One run in one MLflow. Used by one thread at a time."""

    def __init__(
        self,
        record: Record,
        settings: Settings,
        say: Callable[[str], None],
        *,
        give_way: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`give_way`: whether to stop between two batches, because something else is more urgent."""
        self.record, self._uri, self._say = record, settings.tracking_uri, say
        self._give_way, self._clock, self._sleep = give_way, clock, sleep
        self._history: History | None = None
        self._wanted: Wanted | None = None
        self._spool: Spool | None = None
        self._client: MlflowClient | None = None
        self._not_before = float("-inf")
        self._told = False
        self.behind: str | None = None
        """Why something is still missing in MLflow; None after a call that was successful."""

    @property
    def reference(self) -> Reference | None:
        """The parent run, once it exists."""
        return reference(Reached.load(self.record.folder.tracking, target(self._uri)))

    def sync(self, *, live: bool, now: bool = False) -> bool:
        """Send what is missing; whether nothing is any more. After a failure only `now` tries at once."""
        if not now and self._clock() < self._not_before:
            return False
        try:
            with locked(self.record.folder.tracking_lock) as mine:
                if mine:
                    self._reach(live=live)
            self.behind = None if mine else "another process is sending"
            self._told = self._told and not mine
        except MadeWay:
            self.behind = "not all is sent yet"
        except FathomError as error:
            self._fail(str(error))
        # The edge to MLflow: it raises anything from requests to sqlalchemy errors, and its trouble must not stop a
        # training run or its budget control. What is missing is found again by the next call.
        except Exception as error:  # noqa: BLE001
            self._fail(requests.complaint(self._uri, error))
        return self.behind is None

    def finish(self, patience: float, give_up: Callable[[], bool] = lambda: False, *, live: bool = False) -> bool:
        """Try until nothing is missing, for so many seconds; `live`: the driver goes on without us."""
        deadline = self._clock() + patience
        while not self.sync(live=live, now=True):
            if self._clock() + 1.0 >= deadline or give_up():
                return False
            self._sleep(1.0)
        return True

    def _fail(self, why: str) -> None:
        if not self.record.folder.job.exists():
            self.behind = None  # somebody has removed the run meanwhile: nothing of it is missing anywhere
            return
        self.behind, self._not_before = why, self._clock() + RETRY_SECONDS
        if not self._told:
            self._say(f"{why}; nothing waits for it, what is missing is sent later")
        self._told = True

    def _reach(self, *, live: bool) -> None:
        folder = self.record.folder
        if not folder.last_attempt():
            return
        as_it_is = state_of(folder)
        history = self._refreshed()
        unmade = self._make_files(history, live=live)
        reached = Reached.load(folder.tracking, target(self._uri))
        if not folder.tracking.exists() or (reached.settled is not None and (live or reached.settled != as_it_is)):
            reached.settled = None
            reached.save(folder.tracking)  # before anything is sent: whoever finds it knows where the run belongs
        reached = self._sent(reached, live=live)
        if unmade is not None:
            raise OSError(f"files of the run could not be made: {unmade}") from unmade
        if not live and reached.settled != as_it_is:
            reached.settled = as_it_is
            reached.save(folder.tracking)

    def _make_files(self, history: History, *, live: bool) -> Exception | None:
        """Pictures and tables; why not, if they cannot be made. What else there is to send does not wait for them."""
        try:
            if live:
                refresh_load(self.record.folder)
            else:
                refresh_artifacts(self.record, history)
        except Exception as error:  # noqa: BLE001 - a full disk, a folder in the way, or whatever matplotlib raises
            return error
        return None

    def _sent(self, reached: Reached, *, live: bool) -> Reached:
        """-> what is reached then. What MLflow has against it is left in the run's folder, for who shows the run."""
        folder, uri = self.record.folder, self._uri
        try:
            try:
                self._send(reached, live=live)
            except Exception as error:
                if not requests.is_missing(error):
                    raise
                reached = Reached(target=target(uri))
                self._send(reached, live=live)  # another database in the same place: all of it again
        except MadeWay:
            trouble.forget(folder.tracking_trouble)
            raise
        except Exception as error:
            if not _is_our_own(error, folder) and folder.job.exists():
                trouble.note(folder.tracking_trouble, target(uri), requests.complaint(uri, error), time.time())
            raise
        trouble.forget(folder.tracking_trouble)
        return reached

    def _send(self, reached: Reached, *, live: bool) -> None:
        history = self._refreshed()
        if self._client is None:
            self._client = requests.connect(self._uri)
        if self._wanted is None:
            self._wanted = Wanted(self.record, history)
        wanted = self._wanted.now(live=live)
        if self._spool is None or not self._spool.knows(reached):
            self._spool = Spool(Fold(wanted.spent_at, self._wanted.flops_per_token), self._say)
        path = self.record.folder.tracking
        Mirroring(
            self._client, self._uri, wanted, reached, self._spool, lambda: reached.save(path), self._give_way
        ).reach()

    def _refreshed(self) -> History:
        if self._history is None:
            self._history = History(self.record)
        else:
            self._history.refresh()
        return self._history


def _is_our_own(error: Exception, folder: RunFolder) -> bool:
    """Whether a file of the run is in the way, and not MLflow."""
    named = error.filename if isinstance(error, OSError) else None
    return isinstance(error, FathomError) or (isinstance(named, str) and Path(named).is_relative_to(folder.root))


def sync_run(record: Record, settings: Settings, say: Callable[[str], None]) -> str | None:
    """Bring MLflow to what the folder says; why something is missing still, or None."""
    mirror = Mirror(record, settings, say)
    mirror.sync(live=driver_lives(record.folder), now=True)
    return mirror.behind


def state_of(folder: RunFolder) -> str:
    """Changes whenever MLflow may have to be told something new of a run that nobody follows."""
    try:
        size = folder.events.stat().st_size
    except FileNotFoundError:
        size = 0
    return f"attempt {folder.last_attempt()}, {size} bytes of events"


def is_settled(folder: RunFolder, settings: Settings) -> bool:
    """Whether MLflow knows all of a run that nobody follows."""
    if not folder.last_attempt():
        return True
    reached = Reached.peek(folder.tracking)
    return (
        reached is not None and reached.target == target(settings.tracking_uri) and reached.settled == state_of(folder)
    )


def leftovers(settings: Settings, *, but: Path) -> Iterator[Record]:
    """Runs of this home that belong into this MLflow, are not all there, and are nobody's."""
    for path in sorted(settings.home.glob(RECORDS)):
        folder = RunFolder(path.parent)
        try:
            if folder.root != but and _is_left(folder, settings):
                yield Record.open(folder.root)
        except (FathomError, OSError):
            continue  # whoever asks for that run is told what is wrong with it


def _is_left(folder: RunFolder, settings: Settings) -> bool:
    reached = Reached.peek(folder.tracking)
    if reached is None or reached.target != target(settings.tracking_uri) or is_settled(folder, settings):
        return False
    return not is_followed(folder) and not driver_lives(folder)


def is_followed(folder: RunFolder) -> bool:
    """Whether a launcher has the run in its hands."""
    return is_locked(folder.launcher_lock)


def driver_lives(folder: RunFolder) -> bool:
    """Whether the run goes on, here or on another machine."""
    try:
        return local.running(folder) is not None
    except Conflict:
        return True
