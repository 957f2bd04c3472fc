"""The process that mirrors runs to MLflow, in the hands of a controller. See `controller.mirror_main`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from orchestrator.settings import Settings

RESTART_SECONDS = 10.0
"""One that died is started again, but not at once."""


class MirrorProcess:
    """Used by one thread. Nothing here waits for MLflow, but for `finish`."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._process: subprocess.Popen[bytes] | None = None
        self._not_before = float("-inf")

    def start(self) -> None:
        """It looks for what earlier controllers have left, though there be no news. One that does not come up comes up
        with the first news."""
        self._stream()

    def tell(self, name: str) -> None:
        """That the run in this folder of the home has news. What does not get through is told again later."""
        stream = self._stream()
        if stream is not None:
            with suppress(OSError):  # it has just died, or its pipe is full of what it has not read yet
                os.write(stream.fileno(), f"{name}\n".encode())

    def finish(self, done: Callable[[], bool], seconds: float, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait until `done`, for so long at most, or until a person has had enough; -> whether it is."""
        deadline = self._clock() + seconds
        while not (finished := done()) and self._clock() < deadline and not give_up():
            time.sleep(0.1)
        return finished

    def close(self) -> None:
        """It ends by itself, soon, with what it is doing."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        self._process = None

    def _stream(self) -> IO[bytes] | None:
        """To its standard input; started if it does not run. None while it cannot be."""
        if self._process is not None and self._process.poll() is None:
            return self._process.stdin
        if self._clock() < self._not_before:
            return None
        self._not_before = self._clock() + RESTART_SECONDS
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.controller.mirror_main"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "FATHOM_HOME": str(self._settings.home)},
            )
        except OSError:  # the machine has no memory, processes or files left for it now
            self._process = None
            return None
        assert self._process.stdin is not None, "it was asked for"
        os.set_blocking(self._process.stdin.fileno(), False)
        return self._process.stdin
