"""A controller that dies at every one of its writes, before the server has it or before the answer comes.

A write is a point of a job's life: what is asked for, and the how manieth of its kind that the server would do. The
first life is undisturbed. In each other one controllers die at every point at which none has died yet, but at every
`APART`-th write at most, and not at what an undisturbed life has less often: what is made once more after a death, or
figures that took longer. So many are lived until one meets no such point: that one is undisturbed, too. Of every object
that an undisturbed life makes or deletes, and of whatever else the two have in common, some controller has died: caches
that lag have a say in how many statuses come between the first and the last.

Many deaths in a life are what makes this fast, at a price: a later one may heal what an earlier one has left behind. So
they stand apart, by more than the six writes that begin an attempt, and each life begins with another one. Nearer, and
they hide more; farther, and there are more lives.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.errors import FathomError
from support.kube_mortal import Killed, without_a_word
from support.kube_proxy import Call, Fault, KubeProxy
from support.kube_stories import LIVES, Life
from support.kube_whole import WholeStage

STORIES = [("success", 15), ("cancel", 13), ("retry", 28), ("suspend and resume", 28), ("budget", 15)]
"""And how many writes there are in an undisturbed one, at least; how many, caches that lag have a say in."""
APART = 7
_LIVES = 40
"""More are not lived: if some writes are not met in so many, something is wrong."""
_TURNS = 10
"""In which a controller that has nothing to do writes nothing."""
_PATIENCE, _PAUSE = 240.0, 0.02
Point = tuple[str, int]


@dataclass
class Fate:
    """Of the controllers of one life."""

    stage: WholeStage
    how: Fault
    """They die; "ok": they do not."""
    cut: set[Point]
    """At which some controller has died already, in whatever life."""
    most: Mapping[str, int] = field(default_factory=dict)
    """How many of a kind an undisturbed life has; what it has none of happens once."""
    writes: list[Point] = field(default_factory=list)
    """Of this life, in order, whether they were done or not."""
    done: list[Point] = field(default_factory=list)
    """Those that the server did."""
    deaths: list[Point] = field(default_factory=list)
    _done: Counter[str] = field(default_factory=Counter)
    _last: Call | None = None
    _since: int = APART

    def plan(self, call: Call) -> Fault:
        if self.stage.mortal.dead:
            return "cut before"
        if not call.writes:
            return "ok"
        point = self._point(call)
        self.writes.append(point)
        self._since += 1
        if self.how == "ok" or point in self.cut or point[1] > self.most.get(point[0], 1) or self._since < APART:
            return "ok"
        self._last, self._since, self.stage.mortal.dead = call, 0, True
        self.deaths.append(point)
        if self.how == "cut before":
            self.cut.add(point)
        return self.how

    def answered(self, call: Call, status: int) -> None:
        """A write that the server refuses is none that somebody could die of afterwards."""
        if call.writes and status < 300:
            point = self._point(call)
            if call is self._last:
                self.cut.add(point)
            self.done.append(point)
            self._done[point[0]] += 1

    @property
    def ray_jobs(self) -> dict[str, int]:
        """How many were made of each name."""
        return {kind: number for kind, number in self._done.items() if kind.startswith("POST rayjobs/")}

    def _point(self, call: Call) -> Point:
        kind = kind_of(call, self.stage.job.name)
        return kind, self._done[kind] + 1


def kind_of(call: Call, job: str) -> str:
    """What is asked for, whatever the job is called; of a status, what it says. Pure."""
    path = call.path.partition("/namespaces/")[2].partition("/")[2].replace(job, "JOB")
    if call.method == "POST":
        path += "/" + json.loads(call.body)["metadata"]["name"].replace(job, "JOB")
    if not path.endswith("/status"):
        return f"{call.method} {path}"
    said = json.loads(call.body)["status"]
    reasons = " ".join(one["reason"] for one in said.get("conditions", ())) or "figures"
    return f"{call.method} {path} {said.get('phase', '')} {reasons}"


def live(life: Life, proxy: KubeProxy, fate: Fate) -> None:
    """Controllers, one after the other, until the job is at its end and cleaned up, and for some turns more."""
    stage, end, over = fate.stage, time.monotonic() + _PATIENCE, False
    proxy.plan, proxy.answered = fate.plan, fate.answered
    while not over:
        with contextlib.suppress(Killed), stage.service() as controller:
            while not over:
                assert time.monotonic() < end, (fate, stage.status, stage.said)
                with contextlib.suppress(FathomError):
                    controller.turn()
                stage.mortal.live()  # a thread of its own may have died
                over = life.go_on()
                time.sleep(_PAUSE)
            written = len(fate.writes)
            for _ in range(_TURNS):
                controller.turn()
                time.sleep(_PAUSE)
            assert len(fate.writes) == written, f"it does not stop writing: {fate.writes[written:]}"


def die_at_every_write(stage: WholeStage, proxy: KubeProxy, story: str, least: int, how: Fault) -> None:
    """The next one ends up where an undisturbed one does, with one RayJob for each attempt, one MLflow run for it and
    one for the job, the same money, and nothing left behind."""
    life, lived, cut = LIVES[story](stage), list[Fate](), set[Point]()
    undisturbed: dict[str, object] = {}
    while len(lived) < 2 or lived[-1].deaths:
        most = dict(sorted(lived[0].done)) if lived else {}
        fate = Fate(stage, how if lived else "ok", cut, most)
        life.begin(f"{story.split()[0]}-{len(lived)}")
        with without_a_word():
            live(life, proxy, fate)
        found = life.outcome | {"RayJobs": fate.ray_jobs}
        undisturbed = undisturbed or found
        different = {name: (one, undisturbed[name]) for name, one in found.items() if one != undisturbed[name]}
        assert not different, (different, fate.deaths, fate.writes, stage.said)
        lived.append(fate)
        assert len(lived) < _LIVES, fate
    first, last = lived[0].done, lived[-1].done
    points = {one for one in first if one in last or one[0].startswith(("POST", "DELETE"))}
    assert points <= cut, points - cut
    assert len(points) >= least, points
    deaths = sum(len(one.deaths) for one in lived)
    print(f"{story}: {len(lived) - 2} lives, {deaths} deaths at all of its {len(points)} writes, {how}; {undisturbed}")
