"""The driver's own hold on the money: the newest deadline of its attempt, and a thread that ends what goes beyond it.

The first deadline stands in the resolved configuration; whoever watches the money may leave a newer one in the control
file (`events.HardDeadline`), which another thread reads. Invariant: with nobody watching, whatever the file holds or
however long it takes to read it, and though somebody sets the clock back, the attempt is ended in time.
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
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reporter, self._ending = reporter, ending
        self._clock, self._monotonic, self._wait = clock, monotonic, wait
        self._told: set[str] = set()
        self._learned: tuple[HardDeadline, float] | None = None
        """The deadline, and when it is over by the clock that only runs forward."""

    def start(self) -> None:
        """Watch until the driver ends."""
        for name, target in (("deadline", self._hold), ("deadline-news", self._listen)):
            threading.Thread(target=target, name=name, daemon=True).start()

    def _hold(self) -> None:
        while not self.hold():
            self._wait(self.pause())

    def _listen(self) -> None:
        while True:
            self.listen()
            self._wait(LOOK_SECONDS)

    def hold(self) -> bool:
        """End the attempt if it is time; whether it was. Touches no file before that."""
        deadline = self._reporter.known_deadline()
        if deadline is None:
            return False
        if self._learned is None or self._learned[0] != deadline:
            self._learned = (deadline, self._monotonic() + deadline.end - self._clock())
        if self._clock() < deadline.end and self._monotonic() < self._learned[1]:
            return False
        self._ending.at_once("stopped", FailureClass.OVER_BUDGET, OVER)
        return True

    def pause(self) -> float:
        """Seconds until the next look, which is due when the end is."""
        deadline = self._reporter.known_deadline()
        left = LOOK_SECONDS if deadline is None else deadline.end - self._clock()
        return min(LOOK_SECONDS, left) if left > 0 else LOOK_SECONDS

    def listen(self) -> None:
        """Take over what the control file says now; what is wrong with that is told once."""
        try:
            _, complaint = self._reporter.newest_deadline()
            if complaint and complaint not in self._told:
                self._told.add(complaint)
                self._reporter.warning(f"a newer deadline is ignored: {complaint}")
        except Exception:  # noqa: BLE001 - e.g. a disk that fails for a moment: the known deadline holds
            traceback.print_exc()
