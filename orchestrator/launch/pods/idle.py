"""Ends an attempt that is told to stop while no worker trains, before the first start or between two of them: nothing
is there to save, nobody reads the order, and pods that are told to go would wait as long as a checkpoint may take.
"""

from __future__ import annotations

import threading
import time
import traceback

from orchestrator.launch.attempt import why_stopped
from orchestrator.launch.base import RunFolder
from orchestrator.launch.ending import Ending
from orchestrator.launch.events import Started, WorkersLost, scan
from orchestrator.launch.reporter import FileReporter

LOOK_SECONDS = 1.0


class IdleStop:
    """A thread of the driver."""

    def __init__(self, folder: RunFolder, reporter: FileReporter, ending: Ending) -> None:
        self._folder, self._reporter, self._ending = folder, reporter, ending
        self._offset = 0
        self._training = False

    def start(self) -> None:
        """Look until the driver ends."""
        threading.Thread(target=self._run, name="idle", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception:  # noqa: BLE001 - e.g. a disk that fails for a moment
                traceback.print_exc()
            time.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """End it if nothing speaks against it. Workers that begin at this moment would find the order and save
        nothing, too."""
        found = scan(self._folder.events, self._offset)
        self._offset = found.offset
        for event in found.events:
            if isinstance(event, Started | WorkersLost):
                self._training = isinstance(event, Started)
        if not self._training and (stop := self._reporter.stop_requested()) is not None:
            self._ending.at_once("stopped", why_stopped(stop), stop.reason)
