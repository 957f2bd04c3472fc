"""The driver's own watch over its attempt: a thread that reads the events every second and ends what is stuck.

Holds no state that the attempt needs: if this thread fails, training goes on, and the launcher watches the driver.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable

from orchestrator.launch.base import RunFolder
from orchestrator.launch.ending import Ending
from orchestrator.launch.events import FailureClass, scan
from orchestrator.launch.evidence import describe
from orchestrator.launch.failure import Verdict
from orchestrator.launch.processes import session
from orchestrator.launch.reporter import FileReporter
from orchestrator.launch.resolve import Resolved
from orchestrator.launch.watch import Watch

LOOK_SECONDS = 1.0
DUMP_SECONDS = 5.0
"""After a stall is found: the workers write their stacks at the same limit."""
END_SECONDS = 60.0
"""For restarted workers to see that the attempt has failed, and to end."""


class Guard:
    """Watches one attempt from inside its driver."""

    def __init__(
        self,
        folder: RunFolder,
        resolved: Resolved,
        reporter: FileReporter,
        ending: Ending,
        *,
        evidence: Callable[[], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """`evidence` says what is left of a stall to see; by default what this machine's processes are doing."""
        self._evidence = evidence or (lambda: describe(folder, resolved, lambda: session(os.getsid(0))))
        self._folder, self._reporter, self._ending = folder, reporter, ending
        self._clock, self._wait = clock, wait
        self._watch, self._offset = Watch.of(resolved), 0

    def start(self) -> None:
        """Watch until the driver ends."""
        threading.Thread(target=self._run, name="guard", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                if self.look():
                    return
            except Exception:  # noqa: BLE001 - e.g. a disk that fails for a moment: the watch must go on
                traceback.print_exc()
            self._wait(LOOK_SECONDS)

    def look(self) -> bool:
        """Look once, and act; whether the attempt was ended."""
        verdict = self._verdict()
        if verdict is None:
            return False
        if verdict.failure is FailureClass.STALLED:
            return self._stalled()
        print(verdict.message, flush=True)
        self._reporter.failed(verdict.failure, verdict.message)
        self._wait(END_SECONDS)  # the driver ends, and this thread with it
        self._ending.at_once("failed", *(self._reporter.failure() or (verdict.failure, verdict.message)))
        return True

    def _verdict(self) -> Verdict | None:
        found = scan(self._folder.events, self._offset)
        self._offset = found.offset
        for event in found.events:
            self._watch.add(event)
        return self._watch.look(self._clock())

    def _stalled(self) -> bool:
        self._wait(DUMP_SECONDS)
        verdict = self._verdict()
        if verdict is None:
            return False  # just late
        message = f"{verdict.message}; {self._evidence()}"
        print(message, flush=True)
        said = self._reporter.failure()  # a worker that failed may not come to its end: what it said is the reason
        self._ending.at_once("failed", *(said or (verdict.failure, message)))
        return True
