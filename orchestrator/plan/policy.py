"""What failures cost in hours and money, and what doing one thing better would be worth.

Called by `fathom goodput`. Every policy is simulated with the same seeds, hence the same failures at the same moments,
so that differences are not noise. Money is Decimal. Invariant: the money of the classes, and of productive time and all
causes, adds up to what the job costs, exactly.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext

from orchestrator.errors import UsageError
from orchestrator.plan.checkpointing import MOST_IN_REPAIR, spares_needed
from orchestrator.plan.failures import PRODUCTIVE, node_count
from orchestrator.plan.goodput import goodput
from orchestrator.plan.simulate import CLASSES, Run, Scenario, refuse_too_many, simulate

RISK = 0.01
"""Spares are recommended so that in this share of the time all of them are in repair."""
MOST_RUNS = 1000
HOPELESS = 0.001
"""Below this goodput nothing is saved: twice next to nothing is next to nothing."""
_HOUR = Decimal(3_600_000_000)
_GRAIN = Decimal("0.000001")


@dataclass(frozen=True)
class Lost:
    """Time of one class or cause, mean over the runs."""

    hours: float
    """Of the whole job."""
    share: float
    cost: Decimal


@dataclass(frozen=True)
class Better:
    """One thing changed. Gains are of the same runs with the same failures."""

    name: str
    change: str
    goodput: float
    gain: float
    """Goodput with less goodput without, mean over the runs."""
    gain_error: float
    """Standard error of `gain`; 0 for a single run."""
    worth: Decimal
    """What the work that the job does now would cost less. Machines in reserve that it takes are paid for."""
    used: bool
    """Whether the job does so already: then this is what it would lose without."""


@dataclass(frozen=True)
class Simulated:
    """Several runs of one scenario."""

    runs: tuple[Run, ...]
    rate: Decimal
    """What the job costs in an hour."""

    @property
    def goodputs(self) -> list[float]:
        """Of each run, in the order of the seeds."""
        return [run.goodput for run in self.runs]

    @property
    def cost(self) -> Decimal:
        """Mean cost of a run."""
        return self._money(sum(run.wall for run in self.runs))

    def by_class(self) -> dict[str, Lost]:
        """Every class of time, productive too."""
        return self._priced({name: sum(run.times[name] for run in self.runs) for name in CLASSES})

    def by_cause(self) -> dict[str, Lost]:
        """What is not productive by its cause, the largest first."""
        found: Counter[str] = Counter()
        for run in self.runs:
            found.update(run.lost_by_cause())
        productive = {PRODUCTIVE: sum(run.times["productive"] for run in self.runs)}
        priced = self._priced(productive | dict(found.most_common()))
        del priced[PRODUCTIVE]
        return priced

    def failures(self) -> Mapping[str, float]:
        """Failures per run by cause."""
        found: Counter[str] = Counter()
        for run in self.runs:
            found.update(run.counts())
        return {cause: count / len(self.runs) for cause, count in found.most_common()}

    def _priced(self, times: Mapping[str, int]) -> dict[str, Lost]:
        """Amounts are differences of one running total."""
        wall, running, found = sum(run.wall for run in self.runs), 0, {}
        for name, micro in times.items():
            before, running = self._money(running), running + micro
            found[name] = Lost(micro / 3.6e9 / len(self.runs), micro / wall, self._money(running) - before)
        return found

    def _money(self, micro: int) -> Decimal:
        with localcontext(prec=60):
            return (self.rate * micro / _HOUR / len(self.runs)).quantize(_GRAIN)


def simulate_all(scenario: Scenario, rate: Decimal, seed: int, runs: int) -> Simulated:
    """Runs with the seeds from `seed` on. `rate` is what the job costs in an hour."""
    if not 1 <= runs <= MOST_RUNS:
        raise UsageError(f"the number of runs must be between 1 and {MOST_RUNS:,}, got {runs}")
    if not (rate.is_finite() and rate >= 0):
        raise UsageError(f"the price must be finite and not negative, got {rate}")
    refuse_too_many(scenario, runs)
    return Simulated(tuple(simulate(scenario, seed + number) for number in range(runs)), rate)


def better_policies(scenario: Scenario, now: Simulated) -> list[Better]:
    """Each change by itself, the one that is worth most first. For scenarios of a given time."""
    assert scenario.seconds is not None, "the same time for each policy"
    seed, nodes, found = now.runs[0].seed, node_count(scenario.gpus, scenario.gpus_per_node), []

    def played(one: Scenario) -> Simulated:
        return now if one is scenario else simulate_all(one, now.rate, seed, len(now.runs))

    for name, change, without, with_it in _changes(scenario, nodes):
        extra = (with_it.recovery.spares or 0) - (without.recovery.spares or 0)
        reserve = now.rate / nodes * extra * Decimal(str(scenario.seconds)) / 3600
        found.append(_better(name, change, played(without), played(with_it), reserve, without is not scenario))
    return sorted(found, key=lambda one: -one.worth)


def _better(
    name: str, change: str, without: Simulated, with_it: Simulated, reserve: Decimal, used: bool
) -> Better:  # fmt: skip
    before, after = without.goodputs, with_it.goodputs
    gains = [b - a for a, b in zip(before, after, strict=True)]
    saved = statistics.mean(1 - a / b if b else 0.0 for a, b in zip(before, after, strict=True))
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    if statistics.mean(after) < HOPELESS:
        saved = 0.0
    worth = (Decimal(repr(saved)) * without.cost - reserve).quantize(_GRAIN)
    return Better(name, change, statistics.mean(after), statistics.mean(gains), error, worth, used)


def _changes(scenario: Scenario, nodes: int) -> Iterable[tuple[str, str, Scenario, Scenario]]:
    """Name, what changes, the scenario without it and with it; the one that is not changed is the one given."""
    recovery, failures = scenario.recovery, scenario.failures

    def changed(**values: object) -> Scenario:
        return replace(scenario, recovery=replace(recovery, **values))  # type: ignore[arg-type]

    other = changed(in_place=not recovery.in_place)
    pair = (other, scenario) if recovery.in_place else (scenario, other)
    yield ("restart in place", "new processes on the same machines where that is a cure", *pair)
    fast = {"save_seconds": recovery.save_seconds / 10, "upload_seconds": recovery.upload_seconds / 10}
    yield (
        "faster checkpoints", f"standstill {in_words(recovery.save_seconds)} -> {in_words(fast['save_seconds'])}, "
        f"written in {in_words(recovery.upload_seconds)} -> {in_words(fast['upload_seconds'])}",
        scenario, changed(**fast),
    )  # fmt: skip
    copy = recovery.local_save_seconds or recovery.save_seconds / 10
    if not (recovery.local_save_seconds and recovery.peer_copies):
        yield (
            "copies in another node's memory", f"standstill {in_words(copy)}; they outlive the loss of a node",
            scenario, changed(local_save_seconds=copy, peer_copies=True),
        )  # fmt: skip
    quick = {"detect_seconds": recovery.detect_seconds / 10, "hang_seconds": recovery.hang_seconds / 10}
    yield (
        "quicker detection", f"of a death {in_words(recovery.detect_seconds)} -> {in_words(quick['detect_seconds'])}, "
        f"of a hang {in_words(recovery.hang_seconds)} -> {in_words(quick['hang_seconds'])}",
        scenario, changed(**quick),
    )  # fmt: skip
    warm = recovery.replace_seconds / 10
    yield (
        "warm standby", f"another machine takes {in_words(recovery.replace_seconds)} -> {in_words(warm)}",
        scenario, changed(replace_seconds=warm),
    )  # fmt: skip
    if scenario.interval_seconds is not None:
        best = goodput(scenario.gpus, scenario.gpus_per_node, failures, recovery).interval_seconds
        yield (
            "the best interval", f"a checkpoint every {in_words(scenario.interval_seconds)} -> {in_words(best)}",
            scenario, replace(scenario, interval_seconds=None),
        )  # fmt: skip
    if failures.lemons is not None and recovery.exclude_after is None:
        yield "exclude bad nodes", "after two failures of the same node", scenario, changed(exclude_after=2)
    yield from _more_spares(scenario, nodes)


def _more_spares(scenario: Scenario, nodes: int) -> Iterable[tuple[str, str, Scenario, Scenario]]:
    """A reserve that is enough, or what it is worth where there is taken to be one."""
    recovery, failures = scenario.recovery, scenario.failures

    def changed(spares: int) -> Scenario:
        return replace(scenario, recovery=replace(recovery, spares=spares))

    losses = sum(cause.per_hour(scenario.gpus, nodes) for cause in failures.causes if cause.cure == "node")
    if losses * recovery.repair_hours > MOST_IN_REPAIR:
        return
    enough, have = spares_needed(losses, recovery.repair_hours, RISK), recovery.spares
    if have is not None and enough <= have:
        return
    change = f"{have or 0} -> {enough} nodes, paid for; all in repair {RISK:.0%} of the time"
    if have is None and enough:
        yield "spares", f"{change}; without, a repair is waited for", changed(0), changed(enough)
    elif have is not None:
        yield "more spares", change, scenario, changed(enough)


def in_words(value: float) -> str:
    """For people: 45 s, 9.5 min, 2.1 h, 5.3 days."""
    if value == math.inf:
        return "never"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if value >= 2 * size:
            return f"{value / size:.3g} {unit}" if value < 1000 * size else f"{value / size:,.0f} {unit}"
    return f"{value:.3g} s"
