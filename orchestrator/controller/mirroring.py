"""The launcher's side of MLflow: a thread that mirrors the run, and what other runs have left, while training goes on.

Neither training nor its display ever wait for it. Only the end of the command does, and not for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from orchestrator.controller.background import Background
from orchestrator.controller.record import Record
from orchestrator.controller.sync import Mirror, leftovers
from orchestrator.settings import Settings
from orchestrator.tracking.mlflow import Reference

PATIENCE_SECONDS, GRACE_SECONDS = 60.0, 5.0


def _quietly(message: str) -> None:
    """Of other runs only `fathom sync` speaks."""


class Tracking:
    """Of one run in the hands of this process."""

    def __init__(
        self,
        record: Record,
        settings: Settings,
        say: Callable[[str], None],
        *,
        patience: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """At its end the run waits for MLflow for at most `patience` seconds."""
        self._record, self._settings, self._say = record, settings, say
        self._patience, self._clock = patience, clock
        self._thread = Background("tracking")
        self._hurry = threading.Event()
        self._mirror = Mirror(record, settings, say, clock=clock)
        self._leftovers = leftovers(settings, but=record.folder.root)

    @property
    def reference(self) -> Reference | None:
        """The run in MLflow, once it exists."""
        return self._mirror.reference

    def tick(self) -> None:
        """Begin to send what is new, unless that is going on already."""
        self._thread.start(self._live)

    def finish(self, give_up: Callable[[], bool] = lambda: False, *, live: bool = False) -> bool:
        """This process adds nothing to the run any more: whether MLflow knows all of it now. Says so if not.

        `give_up`: whether to wait no longer, which a healthy MLflow has `GRACE_SECONDS` for all the same; `live`:
        whether the driver goes on without this process.
        """
        began = self._clock()
        deadline = began + self._patience

        def enough() -> bool:
            return give_up() and self._clock() - began >= GRACE_SECONDS

        self._hurry.set()
        in_time = self._thread.wait(self._patience, enough)
        if in_time:
            rest = max(1.0, deadline - self._clock())
            self._thread.start(partial(self._mirror.finish, rest, enough, live=live))
            in_time = self._thread.wait(rest, enough)
        if in_time and self._mirror.behind is None:
            return True
        why = self._mirror.behind or "it does not answer"
        self._say(f"MLflow is behind ({why}); `fathom sync {self._record.folder.root}` sends what is missing")
        return False

    def _live(self) -> None:
        """This run first; then one of those that earlier launchers have left."""
        if self._mirror.sync(live=True) and not self._hurry.is_set():
            other = next(self._leftovers, None)
            if other is not None:
                Mirror(other, self._settings, _quietly, give_way=self._hurry.is_set).sync(live=False)
