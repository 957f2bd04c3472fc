"""One thing at a time, beside what the caller does. Whoever has waited long enough can leave it behind."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs tasks in a daemon thread: a server that does not answer keeps no command from ending."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a task is running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, task: Callable[[], object]) -> bool:
        """Begin a task, unless one is running; whether it was begun."""
        if self.busy:
            return False
        self._thread = threading.Thread(target=task, name=self._name, daemon=True)
        self._thread.start()
        return True

    def wait(self, seconds: float) -> bool:
        """Whether nothing is running any more, after so many seconds at most."""
        if self._thread is not None:
            self._thread.join(seconds)
        return not self.busy
