"""What the controller does with an open job before it looks after it: holds it up, so that it does not vanish while
something of it runs, or tells what is wrong with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from types import TracebackType

from orchestrator.errors import Conflict, FathomError, NotFound, RateLimited, Unavailable
from orchestrator.kube.lease import LostLease
from orchestrator.kube.problems import wait_asked
from orchestrator.kube.resources import Json
from orchestrator.kube.writes import Writer
from orchestrator.store.base import StoredJob
from orchestrator.store.index import Row
from orchestrator.store.resource import claim, is_begun, refused, release, stored_of, target_of

_LOG = logging.getLogger(__name__)
_CLAIM_SECONDS = 0.2
"""Of one look at the open jobs, for those that are new: the others wait for the next."""
_AT_ONCE = 8
_PAUSE_SECONDS, _LONGEST_PAUSE = 2.0, 30.0


class Pause:
    """After a write that failed for want of an answer none is tried for a while: each takes long to fail, and the
    controller, which has one to make for each of its jobs, would do nothing else."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._until, self._why = clock, float("-inf"), ""

    def __enter__(self) -> None:
        if self._clock() < self._until:
            raise Unavailable(f"the API server did not answer a moment ago: {self._why}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, RateLimited | Unavailable) and not isinstance(error, LostLease):
            seconds = min(_LONGEST_PAUSE, max(_PAUSE_SECONDS, wait_asked(error)))
            self._until, self._why = self._clock() + seconds, str(error)


class Intake:
    """Of one controller; used by its thread."""

    def __init__(
        self, writer: Writer, pause: Pause, took: Callable[[Json], Json], clock: Callable[[], datetime]
    ) -> None:
        """`took`: is given what a write has made of an object."""
        self._writer, self._pause, self._took, self._clock = writer, pause, took, clock
        self._read: dict[str, StoredJob] = {}
        """By uid, as they were read, those for which there was no time yet, too: the controller looks at all of them
        again and again."""
        self._unfit: dict[str, int] = {}
        """Those that our models refuse, by uid, with the version at which that was told; below 0: it could not be."""
        self._problem = ""
        self._claiming = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="claiming")

    def stop(self) -> None:
        """Nothing is claimed any more."""
        self._claiming.shutdown(cancel_futures=True)

    def read_of(self, row: Row) -> StoredJob | None:
        """The job as it was read at the last look; None if that was another state of it. For any thread."""
        known = self._read.get(row.uid)
        return known if known is not None and known.version == row.version else None

    def look(self, rows: Sequence[Row]) -> Sequence[StoredJob]:
        """Those that can be looked after now. LostLease; no other error."""
        read: dict[str, StoredJob] = {}
        new: list[tuple[Row, StoredJob]] = []
        unfit: dict[str, int] = {}
        for row in rows:
            if self._unfit.get(row.uid) == row.version:
                unfit[row.uid] = row.version
                continue
            known = self.read_of(row)
            if known is None:
                found = row.found()
                try:
                    known = stored_of(found, self._read.get(row.uid))
                except Unavailable as error:
                    unfit[row.uid] = self._refuse(found, str(error))
                    continue
            if row.claimed or row.deleting:
                read[row.uid] = known
            else:
                new.append((row, known))
        read |= {held.uid: held for held in self._claim_all(new)}
        self._read, self._unfit = {job.uid: job for _, job in new} | read, unfit
        return tuple(read.values())

    def _claim_all(self, new: Sequence[tuple[Row, StoredJob]]) -> Iterator[StoredJob]:
        """A few at once, the first ones first, while there is time."""
        until = time.monotonic() + _CLAIM_SECONDS
        for first in range(0, len(new), _AT_ONCE):
            if time.monotonic() >= until:
                return
            found = self._claiming.map(lambda one: self._claim(*one), new[first : first + _AT_ONCE])
            yield from (held for held in found if held is not None)

    def _claim(self, row: Row, job: StoredJob) -> StoredJob | None:
        """None: not now."""
        found = row.found()
        try:
            with self._pause:
                return stored_of(self._took(self._writer.change(target_of(found), found, claim(found))), job)
        except (Conflict, NotFound):  # it is read again at the next look
            return None
        except LostLease:
            raise
        except FathomError as error:
            self._say(f"{job.namespace}/{job.name} cannot be begun: {error}")
            return None

    def _refuse(self, found: Json, why: str) -> int:
        """Tell it in the job's conditions; one that never began goes if it is deleted. -> what `_unfit` has of it."""
        target, metadata = target_of(found), found["metadata"]
        version = int(metadata["resourceVersion"])
        if self._unfit.get(metadata["uid"]) != -version:
            _LOG.error("left out: %s", why)
        try:
            with self._pause:
                if metadata.get("deletionTimestamp") and not is_begun(found):
                    found = self._took(self._writer.change(target, found, release(found)))
                else:
                    status = refused(found, why, self._clock())
                    found = self._took(self._writer.set_status(target, found, status))
            return int(found["metadata"]["resourceVersion"])
        except (Conflict, NotFound):
            pass
        except LostLease:
            raise
        except FathomError as error:
            self._say(f"{target} cannot be told what is wrong with it: {error}")
        return -version

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            _LOG.warning("%s", problem)
