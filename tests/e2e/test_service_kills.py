"""The controller shot at random moments, again and again, while people submit, suspend, resume and delete.

`FATHOM_TEST_KILLS=50` for a longer run. The drivers are real processes that train nothing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil
import pytest
from support.runs import dataset, tiny_job

from orchestrator.launch.processes import MARK
from orchestrator.status import Phase
from orchestrator.store.base import Query, StoredJob, Wish
from orchestrator.store.sqlite import SqliteStore

pytestmark = [pytest.mark.processes, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("FATHOM_TEST_KILLS", "10"))
PATIENCE = 120.0


class Watcher(threading.Thread):
    """Looks all the time at which drivers live; more than one of a run is remembered."""

    def __init__(self, home: Path) -> None:
        super().__init__(daemon=True)
        self._home, self._ended = home, threading.Event()
        self.twice: list[str] = []
        self.looks = self.most = 0

    def run(self) -> None:
        while not self._ended.wait(0.02):
            living = Counter(folder for folder in (_folder(process, self._home) for process in _all()) if folder)
            self.twice += [folder for folder, number in living.items() if number > 1]
            self.looks, self.most = self.looks + 1, max(self.most, len(living))

    def end(self) -> None:
        self._ended.set()
        self.join()


def _all() -> list[psutil.Process]:
    return list(psutil.process_iter())


def _folder(process: psutil.Process, home: Path) -> str | None:
    """Of the run that this process drives."""
    try:
        command = process.cmdline()
        if process.status() == psutil.STATUS_ZOMBIE or len(command) < 5 or not command[1].endswith("stand_in.py"):
            return None
        return command[2] if command[2].startswith(str(home)) else None
    except psutil.Error:
        return None


def left(home: Path) -> list[str]:
    """Processes that any driver of this home has started, and itself."""
    found = []
    for process in _all():
        try:
            if process.environ().get(MARK, "").startswith(str(home)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


class Service:
    """The controller; killed and started again."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._ups = 0
        self.log = (home / "controller.log").open("ab")
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "support.controlling", str(self._home)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=self.log, stderr=self.log)

    def wait_for_it(self) -> None:
        """Until it looks at the jobs."""
        before = self._ups
        wait_until(lambda: self._count() > before, lambda: "it does not come up")
        self._ups = self._count()

    def _count(self) -> int:
        return (self._home / "controller.log").read_text().splitlines().count("up")

    def shoot(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = self._start()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


class People:
    """What they wish, at random."""

    def __init__(self, store: SqliteStore, source: str, draw: random.Random) -> None:
        self._store, self._source, self._draw, self._made = store, source, draw, 0

    def submit(self) -> None:
        self._made += 1
        self._store.create(tiny_job(self._source, name=f"job-{self._made}"), by="test")

    def act(self) -> None:
        jobs = self._store.list(Query()).jobs
        wish = self._draw.choice([self._suspend, self._resume, self._delete, self._cancel])
        if len(jobs) < 4:
            self.submit()
        if jobs:
            job = self._draw.choice(jobs)
            self._store.change(job.namespace, job.name, lambda now: wish(job, now))

    def _suspend(self, job: StoredJob, wish: Wish) -> Wish:
        return with_suspend(wish, suspend=True)

    def _resume(self, job: StoredJob, wish: Wish) -> Wish:
        if job.status.phase not in (Phase.SUSPENDED, Phase.FAILED):
            return wish
        granted = max(job.status.attempt_count, wish.granted_after)
        return replace(with_suspend(wish, suspend=False), granted_after=granted, resumed=wish.resumed + 1)

    def _cancel(self, job: StoredJob, wish: Wish) -> Wish:
        return replace(wish, cancelled_at=wish.cancelled_at or datetime.now(UTC))

    def _delete(self, job: StoredJob, wish: Wish) -> Wish:
        return replace(wish, deleted_at=wish.deleted_at or datetime.now(UTC))

    def delete_all(self) -> None:
        for job in self._store.list(Query()).jobs:
            self._store.change(job.namespace, job.name, partial(self._delete, job))


def with_suspend(wish: Wish, *, suspend: bool) -> Wish:
    spec = wish.job.spec.model_copy(update={"suspend": suspend})
    return replace(wish, job=wish.job.model_copy(update={"spec": spec}))


def wait_until(true: Callable[[], bool], why: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until, why()
        time.sleep(0.1)


def shoot_a_driver(home: Path) -> None:
    for process in _all():
        if _folder(process, home):
            process.kill()
            return


def test_no_kill_leads_to_two_drivers_and_none_is_left(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "story.json").write_text(json.dumps({"seconds": 4.0, "outcome": "succeeded"}))
    store, draw = SqliteStore(home / "fathom.db"), random.Random(os.environ.get("FATHOM_TEST_SEED", "8"))
    people = People(store, str(dataset(tmp_path / "data")), draw)
    service, watcher = Service(home), Watcher(home)
    watcher.start()
    try:
        for number in range(KILLS):
            people.submit() if number < 3 else people.act()
            if number % 5:  # else it may be shot while it starts
                service.wait_for_it()
            time.sleep(draw.uniform(0.0, 3.0))
            if number % 4 == 3:
                shoot_a_driver(home)
            service.shoot()
        assert watcher.most > 0, "something ran"
        wait_until(lambda: _rests(store), lambda: (home / "controller.log").read_text()[-4000:])
        people.delete_all()
        wait_until(lambda: not store.list(Query()).jobs, lambda: (home / "controller.log").read_text()[-4000:])
        wait_until(lambda: not left(home), lambda: left(home))
    finally:
        service.end()
        watcher.end()
        for process in [one for one in _all() if _folder(one, home)]:
            process.kill()
    assert watcher.twice == []
    births = Counter((home / "births.log").read_text().splitlines())
    assert max(births.values()) == 1, "no attempt had two drivers"
    assert [path.name for path in home.iterdir() if path.is_dir() and path.name.startswith("job-")] == []
    print(f"{KILLS} kills, {len(births)} attempts, {watcher.looks} looks")


def _rests(store: SqliteStore) -> bool:
    phases = {job.status.phase for job in store.list(Query()).jobs}
    return phases <= {Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED, Phase.SUSPENDED}
