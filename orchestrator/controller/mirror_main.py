"""The process that brings MLflow up to date, beside a controller: `python -m orchestrator.controller.mirror_main`.

Of its own, so that the controller and its API hold neither mlflow nor matplotlib, and wait for neither. It reads the
names of run folders that have news, one to a line, and ends soon after its standard input does, that is: however its
controller ends. What nobody told it of, because nobody was there, it finds by itself now and then.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

from orchestrator.controller.record import Record
from orchestrator.controller.sync import Mirror, driver_lives, leftovers
from orchestrator.errors import FathomError
from orchestrator.launch.base import RunFolder
from orchestrator.settings import Settings

SCAN_SECONDS = 300.0
"""Between two looks for what earlier controllers have left."""
LAST_SECONDS = 20.0
"""What it is doing when its controller ends may take so long."""
NICE = 10
"""Steps by which it gives way: a controller that makes attempts needs the cores more than what shows them."""
UNUSED = "pandas"
"""mlflow imports it wherever it is installed, does without it elsewhere, and nothing here asks for it: 35 MB."""


class Mirrors:
    """One for each run with news, kept while the run goes on."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._mirrors: dict[str, Mirror] = {}
        self._told: set[str] = set()

    def sync(self, name: str) -> bool:
        """Bring MLflow to what the run's folder says now; whether nothing is missing."""
        root = self._settings.home / name
        if not root.exists():  # it was removed, which is no news
            self._mirrors.pop(name, None)
            return True
        try:
            mirror = self._mirrors.get(name) or Mirror(Record.open(root), self._settings, self._say)
        except (FathomError, OSError) as error:
            self._mirrors.pop(name, None)
            if root.exists():  # else it was removed just now
                self._say(f"{name}: {error}")
            return True
        self._mirrors[name] = mirror
        live = driver_lives(mirror.record.folder)
        done = mirror.sync(live=live)
        if not mirror.record.folder.job.exists():  # removed meanwhile, and what was written now stands in its place
            _clear(mirror.record.folder)
            del self._mirrors[name]
            return True
        if done and not live:
            del self._mirrors[name]  # it holds all events of the run
        return done

    def leftovers(self) -> Iterable[str]:
        """Names of runs that are nobody's and not all there."""
        return [record.folder.root.name for record in leftovers(self._settings, but=self._settings.home)]

    def _say(self, message: str) -> None:
        """Once each: a server that is down says the same of every run."""
        if message not in self._told:
            self._told.add(message)
            print(message, file=sys.stderr, flush=True)


def _clear(folder: RunFolder) -> None:
    """Of a run that was removed: what this process makes, and the folder, if it holds nothing else."""
    for path in (folder.tracking, folder.tracking_lock, folder.tracking_trouble):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder.artifacts, ignore_errors=True)
    with suppress(OSError):
        folder.root.rmdir()


def main() -> None:
    """Until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the controller
    os.nice(NICE)
    sys.modules[UNUSED] = None  # type: ignore[assignment]  # as if it were not installed
    news: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, news), name="news", daemon=True).start()
    run(Mirrors(Settings.load()), news)


def run(mirrors: Mirrors, news: queue.SimpleQueue[str | None]) -> None:
    """Take in what is new, each run once, and the runs that a server did not take before."""
    waiting: dict[str, None] = {}
    scan = time.monotonic()
    while True:
        if time.monotonic() >= scan:
            waiting |= dict.fromkeys(mirrors.leftovers())
            scan = time.monotonic() + SCAN_SECONDS
        if not _take(news, waiting):
            return
        for name in list(waiting):
            if mirrors.sync(name):
                del waiting[name]
            if not news.empty() and not _take(news, waiting):
                return


def _take(news: queue.SimpleQueue[str | None], waiting: dict[str, None]) -> bool:
    """All that has come; waits a while if nothing has. False: no more will come."""
    try:
        name = news.get(timeout=1.0)
        while name is not None:
            waiting[name] = None
            name = news.get_nowait()
        return False
    except queue.Empty:
        return True


def _read(lines: TextIO, news: queue.SimpleQueue[str | None]) -> None:
    for line in lines:
        if name := line.strip():
            news.put(name)
    news.put(None)
    time.sleep(LAST_SECONDS)
    os._exit(0)  # in the middle of a request that nobody answers; the next one finds what is missing


if __name__ == "__main__":
    main()
