"""The faults that a run must survive, and what was seen of each; for the tests and for `benchmarks/trust.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import CheckpointCommitted, Progress, Started
from support.home import Home, events, history, weights


@dataclass(frozen=True)
class Scenario:
    """Faults of one run, and what must be seen of them."""

    name: str
    faults: tuple[dict[str, Any], ...]
    expect: str
    """Part of a warning or of the end of an attempt; empty where restarts alone show it."""
    restarts: int = 1
    attempts: int = 1
    options: tuple[str, ...] = field(default=())
    """`--set` of the job."""


def one(kind: str, step: int, rank: int | None = None, **more: object) -> dict[str, Any]:
    return {"kind": kind, "step": step} | ({} if rank is None else {"rank": rank}) | more


def slow(seconds: float, steps: int | None = None) -> dict[str, Any]:
    """Each step takes so much longer, without work for a core; of a run of so many steps, or of any."""
    return {"kind": "slow", "seconds": seconds} | ({} if steps is None else {"steps": steps})


QUICK_STALL = ("--set", "retry.stallMinutes=0.5")
SCENARIOS = (
    Scenario("exception in one worker", (one("exception", 90, 1),), "an injected fault"),
    Scenario("SIGKILL of rank 0", (one("kill", 90, 0),), ""),
    Scenario("SIGKILL of the other worker", (one("kill", 91, 1),), ""),
    Scenario("SIGSTOP of one worker", (one("stop", 90, 1),), "stopped", restarts=0, attempts=2, options=QUICK_STALL),
    Scenario("out of memory in one worker", (one("out-of-memory", 90, 1),), "memory", restarts=0, attempts=2),
    Scenario("batch read wrongly", (one("read", 120, 1),), "", restarts=0),
    Scenario("batch corrupted in memory", (one("batch", 120, 0), one("batch", 120, 1)), "robust deviations"),
    Scenario("NaN on one rank", (one("nan", 120, 1),), "not finite"),
    Scenario("weights corrupted in memory", (one("weights", 120, 0),), "robust deviations"),
    Scenario("driver killed", (one("kill-driver", 90, 0),), "without a word", restarts=0, attempts=2),
    Scenario("killed between files and manifest", (one("kill-before-manifest", 2),), ""),
    Scenario("disk full", (one("disk-full", 2, 1),), "No space left", restarts=0),
)


@dataclass(frozen=True)
class Seen:
    """What a run with faults came to."""

    happened: int
    restarts: int
    attempts: int
    same_losses: bool
    same_samples: bool
    same_weights: bool
    repeated: int
    """Steps that were done more than once."""
    lost_seconds: float
    recovering_seconds: float
    said: str
    """All warnings and reasons."""


def run(home: Home, scenario: Scenario) -> tuple[int, str]:
    """-> exit code and what was said."""
    home.inject(*scenario.faults)
    done = home.fathom("train", "job.yaml", "-o", "json", *scenario.options)
    return done.code, done.err


def seen(home: Home, calm: Home, written: dict[str, bytes] | None = None) -> Seen:
    """Compare with the undisturbed run. `written`: weights that do not lie in the run's folder."""
    folder, model = home.run_folder(), calm.run_folder()
    ours, theirs = history(folder), history(model)
    all_events = events(folder)
    starts = [e for e in all_events if isinstance(e, Started)]
    attempts = len({e.attempt for e in starts})
    steps = [e.step for e in all_events if isinstance(e, Progress)]
    ledger = _ledger(folder)
    return Seen(
        happened=home.happened(),
        restarts=len(starts) - attempts,
        attempts=attempts,
        same_losses={s: v[0] for s, v in ours.items()} == {s: v[0] for s, v in theirs.items()},
        same_samples={s: v[1] for s, v in ours.items()} == {s: v[1] for s, v in theirs.items()},
        same_weights=(weights(folder) if written is None else written) == weights(model),
        repeated=len(steps) - len(set(steps)),
        lost_seconds=ledger["lost"],
        recovering_seconds=ledger["recovering"],
        said=" ".join(str(getattr(e, "message", "")) for e in all_events),
    )


def require_undisturbed(home: Home, calm: Home, scenario: Scenario, written: dict[str, bytes] | None = None) -> None:
    """All of a scenario was seen, and the run ended as the calm one did; `written`: see `seen`."""
    found = seen(home, calm, written)
    assert found.happened == len(scenario.faults), "not all faults happened"
    assert scenario.expect in found.said
    assert (found.restarts, found.attempts) == (scenario.restarts, scenario.attempts)
    assert found.same_losses
    assert found.same_samples
    assert found.same_weights
    assert no_committed_step_is_lost(home.run_folder())
    if scenario.restarts or scenario.attempts > 1:
        assert found.recovering_seconds > 0
        assert (found.lost_seconds > 0) == (found.repeated > 0)


def no_committed_step_is_lost(folder: RunFolder) -> bool:
    """Every start goes on from a step that is at least the newest one committed before, unless it was damaged."""
    committed = 0
    for event in events(folder):
        if isinstance(event, CheckpointCommitted):
            committed = max(committed, event.step)
        elif isinstance(event, Started) and event.step < committed:
            return False
    return True


def _ledger(folder: RunFolder) -> dict[str, float]:
    from orchestrator.cost.ledger import Ledger

    ledger = Ledger.from_json(folder.ledger.read_text())
    return {name: float(seconds) for name, seconds in ledger.totals.seconds_by_class.items()}
