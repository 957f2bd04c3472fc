"""What share of a run's time counts when machines fail, where the rest goes, and how often to save. Closed forms only.

Called by `plan.estimate` and `fathom goodput`; `plan.simulate` plays the same model out event by event. Invariant:
the shares lost and the goodput add up to 1. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from orchestrator.errors import UsageError
from orchestrator.plan.checkpointing import no_spare_share, optimal_interval
from orchestrator.plan.failures import (
    CHECKPOINTS,
    LEMONS,
    STRAGGLERS,
    Cause,
    Failures,
    failure_models,
    find_failures,
    node_count,
)

__all__ = [
    "CHECKPOINTS", "LEMONS", "STRAGGLERS", "Cause", "Failures", "Goodput", "Recovery", "all_causes", "failure_models",
    "find_failures", "goodput",
]  # fmt: skip

MOST_SECONDS = 1e9
ORIGINS: Mapping[str, str] = {
    "save_seconds": "10 s: with it and ten minutes for a restart, Llama 3's rates give the 90 % that Meta published",
    "upload_seconds": "1 min: Ant's time to save with flash checkpoints (DLRover, stabilize_llm_training_cn.md)",
    "restart_seconds": "5 min: Ant's restart of processes, 1 min check + 4 min load (same table)",
    "replace_seconds": "9.5 min: Ant's node loss, 2 min schedule + 2.5 min check + 5 min to find the node (same table)",
    "detect_seconds": "1 min: the restart check of NVIDIA's resiliency extension",
    "hang_seconds": "10 min: no RDMA traffic for so long is a hang to ByteRobust (arXiv 2509.16293)",
    "repair_hours": "24 h: assumed, no public figure found",
    "exclude_after": "2: assumed; ByteRobust evicts after two alarms in five minutes",
}
"""Where the defaults of Recovery come from."""


@dataclass(frozen=True)
class Recovery:
    """How a job saves and how it comes back. The origins of the defaults are in ORIGINS."""

    save_seconds: float = 10.0
    """How long training stands still for one checkpoint."""
    restart_seconds: float = 300.0
    """From the start of new processes to the first new step."""
    detect_seconds: float = 60.0
    """Until a job that died is noticed."""
    hang_seconds: float = 600.0
    """Until a job that stands still is noticed."""
    replace_seconds: float = 570.0
    """What another machine takes on top of a restart: find the bad one, schedule, check. Without `in_place` every
    failure takes it."""
    upload_seconds: float = 60.0
    """A checkpoint counts only so long after training went on: it is written in the background meanwhile."""
    in_place: bool = True
    """New processes on the same machines where that is a cure."""
    local_save_seconds: float | None = None
    """Standstill for a copy in the node's memory or disk, between the checkpoints; None: no such copies."""
    local_interval_seconds: float | None = None
    """Training time between those copies; None: the best."""
    peer_copies: bool = False
    """Whether another node holds those copies, too, so that they outlive the loss of one."""
    spares: int | None = None
    """Machines in reserve; None: there is always one."""
    repair_hours: float = 24.0
    """Until a lost machine is back in reserve."""
    exclude_after: int | None = 2
    """A node that failed so often is replaced for good; None: never."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None or isinstance(value, bool):
                continue
            least = 1 if item.name == "exclude_after" else 0
            if not (math.isfinite(value) and least <= value <= MOST_SECONDS):
                words = item.name.replace("_", " ")
                raise UsageError(f"{words} must be between {least} and {MOST_SECONDS:,.0f}, got {value}")
        for name in ("save_seconds", "local_save_seconds", "local_interval_seconds", "repair_hours"):
            if getattr(self, name) == 0:
                raise UsageError(f"{name.replace('_', ' ')} must be more than 0, got 0")

    def in_memory(self, cause: Cause) -> bool:
        """Whether the copies in memory are there after that failure."""
        restarted = cause.cure == "process" and self.in_place
        return self.local_save_seconds is not None and (restarted or self.peer_copies)

    def seconds(self, cause: Cause) -> tuple[float, float, float]:
        """Seconds to detect, to replace and to restart after a failure of that cause."""
        detect = self.hang_seconds if cause.hangs else self.detect_seconds
        whole = cause.cure == "node" or not self.in_place
        return detect, self.replace_seconds if whole else 0.0, self.restart_seconds


@dataclass(frozen=True)
class Goodput:
    """How much of the time counts. Shares are of the time in which the job holds its machines."""

    fraction: float
    """Share of the time whose work counts."""
    interval_seconds: float
    """Training time between two checkpoints: given, or the best. Infinite if nothing fails."""
    local_interval_seconds: float | None
    """The same for copies in memory."""
    mtbf_hours: float
    lost: dict[str, float]
    """The other shares by what caused them: checkpoints, stragglers, each cause of failure."""
    lost_by_class: dict[str, float] = field(default_factory=dict)
    """The same shares by what the time went into: checkpoint, lost (work done again), recovering, waiting, slow."""


def all_causes(failures: Failures, recovery: Recovery, gpus: int, gpus_per_node: int) -> tuple[Cause, ...]:
    """The causes, and with them lemons that nobody ever excludes."""
    lemons = failures.lemons
    if lemons is None or recovery.exclude_after is not None:
        return failures.causes
    rate = lemons.per_hour * lemons.count(node_count(gpus, gpus_per_node))
    return (*failures.causes, Cause(LEMONS, per_job_hour=rate, cure="process"))


def goodput(
    gpus: int, gpus_per_node: int, failures: Failures, recovery: Recovery, interval_seconds: float | None = None
) -> Goodput:
    """Expected goodput of a long run.

    For one level of checkpoints, one R and uploads of no length this is Daly's exact form, and for several R its
    exact extension. Approximate, to first order in what each adds: copies in memory, upload time, spares, stragglers.
    `docs/goodput.md` compares all of it with the simulator.
    """
    nodes = node_count(gpus, gpus_per_node)
    causes = [c for c in all_causes(failures, recovery, gpus, gpus_per_node) if c.per_hour(gpus, nodes) > 0]
    rates = {cause.name: cause.per_hour(gpus, nodes) / 3600 for cause in causes}
    total = math.fsum(rates.values())
    near = math.fsum(rates[cause.name] for cause in causes if recovery.in_memory(cause))
    far = math.fsum(rates[cause.name] for cause in causes if not recovery.in_memory(cause))
    interval, local = _intervals(recovery, near, far, interval_seconds)
    waiting = math.fsum((waits := _waiting(causes, rates, recovery)).values())

    stalls = recovery.save_seconds / interval
    if local is not None and recovery.local_save_seconds is not None:
        stalls += recovery.local_save_seconds * (1 / local - 1 / interval)
    redo_near = _growth(near, (local or interval) + (recovery.local_save_seconds or 0))
    # What lies between two checkpoints is stretched by the copies, and by what is done again from them.
    between = interval * (1 + stalls) * redo_near if far else interval
    redo_far = _growth(far, between) * _exp(far * recovery.upload_seconds)
    running = (1 + stalls) * redo_near * redo_far
    repeated = _recovering(causes, rates, recovery)
    recovering = min(1.0, math.fsum(repeated.values()))  # rounding must not make a share negative
    slow = _slow_share(failures, nodes)
    usable = (1 - waiting) * (1 - recovering)
    fraction = usable * (1 - slow) / running if math.isfinite(running) else 0.0

    shares = {
        "checkpoint": fraction * stalls,
        "lost": max(0.0, usable * (1 - slow) - fraction * (1 + stalls)),
        "recovering": (1 - waiting) * recovering,
        "waiting": waiting,
        "slow": usable * slow,
    }
    back = {True: local or interval, False: interval + 2 * recovery.upload_seconds}
    rework = {c.name: rates[c.name] * back[recovery.in_memory(c)] for c in causes}
    lost = {CHECKPOINTS: shares["checkpoint"], STRAGGLERS: shares["slow"]}
    lost |= {
        c.name: shares["lost"] * _part(rework, c.name)
        + shares["recovering"] * _part(repeated, c.name)
        + waits.get(c.name, 0.0)
        for c in causes
    }
    hours = 1 / (3600 * total) if total else math.inf
    return Goodput(fraction, interval, local, hours, {k: v for k, v in lost.items() if v}, shares)


def _recovering(causes: Sequence[Cause], rates: Mapping[str, float], recovery: Recovery) -> dict[str, float]:
    """Share of the time spent in recoveries from each cause: the chance that the last failure was of it and is not
    over. Exact: a failure during a recovery begins it again, and a machine that was not replaced yet still has to be.
    """
    total = math.fsum(rates.values())
    parts = {c.name: recovery.seconds(c) for c in causes}
    # Of each cause: the chance of another failure before the machine is there, had one to be replaced.
    again = {
        name: rates[name] / total * -math.expm1(-total * (detect + recovery.replace_seconds))
        for name, (detect, _, _) in parts.items()
    }
    nodes = math.fsum(again[name] for name, (_, swap, _) in parts.items() if swap)
    others = math.fsum(again[name] for name, (_, swap, _) in parts.items() if not swap)
    due = nodes / max(1 - others, nodes) if nodes else 0.0  # the chance that a failure finds a machine not replaced yet
    found = {}
    for name, (detect, swap, restart) in parts.items():
        short, long = (-math.expm1(-total * (detect + s + restart)) for s in (swap, recovery.replace_seconds))
        found[name] = rates[name] / total * ((1 - due) * short + due * long)
    return found


def _waiting(causes: Sequence[Cause], rates: Mapping[str, float], recovery: Recovery) -> dict[str, float]:
    """Share of the time spent waiting for a machine, by cause. A repair goes on while the loss is being noticed."""
    nodes = [cause for cause in causes if cause.cure == "node"]
    losses = math.fsum(rates[cause.name] for cause in nodes)
    if recovery.spares is None or not losses:
        return {}
    noticed = math.fsum(rates[cause.name] * recovery.seconds(cause)[0] for cause in nodes) / losses
    hours = max(0.0, recovery.repair_hours - noticed / 3600)
    share = no_spare_share(3600 * losses, hours, recovery.spares)
    return {cause.name: share * rates[cause.name] / losses for cause in nodes}


def _intervals(recovery: Recovery, near: float, far: float, given: float | None) -> tuple[float, float | None]:
    """Training time between checkpoints and between copies in memory. `far`, `near`: failures per second that go back
    to each. Between two checkpoints fit a whole number of copies."""
    if given is not None and not (math.isfinite(given) and 0 < given <= MOST_SECONDS):
        raise UsageError(f"the checkpoint interval must be more than 0 and at most {MOST_SECONDS:,.0f} s, got {given}")
    if given is not None and given < recovery.upload_seconds:
        raise UsageError(
            f"a checkpoint every {given:g} s cannot be written when one takes {recovery.upload_seconds:g} s to upload; "
            f"the interval must be at least {recovery.upload_seconds:g} s"
        )
    # Copies may outlive all that the model lets fail; checkpoints are then as frequent as they would be without copies.
    rate = far or near
    best = optimal_interval(recovery.save_seconds, 1 / rate if rate else math.inf)
    interval = given or max(best, recovery.upload_seconds)
    if recovery.local_save_seconds is None:
        return interval, None
    best = optimal_interval(recovery.local_save_seconds, 1 / near if near else math.inf)
    local = recovery.local_interval_seconds or best
    if given is None and math.isfinite(interval) and local < interval:
        interval = local * max(1, round(interval / local), math.ceil(recovery.upload_seconds / local))
    return interval, (interval / max(1, round(interval / local)) if math.isfinite(interval) else local)


def _growth(rate: float, seconds: float) -> float:
    """(e^x - 1)/x with x = rate x seconds: running time over that without failures, in segments of that length."""
    x = rate * seconds if rate else 0.0
    if x < 1e-12:
        return 1.0
    return math.expm1(x) / x if x < 700 else math.inf


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _slow_share(failures: Failures, nodes: int) -> float:
    """Share of the running time that stragglers take: the chance of one (M/G/infinity) times 1 - 1/slowdown."""
    one = failures.stragglers
    if one is None:
        return 0.0
    return -math.expm1(-one.per_node_hour / 3600 * nodes * one.seconds) * (1 - 1 / one.slowdown)


def _part(of: Mapping[str, float], name: str) -> float:
    total = math.fsum(of.values())
    return of[name] / total if total else 0.0
