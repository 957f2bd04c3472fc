"""One run with failures: what happened when, and where every microsecond went.

    train ──failure──► detect ─► wait for a machine ─► replace ─► restart ──► train, from the newest checkpoint

A failure during detection, replacement or restart begins all of it again, and a machine that is not there yet is still
due; one while the job waits for a machine finds nothing that runs. Called by `plan.policy`, `plan.cases`, the command
line and the benchmark. Invariant: the classes add up to the wall time exactly. The same scenario and seed give the same
run.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from orchestrator.errors import UsageError
from orchestrator.plan.failures import Failures, node_count
from orchestrator.plan.goodput import CHECKPOINTS, STRAGGLERS, Recovery, goodput
from orchestrator.plan.simulate.arrivals import MICRO, Arrival, arrivals, stragglers
from orchestrator.plan.simulate.training import Saving, Training

TimeClass = Literal[
    "productive", "checkpoint", "lost", "slow", "detecting", "waiting", "replacing", "restarting"
]  # fmt: skip
CLASSES: tuple[TimeClass, ...] = get_args(TimeClass)
MOST_FAILURES = 200_000
_NEVER = 10**18


@dataclass(frozen=True)
class Scenario:
    """What is simulated: a job of that size, for a time or for an amount of work."""

    gpus: int
    gpus_per_node: int
    failures: Failures
    recovery: Recovery
    seconds: float | None = None
    """Ends after so much time."""
    work_seconds: float | None = None
    """Ends when work is done that takes so long without any failure, checkpoint or straggler."""
    interval_seconds: float | None = None
    """Training time between two checkpoints; None: the best that `goodput` knows."""


@dataclass(slots=True)
class Incident:
    """A failure and what it cost. All in microseconds."""

    at: int
    cause: str
    lost: int
    """Work done before it that has to be done again."""
    detecting: int = 0
    waiting: int = 0
    replacing: int = 0
    restarting: int = 0

    @property
    def total(self) -> int:
        """Everything together."""
        return self.lost + self.detecting + self.waiting + self.replacing + self.restarting


@dataclass(frozen=True, slots=True)
class Stretch:
    """Training without interruption: start and end, and of that time the standstill for checkpoints and what
    stragglers took. The rest was work, whether or not a failure took it away later."""

    start: int
    end: int
    checkpoint: int
    slow: int


@dataclass(frozen=True)
class Run:
    """What happened. All in microseconds."""

    seed: int
    interval_seconds: float
    wall: int
    times: dict[TimeClass, int]
    """Every microsecond of `wall` in exactly one class."""
    incidents: tuple[Incident, ...]
    stretches: tuple[Stretch, ...] = field(repr=False)

    @property
    def goodput(self) -> float:
        """The share of the time whose work counts."""
        return self.times["productive"] / self.wall

    def counts(self) -> Counter[str]:
        """Failures by cause."""
        return Counter(incident.cause for incident in self.incidents)

    def lost_by_cause(self) -> dict[str, int]:
        """All that is not productive, by what caused it, the largest first."""
        found = Counter({CHECKPOINTS: self.times["checkpoint"], STRAGGLERS: self.times["slow"]})
        for incident in self.incidents:
            found[incident.cause] += incident.total
        return {cause: lost for cause, lost in found.most_common() if lost}


def simulate(scenario: Scenario, seed: int = 0) -> Run:
    """One run. UsageError for impossible scenarios, and for those whose failures are too many to play out."""
    return _Simulation(scenario, seed).play()


class _Simulation:
    def __init__(self, scenario: Scenario, seed: int) -> None:
        self._end, target = _ends(scenario)
        nodes = node_count(scenario.gpus, scenario.gpus_per_node)
        self._recovery, self._scenario, self._seed = scenario.recovery, scenario, seed
        saving, self._interval = _saving(scenario)
        self._training = Training(saving, target)
        self._slow = scenario.failures.stragglers
        self._next_slow = stragglers(scenario.failures, nodes, seed)
        self._slow_at, self._slow_until = next(self._next_slow, _NEVER), 0
        self._phases: list[tuple[TimeClass, int]] = []
        """What is left of a recovery, the next last: class and the time at which it ends."""
        self._free, self._repairs = self._recovery.spares, list[int]()
        self._whole = 0
        """When all machines are there that the recovery needs."""
        self._lemon_failures: Counter[int] = Counter()
        self._now = 0
        self._incidents: list[Incident] = []
        self._stretches: list[Stretch] = []
        self._lost = 0

    def play(self) -> Run:
        scenario, finished = self._scenario, False
        for arrival in arrivals(scenario.failures, scenario.gpus, scenario.gpus_per_node, self._seed):
            self._reach(min(arrival.at, self._end))
            finished = self._training.done or self._now >= self._end
            if finished:
                break
            if not self._excluded(arrival.lemon):
                self._fail(arrival)
        if not finished:
            self._reach(self._end)
        return self._result()

    def _reach(self, until: int) -> None:
        """Recover and train until that time, or until the work is done."""
        while self._phases and self._now < until:
            name, ends = self._phases[-1]
            step = min(ends, until) - self._now
            incident = self._incidents[-1]
            setattr(incident, name, getattr(incident, name) + step)
            self._now += step
            if self._now == ends:
                self._phases.pop()
        if self._now < until:
            self._train(until)

    def _train(self, until: int) -> None:
        training, start = self._training, self._now
        before = training.checkpoint, training.slow
        while self._now < until and not training.done:
            if self._slow is not None and self._slow_at <= self._now:
                self._slow_until = self._slow_at + round(self._slow.seconds * MICRO)
                self._slow_at = next(self._next_slow, _NEVER)
                continue
            slowed = self._slow is not None and self._now < self._slow_until
            border = min(until, self._slow_at, self._slow_until if slowed else until)
            self._now = training.run(self._now, border, self._slow.slowdown if slowed and self._slow else 1.0)
        checkpoint, slow = training.checkpoint - before[0], training.slow - before[1]
        self._stretches.append(Stretch(start, self._now, checkpoint, slow))

    def _fail(self, arrival: Arrival) -> None:
        if self._phases and self._phases[-1][0] == "waiting":
            return  # nothing runs that could fail
        if len(self._incidents) >= MOST_FAILURES:
            raise UsageError(
                f"after {MOST_FAILURES:,} failures in {self._now / MICRO / 86400:,.1f} days this run would still not "
                "be over: simulate less time, fewer GPUs or a quicker recovery"
            )
        cause, recovery, now = arrival.cause, self._recovery, self._now
        if arrival.lemon is not None:
            self._lemon_failures[arrival.lemon] += 1
            if self._excluded(arrival.lemon):
                cause = replace(cause, cure="node")
        lost = self._training.restore(now, recovery.in_memory(cause))
        self._lost += lost
        self._incidents.append(Incident(now, cause.name, lost))
        detect, swap, restart = (round(seconds * MICRO) for seconds in recovery.seconds(cause))
        found = here = now + detect
        if any(name in ("waiting", "replacing") for name, _ in self._phases):  # for an earlier failure
            here, swap = max(found, self._whole), round(recovery.replace_seconds * MICRO)
        if cause.cure == "node":
            here = max(here, self._machine(now))
        self._whole = here
        steps: Iterable[tuple[TimeClass, int]] = (
            ("detecting", found), ("waiting", here), ("replacing", here + swap), ("restarting", here + swap + restart)
        )  # fmt: skip
        self._phases = []
        for name, ends in steps:
            if ends > (self._phases[-1][1] if self._phases else now):
                self._phases.append((name, ends))
        self._phases.reverse()

    def _machine(self, now: int) -> int:
        """A machine breaks and goes into repair -> when another one is there."""
        if self._free is None:
            return now
        while self._repairs and self._repairs[0] <= now:
            heapq.heappop(self._repairs)
            self._free += 1
        heapq.heappush(self._repairs, now + round(self._recovery.repair_hours * 3600 * MICRO))
        if self._free:
            self._free -= 1
            return now
        return heapq.heappop(self._repairs)

    def _excluded(self, lemon: int | None) -> bool:
        limit = self._recovery.exclude_after
        return lemon is not None and limit is not None and self._lemon_failures[lemon] >= limit

    def _result(self) -> Run:
        training, incidents = self._training, self._incidents
        times: dict[TimeClass, int] = {
            "productive": training.work,
            "checkpoint": training.checkpoint,
            "lost": self._lost,
            "slow": training.slow,
            "detecting": sum(one.detecting for one in incidents),
            "waiting": sum(one.waiting for one in incidents),
            "replacing": sum(one.replacing for one in incidents),
            "restarting": sum(one.restarting for one in incidents),
        }
        assert sum(times.values()) == self._now, "every microsecond is in one class"
        return Run(self._seed, self._interval, self._now, times, tuple(incidents), tuple(self._stretches))


def _ends(scenario: Scenario) -> tuple[int, int]:
    """The last moment and the amount of work, in microseconds."""
    given = [value for value in (scenario.seconds, scenario.work_seconds) if value is not None]
    if len(given) != 1:
        raise UsageError(f"give either the time or the work to simulate, got {len(given)} of the two")
    if not (math.isfinite(given[0]) and 0 < given[0] <= 3e9):
        raise UsageError(f"the simulated time must be more than 0 and at most 3,000,000,000 s, got {given[0]}")
    micro = max(1, round(given[0] * MICRO))
    if scenario.seconds is None:
        return _NEVER, micro
    refuse_too_many(scenario, 1)
    return micro, _NEVER


def refuse_too_many(scenario: Scenario, runs: int) -> None:
    """UsageError if so many runs of a given time have more failures and stragglers than can be played out."""
    nodes = node_count(scenario.gpus, scenario.gpus_per_node)
    failures, days = scenario.failures, (scenario.seconds or 0.0) / 86400
    slow = failures.stragglers.per_node_hour * nodes if failures.stragglers else 0.0
    lemons = failures.lemons.per_hour * failures.lemons.count(nodes) if failures.lemons else 0.0
    each = 24 * days * (failures.per_hour(scenario.gpus, scenario.gpus_per_node) + lemons + slow)
    if each * runs > MOST_FAILURES:
        possible = days * MOST_FAILURES / (each * runs)
        fewer = f"simulate {possible:.3g} days" if possible < 1000 else f"simulate {possible:,.0f} days"
        if runs > 1 and each <= MOST_FAILURES:
            fewer += f", or not {runs:,} but {math.floor(MOST_FAILURES / each):,}"
        times = f"{runs:,} times " if runs > 1 else ""
        raise UsageError(
            f"{times}{each:,.0f} failures in {days:g} days are too many to play out, at most {MOST_FAILURES:,}: {fewer}"
        )


def _saving(scenario: Scenario) -> tuple[Saving, float]:
    """The rhythm of checkpoints, and the interval in seconds."""
    recovery = scenario.recovery
    best = goodput(
        scenario.gpus, scenario.gpus_per_node, scenario.failures, recovery, scenario.interval_seconds
    )  # fmt: skip
    interval = _micro(best.interval_seconds)
    near = _micro(best.local_interval_seconds) if best.local_interval_seconds is not None else interval
    copies = max(1, round(interval / near))
    saving = Saving(
        interval=near * copies,
        save=round(recovery.save_seconds * MICRO),
        upload=min(round(recovery.upload_seconds * MICRO), near * copies),  # rounding may have made it longer
        near_interval=near,
        near_save=round((recovery.local_save_seconds or 0) * MICRO),
    )
    return saving, best.interval_seconds


def _micro(seconds: float) -> int:
    return max(1, round(min(seconds * MICRO, _NEVER)))
