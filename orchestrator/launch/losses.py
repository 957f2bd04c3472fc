"""Tells why Ray starts workers again. Runs in Ray Train's controller process; imported by the driver only."""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ray.train.v2.api.callback import UserCallback

_SAME_SECONDS = 5.0
"""Ray may tell one loss at several looks, 2 s apart; a new start of workers takes longer."""
_SHOWN = 300
_TOLD = "SIGTERM"
"""Ray's word for a machine whose raylet was told to end: a pod that somebody deletes."""
_HARDWARE = re.compile(r"uncorrectable (?:ECC|NVLink) error|hardware (?:stack )?error", re.IGNORECASE)
"""By cudaErrorECCUncorrectable, cudaErrorNvlinkUncorrectable, cudaErrorHardwareStackError (CUDA Runtime API)."""


class TellsLosses(Protocol):
    """Who is told."""

    def workers_lost(self, message: str, ranks: Sequence[int] = ()) -> None:
        """An event; `ranks` of those who may have died by their machine's fault."""

    def has_failed(self) -> bool:
        """Whether a worker has said itself why nobody goes on."""


class TellLosses(UserCallback):  # type: ignore[misc]  # Ray has no types
    """Turns the loss of workers into an event. Never raises: Ray would end the run for that."""

    def __init__(self, reporter: TellsLosses, clock: Callable[[], float] = time.monotonic) -> None:
        self._reporter, self._clock = reporter, clock
        self._told: tuple[str, float] | None = None

    def after_exception(self, run_context: object, worker_exceptions: Mapping[int, BaseException]) -> None:
        """See Ray."""
        try:
            (message, ranks), now = describe(worker_exceptions), self._clock()
            again = self._told is not None and self._told[0] == message and now - self._told[1] < _SAME_SECONDS
            self._told = (message, now)
            if not again and not self._reporter.has_failed():  # a worker has said itself why, and nobody goes on
                self._reporter.workers_lost(message, ranks)
        except Exception:  # noqa: BLE001 - see above
            traceback.print_exc()


def describe(failures: Mapping[int, BaseException]) -> tuple[str, list[int]]:
    """`rank 1: ActorDiedError: The actor died ...`, and its rank: of who died, if anybody; the others failed because of
    it. Ranks are those of which the machine may be to blame."""
    causes = {rank: _cause(failures[rank]) for rank in sorted(failures)}
    blamed = {rank: error for rank, error in causes.items() if "Died" in type(error).__name__} or causes
    ranks = ", ".join(str(rank) for rank in list(blamed)[:16])
    error = next(iter(blamed.values()))
    text = " ".join(str(error).split())[:_SHOWN]
    return f"rank {ranks}: {type(error).__name__}: {text}", [r for r in blamed if _is_of_machine(causes[r])]


def _is_of_machine(error: BaseException) -> bool:
    """A process that died, unless its pod was told to go; or a device that says so. Not what most who lose a peer say,
    some of whom are heard before anybody knows of the one that died."""
    text = str(error)
    died = "Died" in type(error).__name__ and _TOLD not in text
    return died or _HARDWARE.search(text) is not None


def _cause(error: BaseException) -> BaseException:
    """What Ray has wrapped: the worker's own exception, or why it could not be asked."""
    for name in ("health_check_failure", "_base_exc"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return _cause(inner)
    return error
