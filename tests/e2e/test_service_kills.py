"""`fathom serve` shot again and again, while people submit, suspend, resume, cancel and delete over HTTP.

The drivers are real processes that train nothing. FATHOM_TEST_KILLS=50 for a longer run, FATHOM_TEST_SEED for others.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.runs import dataset, tiny_job
from support.serving import PLACES
from support.shooting import Service, Watcher, births, drivers, left, require_whole, wait_until
from support.stand_in import COMMAND

from orchestrator import Client
from orchestrator.errors import Conflict, NotFound, Unavailable
from orchestrator.spec import TrainingJob
from orchestrator.status import Phase

pytestmark = [pytest.mark.processes, pytest.mark.timeout(3600)]
KILLS = int(os.environ.get("FATHOM_TEST_KILLS", "8"))
SEED = int(os.environ.get("FATHOM_TEST_SEED", "8"))
FOREVER = {"seconds": 100_000.0}
STORY = {"seconds": 3.0, "outcome": "succeeded"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where `Client()` finds the service, wherever that listens."""
    found = tmp_path / "home"
    found.mkdir()
    dataset(tmp_path / "data")
    tell(found)
    for name in ("FATHOM_URL", "FATHOM_TOKEN", "FATHOM_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FATHOM_HOME", str(found))
    yield found
    for process in drivers(found):
        process.kill()


def tell(home: Path, **stories: object) -> None:
    """What drivers do, by the names of their jobs."""
    (home / "story.json").write_text(json.dumps(STORY | stories))


def job(home: Path, name: str) -> TrainingJob:
    found = tiny_job(str(home.parent / "data"), name=name)
    training = found.spec.training.model_copy(update={"tokens": 100 * 256})
    retry = found.spec.retry.model_copy(update={"max_attempts": 50, "stop_after_attempts_without_progress": 50})
    return found.model_copy(update={"spec": found.spec.model_copy(update={"training": training, "retry": retry})})


def insist(wish: Callable[[Client], object]) -> None:
    """Until a service that lives has heard of it."""
    until = time.monotonic() + 240
    while True:
        try:
            with Client() as client:
                wish(client)
            return
        except Unavailable:
            assert time.monotonic() < until
            time.sleep(0.1)


class People(threading.Thread):
    """They want the same of six jobs in each round, and look whether they have got it; at least until `enough`."""

    def __init__(self, home: Path, draw: random.Random) -> None:
        super().__init__(daemon=True)
        self._home, self._draw = home, draw
        self.enough = threading.Event()
        self.rounds = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.enough.is_set():
                self.rounds += 1
                self._round(f"r{self.rounds}")
        except BaseException as error:  # noqa: BLE001 - raised by the test
            self.failure = error

    def _round(self, prefix: str) -> None:
        names = [f"{prefix}-{kind}" for kind in ("runs", "rests", "returns", "cancelled", "deleted", "waits")]
        runs, rests, returns, cancelled, deleted, waits = names
        forever = dict.fromkeys((rests, returns, cancelled, deleted), FOREVER)
        tell(self._home, **forever)
        for name in names:
            self._wish(lambda client, name=name: client.apply(job(self._home, name)))  # type: ignore[misc]
        self._wish(lambda client: client.suspend(rests))
        self._wish(lambda client: client.suspend(returns))
        self._until(returns, Phase.SUSPENDED)
        tell(self._home, **forever | {returns: STORY})
        self._wish(lambda client: _resume(client, returns))
        self._wish(lambda client: client.cancel(cancelled))
        self._wish(lambda client: _delete(client, deleted))
        for name in (runs, returns, waits):
            self._until(name, Phase.SUCCEEDED)
        self._until(cancelled, Phase.CANCELLED)
        self._until(rests, Phase.SUSPENDED)
        insist(lambda client: _gone(client, deleted))
        kept = [next(self._home.glob(f"{name}-*")) for name in names if name != deleted]
        born = births(self._home)
        for folder in kept:
            require_whole(folder, born)
        for name in names:
            insist(lambda client, name=name: _delete(client, name))  # type: ignore[misc]
        for name in names:
            insist(lambda client, name=name: _gone(client, name))  # type: ignore[misc]
        assert list(self._home.glob(f"*{prefix}-*")) == [], "no files are left"

    def _wish(self, wish: Callable[[Client], object]) -> None:
        time.sleep(self._draw.uniform(0, 1))
        insist(wish)

    def _until(self, name: str, phase: Phase) -> None:
        def look(client: Client) -> None:
            found = client.wait(name, [phase], timeout=240)
            assert found.phase is phase

        insist(look)


def _resume(client: Client, name: str) -> None:
    try:
        client.resume(name)
    except Conflict:  # it was heard before, and the answer was lost
        assert not client.get(name).spec.suspend


def _delete(client: Client, name: str) -> None:
    try:
        client.delete(name)
    except NotFound:  # it was heard before, or is gone
        return


def _gone(client: Client, name: str) -> None:
    until = time.monotonic() + 240
    while True:
        try:
            found = client.get(name)
        except NotFound:
            return
        assert time.monotonic() < until, found
        time.sleep(0.1)


def test_no_kill_loses_a_job_or_gives_it_two_drivers(home: Path) -> None:
    print(f"seed {SEED}, {KILLS} kills")
    draw = random.Random(SEED)
    service, watcher, people = Service(home, FATHOM_CPUS="6"), Watcher(home), People(home, random.Random(SEED + 1))
    watcher.start()
    service.start()
    people.start()
    began = time.monotonic()
    try:
        for number in range(KILLS):
            if number % 4 != 3:  # else it may be shot while it starts
                wait_until(service.is_up, service.words)
            time.sleep(draw.uniform(0, 3))
            service.shoot()
            if number % 4 == 1:  # a driver dies while nobody looks
                next((process.kill() for process in drivers(home)), None)
            service.start()
            if people.failure is not None:
                break
        people.enough.set()
        people.join()
        if people.failure is not None:
            raise AssertionError(service.words()) from people.failure
        with Client() as client:
            assert list(client.list()) == []
        assert service.end() == 0
        wait_until(lambda: not left(home), lambda: left(home), 240)
    finally:
        people.enough.set()
        service.end()
        watcher.end()
    assert watcher.twice == []
    assert watcher.most > 1, "several ran at once"
    born = births(home)
    assert max(born.values()) == 1, "no attempt had two drivers"
    print(f"{people.rounds} rounds, {len(born)} attempts, {watcher.looks} looks, {time.monotonic() - began:.0f} s")


def test_dying_between_any_two_steps_leads_to_one_driver(home: Path) -> None:
    """At places that no chance would find: one after the other, each with a job of its own."""
    service, watcher = Service(home, FATHOM_CPUS="2"), Watcher(home)
    watcher.start()
    try:
        for place in PLACES:
            name = f"dies-{place}"
            stops = place in ("ordered", "removing", "removed")
            tell(home, **{name: FOREVER if stops else {"seconds": 0.5}})
            service.start(die_at=place)
            insist(lambda client, name=name: client.apply(job(home, name)))  # type: ignore[misc]
            if stops:
                wait_until(lambda: drivers(home), service.words)
                with suppress(Unavailable), Client() as client:  # the answer may be lost, the wish is not
                    client.delete(name)
            service.has_shot_itself()
            before = [process.pid for process in drivers(home)]
            assert len(before) == (place in ("spawned", "started", "ordered")), place
            service.start()
            if not stops:
                insist(lambda client, name=name: client.wait(name, [Phase.SUCCEEDED], timeout=240))  # type: ignore[misc]
                [folder] = home.glob(f"{name}-*")
                assert [number for run, number in births(home) if run == folder.name] == [1], place
                require_whole(folder, births(home))
                insist(lambda client, name=name: client.delete(name))  # type: ignore[misc]
            insist(lambda client, name=name: _gone(client, name))  # type: ignore[misc]
            wait_until(lambda name=name: not list(home.glob(f"*{name}-*")), service.words)  # type: ignore[misc]
            service.shoot()
        wait_until(lambda: not left(home), lambda: left(home), 240)
    finally:
        service.end()
        watcher.end()
    assert watcher.twice == []
    assert set(births(home).values()) == {1}


def test_two_drivers_of_a_run_would_be_seen(tmp_path: Path) -> None:
    """What all of the above rests on."""
    run = [sys.executable, "-c", "import time; time.sleep(60)", COMMAND[1], str(tmp_path / "run")]
    watcher, both = Watcher(tmp_path), [subprocess.Popen(run), subprocess.Popen(run)]
    watcher.start()
    try:
        wait_until(lambda: watcher.twice, lambda: watcher.looks)
    finally:
        for one in both:
            one.kill()
            one.wait()
        watcher.end()
    assert drivers(tmp_path) == []
