"""How a job ended, for whoever has followed it to its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.controller.follower import Follower
from orchestrator.controller.observe import Observation
from orchestrator.cost.ledger import Ledger
from orchestrator.launch.events import Ended
from orchestrator.launch.resolve import Resolved
from orchestrator.status import Phase

_DECISIONS: dict[Phase, Literal["succeed", "stop", "fail"]] = {
    Phase.SUCCEEDED: "succeed",
    Phase.SUSPENDED: "stop",
    Phase.CANCELLED: "stop",
    Phase.FAILED: "fail",
}


@dataclass(frozen=True)
class Result:
    """Of a job that rests."""

    decision: Literal["succeed", "stop", "fail"]
    ended: Ended
    """Of its newest attempt."""
    observation: Observation
    resolved: Resolved
    ledger: Ledger


def result_of(follower: Follower) -> Result | None:
    """None if no attempt of it has ended."""
    ended, ledger, phase = follower.history.end_of(follower.last), follower.ledger(), follower.standing.phase
    if ended is None or ledger is None or follower.resolved is None or phase not in _DECISIONS:
        return None
    return Result(_DECISIONS[phase], ended, follower.observation, follower.resolved, ledger)
