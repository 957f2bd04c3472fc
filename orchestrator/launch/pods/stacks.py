"""Brings what a stuck worker was doing out of its pod, where the file would go with the pod."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

LOOK_SECONDS = 1.0
MOST_BYTES = 256 * 1024
"""At one look."""


def follow(path: Path, send: Callable[[str], None], *, wait: Callable[[float], None] = time.sleep) -> None:
    """From now on, what is appended to the file is printed, so that Ray takes it to the attempt's log, and sent.

    A thread does it for as long as the process lives. Python's watchdog needs no interpreter lock to write, this needs
    it to read: a main thread that holds it for ever leaves its stacks in the pod.
    """
    begin = path.stat().st_size if path.exists() else 0
    threading.Thread(target=_follow, args=(path, begin, send, wait), name="stacks", daemon=True).start()


def _follow(path: Path, offset: int, send: Callable[[str], None], wait: Callable[[float], None]) -> None:
    while True:
        wait(LOOK_SECONDS)
        try:
            offset = look(path, offset, send)
        except OSError as error:
            print(f"{path} cannot be read: {error}", file=sys.stderr, flush=True)
            return


def look(path: Path, offset: int, send: Callable[[str], None]) -> int:
    """-> where to go on. There is no file where nothing happened."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(MOST_BYTES)
    except FileNotFoundError:
        return 0
    if data:
        text = data.decode(errors="replace")
        print(text, file=sys.stderr, flush=True)
        send(text)
    return offset + len(data)
