"""The log of an attempt in a pod: all that the driver prints, and what Ray forwards to it from the workers.

A laptop's driver is started with its output in the log's file; here Ray has started it with another, where it goes on
to appear. Invariant: printing waits for nobody, and what was printed is in the file though the process is killed.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

_LOOK_SECONDS = 0.5
_PIECE = 1 << 16


class Printing:
    """Of this process and of those that it starts from now on."""

    def __init__(self, log: Path) -> None:
        """From now on output and errors go into the file."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._offset = log, log.stat().st_size if log.exists() else 0
        self._lock = threading.Lock()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._before = os.dup(1)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for number in (1, 2):
            os.dup2(descriptor, number)
        os.close(descriptor)

    def start(self) -> None:
        """Show it where it went before, too, until the process ends."""
        threading.Thread(target=self._run, name="printing", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            self.show()

    def show(self) -> None:
        """What is new."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with self._lock, self._log.open("rb") as file:
            file.seek(self._offset)
            while data := file.read(_PIECE):
                self._offset += len(data)
                self._write(data)

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._before, data) :]
        except OSError:  # nobody listens there any more; the log has it
            return
