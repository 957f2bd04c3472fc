"""SIGKILL for any process of a training at any moment, and what is left of the run in the end."""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter
from dataclasses import dataclass

import psutil

from orchestrator.launch import local
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import CheckpointCommitted, Progress
from support.home import LONG_PATIENCE, PATIENCE, Home, events

OPTIONS = ("--set", "retry.maxAttempts=1000", "--set", "retry.stopAfterAttemptsWithoutProgress=1000")
KINDS = {
    "RayTrainWorker": "worker", "TrainController": "Ray Train controller", "raylet": "raylet", "gcs_server": "GCS",
    "orchestrator.launch.entry": "driver", "orchestrator.cli": "launcher",
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What was killed, and how the run took it."""

    kills: dict[str, int]
    seconds: float
    starts: int
    attempts: int
    commits: int
    resumed_before_a_commit: int
    """Starts that went on from before a step that had been committed: must be 0."""
    committed_twice: int
    """Steps of which two checkpoints were committed: must be 0."""


def kind_of(process: psutil.Process) -> str:
    """In a word, by its command line."""
    command = " ".join(process.cmdline())
    return next((name for mark, name in KINDS.items() if mark in command), "Ray agent or helper")


def torment(home: Home, kills: int, seed: int, pause: float, *options: str) -> Report:
    """Train, and kill one process of the launcher and the driver's session after the other; -> what happened.

    Every third one falls after a pause uniform in [0, 2*pause) seconds, whatever the run is doing then: mostly it is
    starting. The others fall up to 3 s after training has gone on. A killed launcher is started again, as a person
    would.
    """
    draw, began, killed = random.Random(seed), time.monotonic(), Counter[str]()
    launcher = home.start_logged("train", "job.yaml", *OPTIONS, *options)
    folder = home.run_folder()
    while killed.total() < kills:
        if draw.randrange(3):
            launcher = _training_again(home, launcher, folder)
            time.sleep(draw.uniform(0, 3))
        else:
            time.sleep(draw.uniform(0, 2 * pause))
        if launcher.poll() is None and (victim := _victim(draw, launcher, folder)) is not None:
            name, process = victim
            process.kill()
            killed[name] += 1
        launcher = _going_on(home, launcher, folder)
    deadline = time.monotonic() + LONG_PATIENCE
    while launcher.poll() != 0:
        assert time.monotonic() < deadline, f"no end after the last kill; see {folder.root}"
        launcher = _going_on(home, launcher, folder)
        time.sleep(0.2)
    return _report(folder, killed, time.monotonic() - began)


def _victim(
    draw: random.Random, launcher: subprocess.Popen[bytes], folder: RunFolder
) -> tuple[str, psutil.Process] | None:
    """Any kind is as likely as any other, then any process of it."""
    try:
        driver = local.running(folder)
        found = [psutil.Process(launcher.pid)] + (driver.session() if driver is not None else [])
        by_kind: dict[str, list[psutil.Process]] = {}
        for process in found:
            by_kind.setdefault(kind_of(process), []).append(process)
    except (psutil.NoSuchProcess, psutil.ZombieProcess, OSError):
        return None  # one ended while we looked
    name = draw.choice(sorted(by_kind))
    return name, draw.choice(by_kind[name])


def _going_on(home: Home, launcher: subprocess.Popen[bytes], folder: RunFolder) -> subprocess.Popen[bytes]:
    """The launcher, or one that goes on where it was killed."""
    if launcher.poll() in (None, 0):
        return launcher
    return home.start_logged("train", "--resume", folder.root)


def _training_again(home: Home, launcher: subprocess.Popen[bytes], folder: RunFolder) -> subprocess.Popen[bytes]:
    """Wait until a step is done that was not done when this was called; -> the launcher."""
    before, deadline = _progress(folder), time.monotonic() + PATIENCE
    while _progress(folder) == before:
        assert time.monotonic() < deadline, f"training does not go on; see {folder.root}"
        launcher = _going_on(home, launcher, folder)
        if launcher.poll() == 0:
            break
        time.sleep(0.1)
    return launcher


def _progress(folder: RunFolder) -> int:
    """Steps done so far, those done again counted too."""
    try:
        return folder.events.read_bytes().count(b'"kind":"progress"')
    except FileNotFoundError:
        return 0


def _report(folder: RunFolder, killed: Counter[str], seconds: float) -> Report:
    found = events(folder)
    starts = [e for e in found if e.kind == "started"]
    commits = [e.step for e in found if isinstance(e, CheckpointCommitted)]
    before, newest = 0, 0
    for event in found:
        if isinstance(event, CheckpointCommitted):
            newest = max(newest, event.step)
        elif event.kind == "started":
            before += event.step < newest
    assert [e for e in found if isinstance(e, Progress)]
    return Report(
        kills=dict(sorted(killed.items())),
        seconds=seconds,
        starts=len(starts),
        attempts=len({e.attempt for e in starts}),
        commits=len(commits),
        resumed_before_a_commit=before,
        committed_twice=len(commits) - len(set(commits)),
    )
