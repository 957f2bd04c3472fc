"""What a job reads from other machines is read beside the controller, which waits for none of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from model.files import local_path
from orchestrator.spec import TrainingJob

T = TypeVar("T")
KEPT_SECONDS = 300.0
"""After which it is called again: what it has read may be another."""


def urls(job: TrainingJob, *, data: bool = True) -> list[str]:
    """Of other machines that are read when the job is resolved; without `data` only what its pods do not read."""
    spec = job.spec
    read = [spec.model.init_from, *([spec.data.tokenizer, *spec.training.evaluation.tasks] if data else [])]
    return [uri for uri in read if uri and local_path(uri) is None]


class Aside(Generic[T]):
    """One call at a time, in a thread that nobody waits for. Used by one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._key: object = None
        self._found: Future[T] | None = None
        self._began = 0.0

    def get(self, key: object, call: Callable[[], T]) -> T | None:
        """What `call` has come to since it was asked for under this key; None: nothing yet. Raises what it has raised.

        One that was asked for under another key is not wanted any more, but ends first: servers that do not answer
        must not cost a thread each time.
        """
        if self._found is None or (self._found.done() and not self._is_good_for(key)):
            self._key, self._found, self._began = key, Future(), self._clock()
            threading.Thread(target=_run, args=(self._found, call), name="aside", daemon=True).start()
        return self._found.result() if self._found.done() and self._key == key else None

    def _is_good_for(self, key: object) -> bool:
        return self._key == key and self._clock() - self._began < KEPT_SECONDS


def _run(found: Future[T], call: Callable[[], T]) -> None:
    try:
        found.set_result(call())
    except BaseException as error:  # noqa: BLE001 - raised where it is asked for
        found.set_exception(error)
