"""The pre-stop hooks, executed: with real processes in the place of driver and workers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cost.budget import Reserve
from orchestrator.launch.rayjob.hooks import grace_seconds, head_hook, stop_seconds, worker_hook
from orchestrator.launch.rayjob.settings import Stopping

DRIVER = """
import os, pathlib, signal, sys
here = pathlib.Path(sys.argv[1])
def told(*_):
    (here / "told").touch()
    if sys.argv[2] == "saves":
        (here / "done").touch()
    if sys.argv[2] != "hangs":
        os._exit(0)
signal.signal(signal.SIGTERM, told)
(here / "pid").write_text(str(os.getpid()))
print("ready", flush=True)
while True:
    signal.pause()
"""


class Pod:
    """The files that processes of a pod have agreed on, and processes that are ended with it."""

    def __init__(self, root: Path) -> None:
        self.root, self.workers = root, root / "workers"
        self.started: list[subprocess.Popen[str]] = []

    def driver(self, how: str) -> subprocess.Popen[str]:
        found = subprocess.Popen([sys.executable, "-c", DRIVER, str(self.root), how], stdout=subprocess.PIPE, text=True)
        self.started.append(found)
        assert found.stdout is not None
        assert found.stdout.readline() == "ready\n"
        return found

    def worker(self) -> subprocess.Popen[str]:
        found = subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=subprocess.PIPE, text=True)
        self.started.append(found)
        self.workers.mkdir(exist_ok=True)
        (self.workers / str(found.pid)).touch()
        return found

    def head_hook(self, seconds: int) -> subprocess.Popen[str]:
        return self._run(head_hook(seconds, str(self.root / "pid"), str(self.root / "done")))

    def worker_hook(self, seconds: int) -> subprocess.Popen[str]:
        return self._run(worker_hook(seconds, str(self.workers)))

    def _run(self, command: list[str]) -> subprocess.Popen[str]:
        """Its `sleep` is the pod's, where `stop_the_clock` was called before."""
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        found = subprocess.Popen(command, env=os.environ | {"PATH": path}, text=True)
        self.started.append(found)
        return found

    def stop_the_clock(self) -> None:
        """A second of the hooks passes when `wake` is called, and not before."""
        os.mkfifo(self.root / "clock")
        os.mkfifo(self.root / "asleep")
        sleep = self.root / "bin" / "sleep"
        sleep.parent.mkdir()
        sleep.write_text(f"#!/bin/sh\necho > {self.root / 'asleep'}\nread line < {self.root / 'clock'}\n")
        sleep.chmod(0o755)

    def wait_until_asleep(self) -> None:
        """It has looked, and found that it has to wait."""
        (self.root / "asleep").read_text()

    def wake(self) -> None:
        """So that it looks again."""
        (self.root / "clock").write_text("\n")

    def second(self) -> None:
        """Passes."""
        self.wait_until_asleep()
        self.wake()


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    made = Pod(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def test_the_driver_is_warned_and_waited_for(pod: Pod) -> None:
    driver = pod.driver("saves")
    assert pod.head_hook(600).wait(120) == 0
    assert driver.wait(120) == 0
    assert (pod.root / "told").exists()


def test_a_driver_that_dies_of_it_is_not_waited_for(pod: Pod) -> None:
    driver = pod.driver("dies")
    hook = pod.head_hook(600)
    assert driver.wait(120) == 0  # collected, as Ray's supervisor does
    assert hook.wait(120) == 0
    assert not (pod.root / "done").exists()


def test_a_driver_that_hangs_is_waited_for_so_long_and_no_longer(pod: Pod) -> None:
    driver = pod.driver("hangs")
    pod.stop_the_clock()
    hook = pod.head_hook(2)
    pod.second()
    pod.second()
    assert hook.wait(120) == 0
    assert (pod.root / "told").exists()
    assert driver.poll() is None


def test_nothing_is_waited_for_where_no_driver_was(pod: Pod) -> None:
    assert pod.head_hook(600).wait(120) == 0


def test_a_driver_that_is_done_is_not_told_again(pod: Pod) -> None:
    pod.driver("hangs")
    (pod.root / "done").touch()
    assert pod.head_hook(600).wait(120) == 0
    assert not (pod.root / "told").exists()


def test_workers_are_waited_for_until_the_last_is_gone(pod: Pod) -> None:
    first, last = pod.worker(), pod.worker()
    pod.stop_the_clock()
    hook = pod.worker_hook(600)
    pod.wait_until_asleep()
    first.kill()
    first.wait()
    pod.wake()
    pod.wait_until_asleep()
    last.kill()
    last.wait()
    pod.wake()
    assert hook.wait(120) == 0


def test_workers_that_hang_are_waited_for_so_long(pod: Pod) -> None:
    worker = pod.worker()
    pod.stop_the_clock()
    hook = pod.worker_hook(2)
    pod.second()
    pod.second()
    assert hook.wait(120) == 0
    assert worker.poll() is None


def test_pods_that_never_trained_go_at_once(pod: Pod) -> None:
    assert pod.worker_hook(600).wait(120) == 0
    pod.workers.mkdir()
    assert pod.worker_hook(600).wait(120) == 0


@pytest.mark.parametrize(
    ("reserve", "seconds"),
    [
        (Reserve(), 60),  # 5 + 30 + 15
        (Reserve(heartbeat=20, save=240), 275),
        (Reserve(save=80.2), 101),
        (Reserve(save=10_000), 600),
    ],
)
def test_the_time_is_what_the_job_takes_within_limits(reserve: Reserve, seconds: int) -> None:
    assert stop_seconds(reserve, Stopping()) == seconds
    assert grace_seconds(seconds, Stopping()) == seconds + 30
