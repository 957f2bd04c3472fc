"""Writes that nobody waits for: done by a thread of their own, again and again until they are done."""

from __future__ import annotations

import threading
from collections.abc import Callable

from orchestrator.errors import FathomError
from orchestrator.kube.lease import LostLease
from orchestrator.kube.problems import wait_asked
from orchestrator.kube.queue import Backoff, WorkQueue

_BACKOFF = Backoff(first=0.5, longest=60.0)


class Tending:
    """Of one process. What is asked for under a key twice, before it was begun, is done once."""

    def __init__(self, say: Callable[[str], None], backoff: Backoff = _BACKOFF) -> None:
        """`say` is called from its thread, once for each thing that is wrong."""
        self._say = say
        self._queue = WorkQueue(backoff)
        self._acts: dict[str, Callable[[], object]] = {}
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="tending", daemon=True)

    def start(self) -> None:
        """Returns at once."""
        self._thread.start()

    def stop(self, patience: float = 1.0) -> None:
        """What is not done by then, whoever leads next finds to be done."""
        self._queue.shut_down()
        if self._thread.is_alive():
            self._thread.join(patience)

    def do(self, key: str, act: Callable[[], object]) -> None:
        """Twice must be the same as once."""
        self._acts[key] = act
        self._queue.add(key)

    def _run(self) -> None:
        while (key := self._queue.get()) is not None:
            try:
                if (act := self._acts.get(key)) is not None:
                    self._do(key, act)
            finally:
                self._queue.done(key)

    def _do(self, key: str, act: Callable[[], object]) -> None:
        try:
            act()
        except LostLease:
            return  # somebody else's task now
        except Exception as error:  # noqa: BLE001 - one that fails must not end the thread that does the others
            words = str(error) if isinstance(error, FathomError) else f"{type(error).__name__}: {error}"
            if words not in self._told:
                self._told.add(words)
                self._say(f"{key} failed, and is tried again: {words}")
            self._queue.failed(key, wait_asked(error))
            return
        self._queue.forget(key)
        self._told.clear()
        if self._acts.get(key) is act:  # else it was asked for again meanwhile
            del self._acts[key]
