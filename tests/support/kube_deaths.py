"""A controller that dies at every one of its writes, before the server has it or before the answer comes.

A write is a point of a job's life: what is asked for, and the how manieth of its kind that the server would do. The
first life is undisturbed. In each other one controllers die at every point at which none has died yet in that way, but
at every `APART`-th write at most, and not at what an undisturbed life has less often: what is made once more after a
death, or figures that took longer. So many are lived until some controller has died in both ways of every object that
an undisturbed life makes or deletes, and of whatever else the first and the last have in common: caches that lag have a
say in how many statuses come between the first and the last.

Many deaths in a life are what makes this fast, at a price: a later one may heal what an earlier one has left behind. So
they stand apart, by more than the six writes that begin an attempt, and each life begins with another one. Nearer, and
they hide more; farther, and there are more lives.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.errors import FathomError
from support.kube_mortal import Killed, without_a_word
from support.kube_proxy import Call, Fault, KubeProxy
from support.kube_store import clear
from support.kube_stories import LIVES, Life
from support.kube_whole import WholeStage

OF_ONE_ATTEMPT = {"success": 15, "cancel": 13, "budget": 15}
OF_TWO_ATTEMPTS = {"retry": 28, "suspend and resume": 28}
"""Stories, and how many writes there are in an undisturbed life at least; how many, caches that lag have a say in."""
LEAST = OF_ONE_ATTEMPT | OF_TWO_ATTEMPTS
_MONEY_LEFT = {"NoBudget", "WithinBudget", "NearLimit"}
"""Reasons in a status that make no other write of it."""
APART = 7
_LIVES = 40
"""More are not lived: if some writes are not met in so many, something is wrong."""
_TURNS = 10
"""In which a controller that has nothing to do writes nothing."""
_PATIENCE, _PAUSE = 240.0, 0.02
Way = Literal["cut before", "cut after"]
WAYS: tuple[Way, ...] = ("cut before", "cut after")
Point = tuple[str, int]
Death = tuple[Point, Way]


@dataclass
class Fate:
    """Of the controllers of one life."""

    stage: WholeStage
    story: str
    cut: set[Death] | None
    """Of which some controller has died already, in whatever life. None: they do not die."""
    most: Mapping[str, int] = field(default_factory=dict)
    """How many of a kind an undisturbed life has; what it has none of happens once."""
    writes: list[Point] = field(default_factory=list)
    """Of this life, in order, whether they were done or not."""
    done: list[Point] = field(default_factory=list)
    """Those that the server did."""
    deaths: list[Death] = field(default_factory=list)
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
        way = self._way(point)
        if way is None:
            return "ok"
        self._last, self._since, self.stage.mortal.dead = call, 0, True
        self.deaths.append((point, way))
        if way == "cut before":
            self._dead_of(point, way)
        return way

    def _way(self, point: Point) -> Way | None:
        """In which a controller dies now; None: it does not."""
        kind, number = point
        if self.cut is None or self._since < APART or number > self.most.get(kind, 1):
            return None
        cut = self.cut
        return next((way for way in WAYS if (point, way) not in cut), None)

    def _dead_of(self, point: Point, way: Way) -> None:
        if self.cut is not None:
            self.cut.add((point, way))

    def answered(self, call: Call, status: int) -> None:
        """A write that the server refuses is none that somebody could die of afterwards."""
        if call.writes and status < 300:
            point = self._point(call)
            if call is self._last:
                self._dead_of(point, "cut after")
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
    """What is asked for, whatever the job is called; of a status, what it says, but for money that is left. Pure."""
    path = call.path.partition("/namespaces/")[2].partition("/")[2].replace(job, "JOB")
    if call.method == "POST":
        path += "/" + json.loads(call.body)["metadata"]["name"].replace(job, "JOB")
    if not path.endswith("/status"):
        return f"{call.method} {path}"
    said = json.loads(call.body)["status"]
    told = [one["reason"] for one in said.get("conditions", ()) if one["reason"] not in _MONEY_LEFT]
    reasons = " ".join(told) or "figures"
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


def die_at_every_write(stage: WholeStage, proxy: KubeProxy, story: str) -> None:
    """The next one ends up where an undisturbed one does, with one RayJob for each attempt, one MLflow run for it and
    one for the job, the same money, and nothing left behind."""
    assert LEAST.keys() == LIVES.keys()
    life, cut = LIVES[story](stage), set[Death]()
    first = Fate(stage, story, None)
    undisturbed = lived(life, proxy, first)
    fates, most = [first], dict(sorted(first.done))
    while not _is_enough(fates, cut):
        assert len(fates) < _LIVES, (_missing(fates, cut), fates[-1])
        fate = Fate(stage, story, cut, most)
        fates.append(fate)
        found = lived(life, proxy, fate, number=len(fates))
        different = {name: (one, undisturbed[name]) for name, one in found.items() if one != undisturbed[name]}
        assert not different, (different, fate.deaths, fate.writes, stage.said)
    assert len(set(first.done)) >= LEAST[story], first.done
    deaths = sum(len(one.deaths) for one in fates)
    print(f"{story}: {len(fates)} lives, {deaths} deaths at {len({one for one, _ in cut})} writes; {undisturbed}")


def lived(life: Life, proxy: KubeProxy, fate: Fate, number: int = 1) -> dict[str, object]:
    """A whole one; -> what came of it."""
    life.begin(f"{fate.story.split()[0]}-{number}")
    with without_a_word():
        live(life, proxy, fate)
    # each controller to come looks at the job once, and finds nothing to be done: at one, or it takes ever longer
    clear(fate.stage.kube, fate.stage.player.namespace, but=fate.stage.job.name)
    return life.outcome | {"RayJobs": fate.ray_jobs}


def _is_enough(fates: Sequence[Fate], cut: set[Death]) -> bool:
    """Whether all deaths have been died. What no life meets any more is not waited for, if it may be missing."""
    missing = _missing(fates, cut)
    return not missing or (len(fates) > 1 and not fates[-1].deaths and not _missing(fates, cut, sure=True))


def _missing(fates: Sequence[Fate], cut: set[Death], *, sure: bool = False) -> set[Death]:
    """Deaths that nobody has died yet. `sure`: of writes that no life lacks."""
    first, last = fates[0].done, fates[-1].done
    points = {one for one in first if not sure or one in last or one[0].startswith(("POST", "DELETE"))}
    return {(one, way) for one in points for way in WAYS} - cut
