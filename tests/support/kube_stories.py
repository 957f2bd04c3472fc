"""Lives of a job in a cluster, played by all but the controller: what Kueue, KubeRay, the driver and people do next, by
what is so at the moment. Whatever the controller does meanwhile, and however often it dies, each step is done once.

Pods say themselves when they got their nodes and when they ended: seconds and dollars are the same each time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.launch.events import CheckpointAndStop, Ended, read
from orchestrator.spec import TrainingJob
from orchestrator.store.base import Wish
from support.kube_whole import WholeStage

HELD_SECONDS = 60.0
"""By each attempt."""
SAVE_SECONDS = 3000.0
"""What a checkpoint takes by the word of a driver that is about to run out of money: time enough to be told."""
BUDGET, PAYS_SECONDS = "0.2", 7200.0
"""For so long it pays for two workers of one core each; to stop is due when SAVE_SECONDS and little more are left."""


@dataclass
class Life:
    """Of one job."""

    stage: WholeStage
    attempts: int
    """That it has in the end."""
    phase: str
    """In the end."""
    act: Callable[[Life, int, str], None]
    """What becomes of an attempt that runs, by number and name of its RayJob."""
    spec: dict[str, Any] = field(default_factory=lambda: {"queue": {"name": "team-queue"}})
    meanwhile: Callable[[Life], None] = lambda life: None
    """What people do."""
    cancelled: bool = False
    held: float = HELD_SECONDS
    since: dict[str, float] = field(default_factory=dict)
    """When the pods of a RayJob got their nodes; unix seconds."""
    done: set[object] = field(default_factory=set)

    def begin(self, name: str) -> None:
        self.since.clear()
        self.done.clear()
        self.stage.submit(name, **self.spec)

    def go_on(self) -> bool:
        """-> whether it is over, and nothing of it is left."""
        player = self.stage.player
        jobs = player.clean()
        for found in jobs:
            name, state = found["metadata"]["name"], (found.get("status") or {}).get("jobDeploymentStatus")
            if found["metadata"].get("deletionTimestamp"):
                continue
            if state is None:
                player.queues(name, flickers=())  # no controller is made meanwhile
            elif state == "Suspended" and not player.is_gated(name) and not self.cancelled:
                player.admits(name)
                self.since[name] = float(int(time.time() - self.held - 5))
                player.runs(name, self.since[name])
            elif state == "Running":
                self.act(self, int(name.rpartition("-a")[2]), name)
        self.meanwhile(self)
        over = not jobs and self.stage.status.phase.value == self.phase
        return over and not player.supporting() and not player.pods()

    def once(self, what: object, do: Callable[[], object]) -> None:
        if what not in self.done:
            self.done.add(what)
            do()

    def ends(self, attempt: int, name: str, outcome: str, **fields: Any) -> None:  # noqa: ANN401
        """The driver does, with a last word, and then its pods."""
        self.stage.ends(outcome, attempt, **fields)
        self.goes(name)
        self.stage.player.ends(name, "SUCCEEDED")

    def goes(self, name: str) -> None:
        """Its workers."""
        cluster = self.stage.player.ray_job(name)["status"]["rayClusterName"]
        self.stage.player.let_go(cluster, self.since[name] + self.held)

    def trains(self, attempt: int) -> bool:
        """Whether its driver has begun, now or before."""
        if not self.stage.is_known(attempt):
            return False
        self.once(("started", attempt), lambda: self.stage.starts(attempt))
        return True

    def obeys(self, attempt: int, name: str) -> None:
        """It ends if it is told to."""
        answer = self.stage.answer
        if isinstance(answer, CheckpointAndStop):
            over = answer.reason == "over-budget"
            self.stage.saves(attempt, step=20)
            failure = "over-budget" if over else "interrupted"
            self.ends(attempt, name, "stopped", failure_class=failure, message=answer.reason)

    @property
    def outcome(self) -> dict[str, object]:
        """What must be the same each time."""
        stage = self.stage
        ends = [one for one in read(stage.folder.events)[0] if isinstance(one, Ended)]
        return {
            "TrainingJob": stage.kept(),
            "ends": [(one.attempt, one.outcome, one.failure_class) for one in ends],
            "held": [(one.attempt, one.end - one.start) for one in stage.held()],
            "MLflow": stage.tracked(),
        }


# ------------------------------------------------------------------ what becomes of an attempt
def succeeds(life: Life, attempt: int, name: str) -> None:
    if life.trains(attempt) and life.stage.status.phase.value == "Running":
        life.ends(attempt, name, "succeeded")


def loses_its_head_first(life: Life, attempt: int, name: str) -> None:
    if attempt > 1:
        succeeds(life, attempt, name)
    elif life.trains(attempt):
        life.goes(name)
        life.stage.player.ends(name, "RUNNING", "SubmissionFailed", "Job submission has failed.")


def is_suspended_first(life: Life, attempt: int, name: str) -> None:
    if attempt > 1:
        succeeds(life, attempt, name)
    elif life.trains(attempt):
        if life.stage.status.phase.value == "Running":
            life.once("suspend", lambda: life.stage.wish(lambda wish: _suspended(wish, suspend=True)))
        life.obeys(attempt, name)


def runs_out_of_money(life: Life, attempt: int, name: str) -> None:
    if life.trains(attempt):
        save = {"step": 10, "uri": "x", "size_bytes": 1, "seconds": SAVE_SECONDS}
        life.once("save", lambda: life.stage.deliver("checkpoint-committed", attempt, **save))
        life.obeys(attempt, name)


# ------------------------------------------------------------------ what people do
def resumes(life: Life) -> None:
    stage = life.stage
    if stage.status.phase.value == "Suspended" and not stage.names:
        life.once("resume", lambda: stage.wish(lambda wish: _suspended(wish, suspend=False)))


def cancels(life: Life) -> None:
    if life.stage.names:
        life.once("cancel", life.stage.cancel)


def _suspended(wish: Wish, *, suspend: bool) -> Wish:
    spec = wish.job.spec.model_copy(update={"suspend": suspend})
    job: TrainingJob = wish.job.model_copy(update={"spec": spec})
    return replace(wish, job=job, granted_after=0 if suspend else 1, resumed=wish.resumed + (not suspend))


LIVES: dict[str, Callable[[WholeStage], Life]] = {
    "success": lambda stage: Life(stage, 1, "Succeeded", succeeds),
    "cancel": lambda stage: Life(stage, 1, "Cancelled", succeeds, meanwhile=cancels, cancelled=True),
    "retry": lambda stage: Life(stage, 2, "Succeeded", loses_its_head_first),
    "suspend and resume": lambda stage: Life(stage, 2, "Succeeded", is_suspended_first, meanwhile=resumes),
    "budget": lambda stage: Life(
        stage, 1, "Suspended", runs_out_of_money, held=PAYS_SECONDS - 900,
        spec={"queue": {"name": "team-queue"}, "budget": {"limit": BUDGET}},
    ),
}  # fmt: skip
