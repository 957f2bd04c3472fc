"""Requests that make the service read from other machines: few at once, so that those which do not answer take no more
than a part of its threads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.controller.aside import urls
from orchestrator.errors import RateLimited
from orchestrator.spec import TrainingJob

_PER_TOKEN, _TOTAL = 4, 12
_RETRY_SECONDS = 10.0


class Far:
    """All such requests of a server. Used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: Counter[str] = Counter()

    @contextmanager
    def read(self, job: TrainingJob, who: str) -> Iterator[None]:
        """While a job of the token `who` is looked at; RateLimited if that is one too many. Jobs that name local files
        only are always looked at."""
        asked = urls(job)
        if not asked:
            yield
            return
        with self._lock:
            if self._now[who] >= _PER_TOKEN or self._now.total() >= _TOTAL:
                raise RateLimited(
                    f"the job reads {asked[0]}; {self._now[who]} jobs of this token, {self._now.total()} in all, wait "
                    f"for what they read from other machines, at most {_PER_TOKEN} of a token and {_TOTAL} in all may: "
                    "try again later, or name local files",
                    _RETRY_SECONDS,
                )
            self._now[who] += 1
        try:
            yield
        finally:
            with self._lock:
                self._now[who] -= 1
                self._now += Counter()  # which forgets who has none
