"""Removes folders of runs, which may hold many gigabytes, without letting anybody wait: moved out of the way at once,
and gone when a thread of its own has done its work. What is left when the process ends, `sweep` of the next one finds.
"""

from __future__ import annotations

import queue
import secrets
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PREFIX = ".removing-"
"""Of names in a home: half a run is read by nobody as one."""


class Remover:
    """Of one process. `say` is called from its thread."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._doomed: queue.Queue[Path] = queue.Queue()
        self._thread: threading.Thread | None = None

    def remove(self, root: Path) -> None:
        """The folder is not there any more when this returns. OSError if it cannot be moved."""
        doomed = root.with_name(f"{PREFIX}{root.name}")
        if doomed.exists():  # of one that was killed here
            self._put(doomed)
            doomed = doomed.with_name(f"{doomed.name}.{secrets.token_hex(4)}")
        with suppress(FileNotFoundError):
            root.rename(doomed)
            self._put(doomed)

    def sweep(self, home: Path) -> None:
        """What an earlier process has left."""
        for doomed in sorted(home.glob(f"{PREFIX}*")):
            self._put(doomed)

    def wait(self) -> None:
        """Until all is gone that can go."""
        self._doomed.join()

    def _put(self, doomed: Path) -> None:
        self._doomed.put(doomed)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="remover", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            doomed, failed = self._doomed.get(), list[BaseException]()
            shutil.rmtree(doomed, onerror=lambda _, path, error, failed=failed: failed.append(error[1]))  # type: ignore[misc]
            if failed and doomed.exists():
                self._say(f"{doomed}, of a run that was deleted, cannot be removed: {failed[0]}; remove it by hand")
            self._doomed.task_done()
