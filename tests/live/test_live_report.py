"""What `make e2e` calls wrong, and what it compares the ledger with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from live.cases import Outcome
from live.pods import PodWatch, Seen, held_seconds
from live.report import faults, page

WORKER = Seen("w", "u1", "calm", 1, "worker", scheduled=1_790_000_000.0, gone=1_790_000_100.0)
HEAD = Seen("h", "u2", "calm", 1, "head", scheduled=1_789_999_000.0, gone=1_790_000_131.0)


def outcome(name: str, **changes: Any) -> Outcome:  # noqa: ANN401 - fields of one
    attempt = {"number": 1, "startedAt": "2026-09-21T14:13:20Z", "endedAt": "2026-09-21T14:15:00Z"}
    status = {"phase": "Succeeded", "attemptCount": 1, "attempts": [attempt], "cost": {"spent": "1", "wasted": "0"}}
    good = Outcome(name, name, "Succeeded", 100.0, {1: 5.0, 2: 4.5}, 2, status, [WORKER, HEAD])
    return replace(good, **changes)


def test_what_is_as_it_must_be() -> None:
    assert list(faults([outcome("calm", starts=1), outcome("worker")])) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"phase": "Failed"}, "worker: Failed"),
        ({"starts": 1}, "nothing was disturbed"),
        ({"losses": {1: 5.0, 2: 4.500001}}, "1 of 2 losses differ, first at step [2]"),
        ({"losses": {1: 5.0}}, "losses differ"),
        (
            {"pods": [replace(WORKER, gone=1_790_000_104.0), HEAD]},
            "is paid for 100 s, its workers held nodes for 104 s",
        ),
        ({"pods": [replace(WORKER, scheduled=None), HEAD]}, "is paid for 100 s, its workers held nodes for 0 s"),
    ],
)
def test_what_is_not(changes: dict[str, Any], words: str) -> None:
    [said] = faults([outcome("calm", starts=1), outcome("worker", **changes)])
    assert words in said


def test_only_workers_of_the_attempt_hold_what_is_paid_for() -> None:
    second = replace(WORKER, uid="u3", attempt=2, scheduled=1_790_000_500.0, gone=1_790_000_510.0)
    assert held_seconds([HEAD, WORKER, second], 1) == 100.0
    assert held_seconds([HEAD, WORKER, second], 2) == 10.0
    assert held_seconds([HEAD], 1) == 0.0


def test_a_pod_lets_go_when_its_containers_have_ended() -> None:
    watch = PodWatch("e2e")
    metadata = {"name": "w", "uid": "u1", "labels": {"fathom.dev/job": "calm", "fathom.dev/attempt": "1"}}
    metadata["labels"]["ray.io/node-type"] = "worker"  # type: ignore[index]
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-09-21T14:13:20Z"}
    over = {"state": {"terminated": {"finishedAt": "2026-09-21T14:15:00Z"}}}
    status = {"phase": "Failed", "conditions": [placed], "containerStatuses": [over]}
    watch._take({"metadata": metadata, "status": status}, gone=False)
    watch._take({"metadata": metadata, "status": status}, gone=True)
    assert watch.of("calm") == [WORKER]
    assert "| w | u1 | 1 | worker |" in page([outcome("calm", starts=1)], "a cluster")


def test_a_pod_that_went_while_nobody_watched_is_gone() -> None:
    watch = PodWatch("e2e")
    labels = {"fathom.dev/job": "calm", "fathom.dev/attempt": "1", "ray.io/node-type": "worker"}
    first, second = ({"metadata": {"name": uid, "uid": uid, "labels": labels}, "status": {}} for uid in ("u1", "u2"))
    watch._took([first])
    watch._took([second])
    assert [(one.uid, one.gone is None) for one in watch.of("calm")] == [("u1", False), ("u2", True)]
