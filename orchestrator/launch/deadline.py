"""The driver's own hold on the money: the newest deadline of its attempt, and a thread that ends what goes beyond it.

The first deadline stands in the resolved configuration; whoever watches the money may leave a newer one in the control
file (`events.HardDeadline`). Invariant: with nobody watching, whatever the file holds, the attempt is ended in time.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable

from orchestrator.launch.ending import Ending
from orchestrator.launch.events import FailureClass, HardDeadline
from orchestrator.launch.reporter import FileReporter

LOOK_SECONDS = 1.0
OVER = "the budget was about to be gone before the end of the last checkpoint"


class DeadlineGuard:
    """Of one attempt, in a thread of its driver."""

    def __init__(
        self,
        reporter: FileReporter,
        ending: Ending,
        *,
        clock: Callable[[], float] = time.time,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reporter, self._ending, self._clock, self._wait = reporter, ending, clock, wait
        self._told: set[str] = set()

    def start(self) -> None:
        """Watch until the driver ends."""
        threading.Thread(target=self._run, name="deadline", daemon=True).start()

    def _run(self) -> None:
        while not self.look():
            self._wait(self.pause())

    def look(self) -> bool:
        """Look once, and act; whether the attempt was ended."""
        deadline = self._newest()
        if deadline is None or self._clock() < deadline.end:
            return False
        self._ending.at_once("stopped", FailureClass.OVER_BUDGET, OVER)
        return True

    def pause(self) -> float:
        """Seconds until the next look, which is due when anything is."""
        deadline, now = self._reporter.known_deadline(), self._clock()
        if deadline is None:
            return LOOK_SECONDS
        return min([LOOK_SECONDS, *(at - now for at in (deadline.stop, deadline.end) if at > now)])

    def _newest(self) -> HardDeadline | None:
        """With what the control file says now; what is wrong with that is told once."""
        try:
            deadline, complaint = self._reporter.newest_deadline()
            if complaint and complaint not in self._told:
                self._told.add(complaint)
                self._reporter.warning(f"a newer deadline is ignored: {complaint}")
        except Exception:  # noqa: BLE001 - e.g. a disk that fails for a moment: the known deadline holds
            traceback.print_exc()
            return self._reporter.known_deadline()
        return deadline
