"""A controller that dies at any of its writes, before the server has it or before the answer comes: the next one ends
up where an undisturbed one does, with one RayJob for each attempt and nothing left behind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from support.kube_proxy import Call, Fault, KubeProxy
from support.kube_stage import KubeStage

from orchestrator.errors import FathomError
from orchestrator.launch.events import Ended, read

pytestmark = [pytest.mark.kube, pytest.mark.timeout(600)]

_PATIENCE = 120.0
QUEUE = {"name": "team-queue"}


@dataclass
class Fate:
    """Of a controller: it dies at the n-th write of its job."""

    at: int | None = None
    how: Fault = "cut before"
    dead: bool = False
    writes: list[str] = field(default_factory=list)

    def plan(self, call: Call) -> Fault:
        if self.dead:
            return "cut before"
        if not call.writes:
            return "ok"
        self.writes.append(f"{call.method} {call.path}")
        if self.at == len(self.writes) - 1:
            self.dead = True
            return self.how
        return "ok"


def play(stage: KubeStage, lost: int) -> None:
    """Kueue lets each attempt in; so many lose their head first, and the next one trains to the end."""
    for found in stage.player.ray_jobs():
        name, state = found["metadata"]["name"], (found.get("status") or {}).get("jobDeploymentStatus")
        attempt = int(name.rpartition("-a")[2])
        if state is None:
            stage.player.queues(name)
        elif state == "Suspended" and not stage.player.is_gated(name):
            stage.player.admits(name)
            stage.player.runs(name)
        elif state == "Running" and attempt <= lost:
            stage.player.ends(name, "RUNNING", "SubmissionFailed", "Job submission has failed.")
        elif state == "Running" and stage.is_known(attempt):
            stage.starts(attempt)
            stage.ends(attempt=attempt)
            stage.player.ends(name, "SUCCEEDED")


def succeeds(stage: KubeStage) -> bool:
    play(stage, lost=0)
    return stage.status.phase.value == "Succeeded"


def is_tried_again(stage: KubeStage) -> bool:
    play(stage, lost=1)
    return stage.status.phase.value == "Succeeded"


def is_cancelled(stage: KubeStage) -> bool:
    """While it waits in the queue."""
    for found in stage.player.ray_jobs():
        if not found.get("status"):
            stage.player.queues(found["metadata"]["name"])
            stage.cancel()
    return stage.status.phase.value == "Cancelled"


def live(stage: KubeStage, proxy: KubeProxy, fate: Fate, story: Callable[[KubeStage], bool]) -> None:
    """Controllers, one after the other, until the job is at its end and cleaned up."""
    proxy.plan = fate.plan
    end = time.monotonic() + _PATIENCE
    while True:
        with stage.service():
            while not fate.dead or fate.at is None:
                assert time.monotonic() < end, (fate, stage.status, stage.said)
                with contextlib.suppress(FathomError):
                    stage.controller.turn()
                if story(stage) and not stage.names and not stage.player.supporting() and not stage.player.pods():
                    return
                time.sleep(0.02)
        proxy.hang_up()
        fate.dead, fate.at = False, None


@pytest.mark.parametrize(
    ("story", "attempts", "first", "how"),
    [
        (succeeds, 1, 0, "cut before"),
        (succeeds, 1, 0, "cut after"),
        (is_cancelled, 1, 0, "cut before"),
        (is_cancelled, 1, 0, "cut after"),
        (is_tried_again, 2, 6, "cut after"),  # from the end of the first attempt on
    ],
)
def test_crash_at_every_write(
    between: KubeStage,
    proxy: KubeProxy,
    story: Callable[[KubeStage], bool],
    attempts: int,
    first: int,
    how: Fault,
) -> None:
    reference = Fate()
    between.submit("mini", queue=QUEUE)
    live(between, proxy, reference, story)
    undisturbed = (between.status.phase, between.status.attempt_count)
    assert len(reference.writes) >= 11 * attempts, reference.writes
    for at in range(first, len(reference.writes)):
        fate = Fate(at, how)
        job = between.submit(f"mini-{at}", queue=QUEUE)
        live(between, proxy, fate, story)
        assert (between.status.phase, between.status.attempt_count) == undisturbed, fate
        made = {name: len(uids) for name, uids in between.player.made.items() if name.startswith(f"{job.name}-a")}
        assert made == {f"{job.name}-a{number}": 1 for number in range(1, attempts + 1)}, fate
        ends = [event for event in read(between.folder.events)[0] if isinstance(event, Ended)]
        assert [event.attempt for event in ends] == list(range(1, attempts + 1)), fate
    print(f"{story.__name__}: died at each of {len(reference.writes) - first} writes, {how}")
