"""The process that brings MLflow up to date, beside a controller: `python -m orchestrator.controller.mirror_main`.

Of its own, so that the controller and its API hold neither mlflow nor matplotlib, and wait for neither. It reads the
names of run folders that have news, one to a line, and ends soon after its standard input does, that is: however its
controller ends. What nobody told it of, because nobody was there, it finds by itself now and then. Where no run goes on
and there is nothing to send, it begins anew as a process of a third of the size, under the same number.
"""

from __future__ import annotations

import os
import queue
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from orchestrator.controller.record import Record
from orchestrator.controller.sync import Mirror, driver_lives, leftovers
from orchestrator.errors import FathomError
from orchestrator.launch.base import RunFolder
from orchestrator.settings import Settings

SCAN_SECONDS = 300.0
"""Between two looks for what earlier controllers have left."""
LAST_SECONDS = 20.0
"""What it is doing when its controller ends may take so long."""
IDLE_SECONDS = 60.0
"""Without anything to do, until the room that mlflow and matplotlib take is given back."""
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

    @property
    def idle(self) -> bool:
        """Whether no run goes on, and none waits for an MLflow that is away."""
        return not self._mirrors

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


class News:
    """Names of runs, one to a line, read from a pipe by a thread of its own: what it has not taken stays in there."""

    def __init__(self, pipe: int) -> None:
        self._pipe, self._taking, self._part = pipe, threading.Lock(), b""
        self._names: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read(self) -> None:
        """Until its end; then the process has so much time to come to its own."""
        while True:
            select.select([self._pipe], [], [])
            with self._taking:
                said = os.read(self._pipe, 1 << 16)
                *lines, self._part = (self._part + said).split(b"\n")
                for name in filter(None, (line.decode(errors="replace").strip() for line in lines)):
                    self._names.put(name)
            if not said:
                break
        self._names.put(None)
        time.sleep(LAST_SECONDS)
        os._exit(0)  # in the middle of a request that nobody answers; the next one finds what is missing

    def take(self, waiting: dict[str, None], seconds: float = 1.0) -> bool:
        """All that has come; waits a while if nothing has. False: no more will come."""
        try:
            name = self._names.get(timeout=seconds)
            while name is not None:
                waiting[name] = None
                name = self._names.get_nowait()
            return False
        except queue.Empty:
            return True

    @property
    def there(self) -> bool:
        """Whether something has come."""
        return not self._names.empty()

    def stop(self) -> bool:
        """Take nothing any more, if nothing that was taken is left."""
        self._taking.acquire()
        if self.there or self._part:
            self._taking.release()
            return False
        return True


def main() -> None:
    """Until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the controller
    os.nice(max(0, NICE - os.nice(0)))
    sys.modules[UNUSED] = None  # type: ignore[assignment]  # as if it were not installed
    news = News(sys.stdin.fileno())
    threading.Thread(target=news.read, name="news", daemon=True).start()
    run(Mirrors(Settings.load()), news, scan_in=float(sys.argv[1]) if len(sys.argv) > 1 else 0.0)


def run(mirrors: Mirrors, news: News, *, scan_in: float) -> None:
    """Take in what is new, each run once, and the runs that a server did not take before. `scan_in`: seconds until the
    first look for what was left."""
    waiting: dict[str, None] = {}
    busy = time.monotonic()
    scan = busy + scan_in
    while True:
        if time.monotonic() >= scan:
            waiting |= dict.fromkeys(mirrors.leftovers())
            scan = time.monotonic() + SCAN_SECONDS
        if not news.take(waiting):
            return
        if waiting or not mirrors.idle:
            busy = time.monotonic()
        elif time.monotonic() - busy > IDLE_SECONDS and "mlflow" in sys.modules and news.stop():
            _begin_anew(scan - time.monotonic())
        for name in list(waiting):
            if mirrors.sync(name):
                del waiting[name]
            if news.there and not news.take(waiting):
                return


def _begin_anew(scan_in: float) -> None:
    """The same process with nothing loaded; whoever talks to it does not notice."""
    os.execv(sys.executable, [sys.executable, "-m", "orchestrator.controller.mirror_main", f"{scan_in:.0f}"])


if __name__ == "__main__":
    main()
