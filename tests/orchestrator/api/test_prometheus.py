"""The service's own numbers for Prometheus, and whether it is ready."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.service import Runs

from orchestrator.api.capacity import Capacity, Holder, Slots
from orchestrator.api.prometheus import MAX_TEAMS, OTHERS
from orchestrator.controller.health import STALE_SECONDS, Health
from orchestrator.errors import Unavailable
from orchestrator.status import Cost, JobStatus, Phase
from orchestrator.store.access import Role

_LABELS = (
    "method",
    "route",
    "kind",
    "team",
    "currency",
    "phase",
    "state",
    "status",
    "outcome",
    "version",
    "python",
    "le",
)
"""In the order in which the tests name their values."""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Runs, Clock]]:
    """A service whose controller goes by a clock of the test."""
    clock = Clock()
    made = Runs(tmp_path / "home", health=Health(clock=clock))
    yield made, clock
    made.close()


def _samples(runs: Runs, role: Role = Role.ADMIN, team: str = "") -> dict[tuple[str, ...], float]:
    answer = runs.get("/metrics", role, team)
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, *(sample.labels[name] for name in _LABELS if name in sample.labels)): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def _job(runs: Runs, name: str, team: str, phase: Phase, spent: str, currency: str = "USD") -> None:
    cost = Cost(spent=spent, burn_per_hour="2", wasted="0.5", currency=currency)
    runs.store.set_status(runs.job(name, team).uid, JobStatus(phase=phase, cost=cost))


def test_jobs_slots_and_money(runs: Runs) -> None:
    _job(runs, "a", "default", Phase.RUNNING, "10.25")
    _job(runs, "b", "default", Phase.SUCCEEDED, "1.50")
    _job(runs, "c", "others", Phase.QUEUED, "7", "EUR")
    runs.job("d")
    runs.capacity = Capacity(Slots(cpus=8), (Holder("default", "a", Slots(cpus=2)),))
    found = _samples(runs)
    jobs = {key[1]: value for key, value in found.items() if key[0] == "fathom_jobs"}
    assert jobs == dict.fromkeys(Phase, 0) | {"Running": 1, "Succeeded": 1, "Queued": 1, "Pending": 1}
    assert found["fathom_queue_length",] == 2
    assert found["fathom_slots", "cpu", "total"] == 8
    assert found["fathom_slots", "cpu", "used"] == 2
    money = {key: value for key, value in found.items() if key[0] == "fathom_spent"}
    assert money == {("fathom_spent", "default", "USD"): 11.75, ("fathom_spent", "others", "EUR"): 7}
    assert found["fathom_wasted", "default", "USD"] == 1
    assert found["fathom_burn_per_hour", "default", "USD"] == 4
    assert [key[0] for key, value in found.items() if "build_info" in key[0] and value == 1]


def test_a_token_of_a_team_sees_its_own_money_only(runs: Runs) -> None:
    _job(runs, "a", "default", Phase.RUNNING, "10")
    _job(runs, "b", "others", Phase.RUNNING, "20")
    found = _samples(runs, Role.READER, "others")
    assert {key: value for key, value in found.items() if key[0] == "fathom_spent"} == {
        ("fathom_spent", "others", "USD"): 20
    }
    assert found["fathom_jobs", "Running"] == 1


def test_requests_are_counted_by_the_template_of_their_route(runs: Runs) -> None:
    runs.job()
    for path in ("/v1/jobs/default/mini", "/v1/jobs/default/none", "/v1/jobs/default/mini/logs", "/nowhere/at/all"):
        runs.get(path)
    runs.admin.request("BREW", "/v1/jobs")
    runs.admin.get("/v1/jobs", headers={"Authorization": "Bearer wrong"})
    found = _samples(runs)
    counts = {key[1:]: value for key, value in found.items() if key[0].endswith("duration_seconds_count")}
    assert counts == {
        ("GET", "/v1/jobs/{namespace}/{name}", "200"): 1,
        ("GET", "/v1/jobs/{namespace}/{name}", "404"): 1,
        ("GET", "/v1/jobs/{namespace}/{name}/logs", "200"): 1,
        ("GET", "none", "404"): 1,
        ("other", "/v1/jobs", "405"): 1,
        ("GET", "none", "401"): 1,
    }


def test_teams_beyond_the_bound_are_told_together(runs: Runs) -> None:
    for number in range(MAX_TEAMS + 5):
        _job(runs, "a", f"team{number:03}", Phase.RUNNING, f"{1000 - number}")
    found = {key[1]: value for key, value in _samples(runs).items() if key[0] == "fathom_spent"}
    assert len(found) == MAX_TEAMS + 1
    assert found["team000"] == 1000
    assert found[OTHERS] == sum(1000 - number for number in range(MAX_TEAMS, MAX_TEAMS + 5))


def test_two_apps_count_for_themselves(runs: Runs, tmp_path: Path) -> None:
    other = Runs(tmp_path / "other")
    runs.get("/v1/jobs")
    assert not [key for key in _samples(other) if key[0].endswith("duration_seconds_count")]
    other.close()


def test_turns_of_the_controller(watched: tuple[Runs, Clock]) -> None:
    runs, clock = watched
    health = runs.health
    assert health is not None
    with health.turn():
        clock.now += 2

    def fails() -> None:
        with health.turn():
            clock.now += 1
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fails()
    found = _samples(runs)
    assert found["fathom_controller_turns_total", "ok"] == 1
    assert found["fathom_controller_turns_total", "failed"] == 1
    assert found["fathom_controller_turn_seconds_total",] == 3
    assert found["fathom_controller_last_turn_seconds",] == 1
    assert found["fathom_controller_last_turn_age_seconds",] == 1


def test_readiness_names_the_part_that_does_not_work(
    watched: tuple[Runs, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, clock = watched
    assert runs.health is not None
    assert runs.get("/readyz").status_code == 200, "its first look may take long"
    clock.now += STALE_SECONDS + 1
    ready = runs.get("/readyz")
    assert (ready.status_code, ready.text) == (503, "not ready: controller\n")
    with runs.health.turn():
        pass
    assert (runs.get("/readyz").status_code, runs.get("/readyz").text) == (200, "ok\n")
    clock.now += STALE_SECONDS + 1
    assert runs.get("/readyz").text == "not ready: controller\n"

    def broken(_: object) -> None:
        raise Unavailable("the disk of /secret/path is gone")

    monkeypatch.setattr(runs.store, "documents", broken)
    assert runs.get("/readyz").text == "not ready: store\nnot ready: controller\n"
    assert runs.get("/livez").text == "ok\n"


def test_a_tally_is_exact(runs: Runs) -> None:
    for number in range(10):
        _job(runs, f"a{number}", "default", Phase.FAILED, "0.100001")
    [team] = runs.store.tally()
    assert (team.phases, team.money["USD"].spent) == ({Phase.FAILED: 10}, Decimal("1.000010"))
    assert runs.store.tally("none") == []
