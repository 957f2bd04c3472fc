"""What was seen of an attempt and is not there to be seen any more: pods go, and what they knew goes with them. Pure.

The part of it that a later process must know is a file of the run's folder (`Mark`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import ValidationError

from model.config import Frozen
from orchestrator.kube.resources import Json
from orchestrator.launch.base import RunFolder, Told
from orchestrator.launch.cluster import pods
from orchestrator.launch.cluster.kinds import labels_of
from orchestrator.launch.cluster.pods import Clue
from orchestrator.launch.failure import FailureClass, Verdict
from orchestrator.launch.files import replace_file

_MOST = 50
"""Clues that are kept: the last ones."""
RECENT_SECONDS = 600.0
"""So long a worker that was lost may explain the end of an attempt that went on without it."""


class Mark(Frozen):
    """Of the RayJob of one attempt, as it was made."""

    uid: str
    incarnation: str | None = None
    """The Ray cluster of it whose pods were first seen on nodes: what the attempt became. Another one is another
    attempt's work, whatever Kueue says."""
    began: float | None = None
    """Unix time at which the first of them had a node."""
    evicted: bool = False
    """That cluster was taken from it."""
    failure: FailureClass | None = None
    """How it ended without a last word."""
    message: str = ""
    lost: tuple[str, ...] = ()
    """Nodes that failed under it."""


def read_mark(folder: RunFolder, attempt: int) -> Mark | None:
    """None where no RayJob was ever made, or nobody came to write that down."""
    try:
        return Mark.model_validate_json(folder.ray_job(attempt).read_text())
    except (OSError, ValidationError):
        return None


def write_mark(folder: RunFolder, attempt: int, mark: Mark) -> None:
    """OSError if it cannot be written."""
    replace_file(folder.ray_job(attempt), mark.model_dump_json(), durable=True)


@dataclass
class Memory:
    """Of one attempt. Pods are shown to it as they change, and once more without their object when they are gone."""

    incarnation: str | None = None
    """The Ray cluster that the attempt became: it had a node, and the RayJob named it."""
    began: float | None = None
    """When the first pod that is paid for had a node; unix seconds."""
    evicted: bool = False
    verdict: Verdict | None = None
    trouble: Told | None = None
    """What was in the way of its pods last, before all of them were ready."""
    clues: list[tuple[float, Clue]] = field(default_factory=list)
    """With the unix time at which they were seen; one for each pod."""
    ends: dict[str, float] = field(default_factory=dict)
    """When pods that are paid for let go of their nodes, by name; unix seconds."""
    lost: set[str] = field(default_factory=set)
    """Nodes that failed under it; not those that somebody else took."""
    _held: set[str] = field(default_factory=set)
    """Names of those that had a node when they were seen last."""
    _clusters: set[str] = field(default_factory=set)
    """Names of Ray clusters that had one."""

    @classmethod
    def of(cls, mark: Mark | None) -> Memory:
        """What an earlier process has written down."""
        if mark is None:
            return cls()
        verdict = None if mark.failure is None else Verdict(mark.failure, mark.message)
        return cls(mark.incarnation, mark.began, mark.evicted, verdict, lost=set(mark.lost))

    def mark(self, uid: str) -> Mark:
        """What a later process must know."""
        verdict = self.verdict
        return Mark(
            uid=uid,
            incarnation=self.incarnation,
            began=self.began,
            evicted=self.evicted,
            failure=None if verdict is None else verdict.failure,
            message="" if verdict is None else verdict.message,
            lost=tuple(sorted(self.lost)),
        )

    @property
    def let_go(self) -> float | None:
        """When the last pod let go of its node."""
        return max(self.ends.values(), default=None)

    @property
    def exits(self) -> list[str]:
        """How containers ended by themselves, one for each pod."""
        return [clue.words for _, clue in self.clues if not clue.node_lost]

    def recent(self, now: float) -> list[Clue]:
        """Clues to an end at about `now`, the last one last."""
        return [clue for at, clue in self.clues if clue.of_driver or now - at <= RECENT_SECONDS]

    def show(self, name: str, pod: Json | None, now: float) -> None:
        """A pod as it is now; None: it is gone. `now` counts where nothing of the pod says when."""
        if pod is None:
            if name in self._held:
                self._let_go(name, now)
            return
        if (since := pods.node_since(pod)) is not None:
            self._clusters.add(labels_of(pod).get(pods.RAY_CLUSTER, ""))
            if pods.is_paid(pod):
                self._hold(name, pod, since, now)
        known = {clue for _, clue in self.clues}
        if (clue := pods.clue_of(pod)) is not None and clue not in known:
            self.clues = [*(one for one in self.clues if one[1].pod != name), (now, clue)][-_MOST:]
            if clue.node:
                self.lost.add(clue.node)

    def _hold(self, name: str, pod: Json, since: float, now: float) -> None:
        self.began = since if self.began is None else min(self.began, since)
        if pods.is_over(pod):
            self._let_go(name, pods.over_since(pod) or now)
        else:
            self._held.add(name)

    def _let_go(self, name: str, at: float) -> None:
        self._held.discard(name)
        self.ends.setdefault(name, at)

    def name(self, ray_cluster: str) -> None:
        """The RayJob says that this is its Ray cluster. Caches run at their own pace: a RayJob may seem to be Suspended
        still when the pods of its next cluster are there, so that only both together count."""
        if self.incarnation is None and ray_cluster and ray_cluster in self._clusters:
            self.incarnation = ray_cluster
