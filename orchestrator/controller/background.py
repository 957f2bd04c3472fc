"""One thing at a time, beside what the caller does. Whoever has waited long enough can leave it behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_LOOK_SECONDS = 0.2


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

    def wait(self, seconds: float, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Whether nothing is running any more, after so many seconds at most, or fewer if a person has had enough."""
        deadline = time.monotonic() + seconds
        while self._thread is not None and self.busy and not give_up() and time.monotonic() < deadline:
            self._thread.join(min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
        return not self.busy
