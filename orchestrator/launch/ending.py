"""The last word of an attempt, said once, whichever thread of the driver comes first.

Invariant: one `ended` event at most, and whoever ends the attempt by force has first ended all that might hold the
event file's lock, such as a stopped worker.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable

from orchestrator.launch import processes
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import EventLog, FailureClass, Progress, Started
from orchestrator.launch.resolve import Resolved


class Ending:
    """The end of one attempt."""

    def __init__(
        self,
        folder: RunFolder,
        resolved: Resolved,
        *,
        first: Callable[[], None] = lambda: None,
        last: Callable[[FailureClass | None], None] = lambda _: None,
    ) -> None:
        """`first` begins an end by force: it ends what might hold the event file's lock and is not of this session.
        `last` takes the last word, once it is written, to where it is waited for."""
        self._folder, self._resolved, self._first, self._last = folder, resolved, first, last
        self._claim = threading.Lock()

    def write(self, outcome: str, failure: FailureClass | None, message: str) -> None:
        """How it ended; waits for the end of this process if another thread is about to say so."""
        self._claim.acquire()  # and never released
        self._write(outcome, failure, message)
        self._last(failure)

    def at_once(self, outcome: str, failure: FailureClass, message: str) -> None:
        """Ends everything now, saved or not, this process too; nothing if the end is being written already."""
        if not self._claim.acquire(blocking=False):
            return
        own, leads = os.getpid(), os.getsid(0) == os.getpid()
        if leads:
            processes.kill_session(own, spare=own)
        try:
            self._first()
            self._write(outcome, failure, message)
            self._last(failure)
        except Exception:  # noqa: BLE001 - whatever it is: this process must end; the launcher writes the end then
            traceback.print_exc()
        if not leads and os.getpgrp() == own:  # started by hand: the session is that of a person's shell
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    def _write(self, outcome: str, failure: FailureClass | None, message: str) -> None:
        EventLog(self._folder.events).append(
            "ended",
            job=self._resolved.job.uid,
            attempt=self._resolved.attempt,
            incarnation=self._resolved.incarnation,
            outcome=outcome,
            failure_class=failure,
            message=message,
            step=last_step(self._folder, self._resolved),
        )


def last_step(folder: RunFolder, resolved: Resolved) -> int | None:
    """Where this attempt stands: a start goes back to its checkpoint, that of all steps has nothing left to do."""
    events, _ = EventLog(folder.events).read()
    steps = [e.step for e in events if isinstance(e, Started | Progress) and e.attempt == resolved.attempt]
    return steps[-1] if steps else None
