"""A leader that is paused for longer than its lease lasts does not wake up: the kernel ends it in its sleep.

Writes to the API server are refused by the server if they come too late; files are not, and the locks on them
(`launch.locks`) stay with a process that is stopped (SIGSTOP, a frozen container) for as long as it is, so that nobody
could take the home over from it. Hence a timer of the kernel that sends SIGKILL, which no pause keeps off: set with
each renewal, it runs out before another replica may lead. All locks fall, and not one instruction more is carried out.

Where a whole machine is paused, its timers are, too: its process ends when it wakes up, by this or by the lease, and
until then its locks hold, or fall with those of the machine at the file server (NFS).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable

_LOG = logging.getLogger(__name__)
_ABSOLUTE = 1
"""TIMER_ABSTIME of <time.h>."""


class _SigEvent(ctypes.Structure):
    """`struct sigevent` of Linux, which has 64 bytes; SIGEV_SIGNAL is 0."""

    _fields_ = (
        ("value", ctypes.c_void_p), ("signal", ctypes.c_int), ("notify", ctypes.c_int), ("rest", ctypes.c_char * 48),
    )  # fmt: skip


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Deadman:
    """Of this process; OSError where the kernel has no such timer, or would not obey it."""

    def __init__(self) -> None:
        if os.getpid() == 1:  # pid_namespaces(7): of signals from within, only those that it handles
            raise OSError("the first process of a container is not ended by its own timer: set shareProcessNamespace")
        try:
            self._libc = ctypes.CDLL(None, use_errno=True)
            create, clock = self._libc.timer_create, time.CLOCK_BOOTTIME
        except AttributeError as error:
            raise OSError(f"this system has no timers that end a process: {error}") from None
        self._timer = ctypes.c_void_p()
        event = _SigEvent(None, signal.SIGKILL, 0, b"")
        _require(create(clock, ctypes.byref(event), ctypes.byref(self._timer)))

    def __call__(self, at: float | None) -> None:
        """Dead at this moment of `lease.steady`, instead of at what was said before; None: not at all."""
        whole, part = divmod(max(at, 1e-9) if at is not None else 0.0, 1.0)
        spec = _TimerSpec(_TimeSpec(0, 0), _TimeSpec(int(whole), int(part * 1e9)))
        _require(self._libc.timer_settime(self._timer, _ABSOLUTE, ctypes.byref(spec), None))


def deadman() -> Callable[[float | None], None]:
    """One; where there can be none, that is told, and whoever is paused keeps its locks until it wakes up."""
    try:
        return Deadman()
    except OSError as error:
        _LOG.warning("a leader that is paused is not ended: %s", error)
        return lambda at: None


def _require(answer: int) -> None:
    if answer:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
