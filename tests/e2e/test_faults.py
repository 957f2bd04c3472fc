"""Whatever happens to a run, it ends as the undisturbed one does: same losses, samples and weights, to the last bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from support import faults
from support.faults import QUICK_STALL, Scenario, no_committed_step_is_lost, one, seen
from support.home import Done, Home, events, points, runs

from orchestrator.launch.events import Anomaly, Ended, FailureClass

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]
SEED = 20261124
IN_ATTEMPT = ("exception", "kill", "nan", "weights", "read", "kill-before-manifest", "disk-full")
HARMLESS = ("read", "disk-full")
"""These cost no restart."""


def require_undisturbed(home: Home, calm: Home, scenario: Scenario) -> None:
    found = seen(home, calm)
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


def test_attempts_end_and_the_next_ones_go_on(calm: tuple[Home, Done], make_home: Callable[[], Home]) -> None:
    """Out of memory, a stopped worker, a killed driver, one after the other."""
    home = make_home()
    three = (one("out-of-memory", 60, 1), one("stop", 110, 1), one("kill-driver", 160, 0))
    code, said = faults.run(home, Scenario("attempts", three, "stopped", restarts=0, attempts=4, options=QUICK_STALL))
    assert code == 0, said
    require_undisturbed(home, calm[0], Scenario("attempts", three, "stopped", restarts=0, attempts=4))
    ends = [e for e in events(home.run_folder()) if isinstance(e, Ended)]
    assert [e.failure_class for e in ends] == [
        FailureClass.OUT_OF_MEMORY,
        FailureClass.STALLED,
        FailureClass.DRIVER_LOST,
        None,
    ]
    assert "stopped" in ends[1].message
    stacks = [path.read_text() for path in (home.run_folder().root / "logs").glob("stacks-attempt-2-*")]
    assert any("model/loop.py" in text for text in stacks), "the other worker should have said where it waits"


def test_faults_at_random_steps(calm: tuple[Home, Done], make_home: Callable[[], Home]) -> None:
    """One of each kind that training survives within an attempt, at steps drawn by a seed."""
    draw = random.Random(SEED)
    steps = sorted(draw.sample(range(60, 195, 9), len(IN_ATTEMPT)))
    kinds = draw.sample(IN_ATTEMPT, len(IN_ATTEMPT))
    drawn: list[dict[str, Any]] = []
    for kind, step in zip(kinds, steps, strict=True):
        counts_saves = kind in ("kill-before-manifest", "disk-full")
        rank = 0 if kind == "kill-before-manifest" else draw.randrange(2)
        drawn.append(one(kind, 2 if counts_saves else step, rank))
    restarts = len(IN_ATTEMPT) - len(HARMLESS)
    home = make_home()
    scenario = Scenario("chaos", tuple(drawn), "No space left", restarts=restarts)
    code, said = faults.run(home, scenario)
    assert code == 0, said
    require_undisturbed(home, calm[0], scenario)
    client = home.client()
    assert points(client, "train/loss") == points(calm[0].client(), "train/loss")
    assert {run.info.status for run in (runs(client)[0], *runs(client)[1])} == {"FINISHED"}


def test_a_batch_that_stays_bad_is_left_out_and_named(make_home: Callable[[], Home]) -> None:
    home = make_home()
    home.inject(one("batch", 120, always=True))
    done = home.fathom("train", "job.yaml", "-o", "json", *QUICK_STALL)
    assert done.code == 0, done.err
    found = [e for e in events(home.run_folder()) if isinstance(e, Anomaly)]
    assert [e.action for e in found] == ["replay", "skip"]
    assert {e.data_step for e in found} == {120}
    incidents = home.run_folder().artifacts / "incidents.json"
    assert '"data_step": 120' in incidents.read_text()
    assert "leave its data out" in done.err
