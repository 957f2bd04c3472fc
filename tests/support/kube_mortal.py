"""A controller's way to the API server, on which it may be killed: then no line of it is run that asks the server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.errors import Unavailable
from orchestrator.kube.client import Kube
from orchestrator.kube.resources import Json
from orchestrator.kube.stream import Stream


class Killed(BaseException):
    """No error that a controller could do something about: `except Exception` lets it pass, as SIGKILL would."""


class MortalKube(Kube):
    """Of one controller. Once `dead`, each thread of it ends where it asks for something or waits for an answer."""

    dead = False

    def _ask(self, *args: Any, **options: Any) -> Json:  # noqa: ANN401 - as the other one takes them
        with self._mortal():
            return super()._ask(*args, **options)

    def watch(self, *args: Any, **options: Any) -> Stream:  # noqa: ANN401
        with self._mortal():
            return super().watch(*args, **options)

    def live(self) -> None:
        """Killed, if it is dead."""
        if self.dead:
            raise Killed

    @contextmanager
    def _mortal(self) -> Iterator[None]:
        self.live()
        try:
            yield
        except Unavailable:
            self.live()
            raise
        self.live()  # another thread's write was its last moment: what has been read meanwhile nobody reads


@contextmanager
def without_a_word() -> Iterator[None]:
    """Threads that are killed say nothing of it."""
    before = threading.excepthook

    def hook(found: threading.ExceptHookArgs) -> None:
        if not issubclass(found.exc_type, Killed):
            before(found)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
