"""Money over the API: the numbers of `fathom cost`, exact, and what teams may still spend."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from support.cli import command
from support.service import Runs, story

from orchestrator.cost.timeline import Held
from orchestrator.launch import local
from orchestrator.status import Cost, JobStatus, Phase
from orchestrator.store.access import Role

T = 1_750_000_000.0
BUDGETS = '- {team: default, limit: "100.00", currency: USD}\n- {team: idle, limit: "5.00", currency: EUR}\n'


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Runs]:
    """A service with limits of two teams; a dollar a second."""
    (tmp_path / "budgets.yaml").write_text(BUDGETS)
    made = Runs(tmp_path / "home", FATHOM_BUDGETS=str(tmp_path / "budgets.yaml"))
    yield made
    made.close()


def test_a_job_costs_what_the_command_says(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = runs.job(budget={"limit": "50.00"})
    events = story(1, T, 4, "failed") + story(2, T + 20, 3, outcome=None)
    record = runs.run(stored, events, [Held(1, T, T + 8.123456), Held(2, T + 20, T + 30.1)])
    answer = runs.get("/v1/jobs/default/mini/cost").json()
    _, out, _ = command("cost", monkeypatch, capsys)(str(record.folder.root), "-o", "json")
    told = json.loads(out)
    assert answer["totals"] == told["jobs"][0]["totals"]
    assert answer["by"] == told["by"]
    assert answer["rates"] == told["jobs"][0]["rates"]
    assert answer["currency"] == told["currency"]
    assert answer["spent"] == told["jobs"][0]["totals"]["cost"] == "18.223456000000"
    assert (answer["limit"], answer["left"]) == ("50.00", "31.776544000000")
    assert sum(Decimal(one["cost"]) for one in answer["by"]["attempt"]) == Decimal(answer["spent"])


def test_a_job_without_attempts_costs_nothing(runs: Runs) -> None:
    runs.job(budget={"limit": "5.00", "currency": "EUR"})
    answer = runs.get("/v1/jobs/default/mini/cost").json()
    assert (answer["spent"], answer["left"], answer["currency"], answer["rates"]) == ("0", "5.00", "EUR", [])
    assert all(groups == [] for groups in answer["by"].values())


def test_a_record_that_is_damaged_is_a_fault_of_the_service(runs: Runs) -> None:
    stored = runs.job()
    record = runs.run(stored, story(1, T, 1), [Held(1, T, T + 3)])
    record.folder.held.write_text("{")
    answer = runs.get("/v1/jobs/default/mini/cost")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


def test_costs_of_jobs_add_up_to_teams_and_to_all(runs: Runs) -> None:
    for number, team in enumerate(("default", "default", "others")):
        stored = runs.job(f"done{number}", team)
        runs.run(stored, story(1, T, 4 + number), [Held(1, T, T + 8.0000004 + number)])
        runs.end(stored)
    live = runs.job("live", "others", budget={"limit": "9.00"})
    running = Cost(spent="1.500000", burn_per_hour="3600", wasted="0.250000", currency="USD")
    runs.store.set_status(live.uid, JobStatus(phase=Phase.RUNNING, cost=running))
    runs.job("new", "others", budget={"limit": "1.00", "currency": "EUR"})
    answer = runs.get("/v1/costs").json()
    by_name = {one["name"]: one for one in answer["jobs"]}
    for number in range(3):
        name, team = f"done{number}", ("default", "default", "others")[number]
        assert by_name[name]["spent"] == runs.get(f"/v1/jobs/{team}/{name}/cost").json()["spent"]
    assert by_name["live"]["spent"] == "1.500000"
    assert (by_name["live"]["limit"], by_name["new"]["limit"], by_name["new"]["currency"]) == ("9.00", "1.00", "EUR")
    teams = {one["team"]: one for one in answer["teams"]}
    assert {name: one["jobs"] for name, one in teams.items()} == {"default": 2, "others": 3}
    for team, names in (("default", ["done0", "done1"]), ("others", ["done2", "live"])):
        [amount] = teams[team]["amounts"]
        assert Decimal(amount["spent"]) == sum(Decimal(by_name[name]["spent"]) for name in names)
    [total] = answer["totals"]
    assert Decimal(total["spent"]) == sum(Decimal(one["spent"]) for one in answer["jobs"])
    assert total["burnPerHour"] == "3600"
    assert runs.get("/v1/costs", Role.READER, "others").json()["teams"] == [teams["others"]]
    assert runs.get("/v1/costs?namespace=default").json()["teams"] == [teams["default"]]
    assert runs.get("/v1/costs?namespace=default", Role.READER, "others").status_code == 404


def test_a_ledger_is_read_again_only_if_it_was_changed(runs: Runs) -> None:
    stored = runs.job()
    record = runs.run(stored, story(1, T, 4), [Held(1, T, T + 8)])
    runs.end(stored)
    ledgers = runs.app.state.ledgers
    first = ledgers.finished(stored.folder)
    assert ledgers.finished(stored.folder) is first
    record.save_held([Held(1, T, T + 9)])
    runs.end(stored)
    os.utime(record.folder.ledger, ns=(1, 1))
    assert ledgers.finished(stored.folder)[1].spent == first[1].spent + 1
    record.folder.ledger.write_text("{")
    assert ledgers.finished(stored.folder) is None


def test_limits_of_teams_are_told_with_what_is_reserved_and_left(limited: Runs) -> None:
    done = limited.job("done")
    limited.run(done, story(1, T, 4), [Held(1, T, T + 10)])
    limited.end(done)
    going = limited.job("going", budget={"limit": "30.00"})
    record = limited.run(going, [], [Held(1, T, T + 5)])
    record.folder.reserved.write_text('{"amount": "30.00", "currency": "USD"}')
    with local.hold_lock(record.folder.launcher_lock):
        teams = {one["team"]: one for one in limited.get("/v1/costs").json()["teams"]}
    assert {name: Decimal(amount) for name, amount in teams["default"]["budget"].items() if name != "currency"} == {
        "limit": 100,
        "spent": 15,
        "reserved": 25,
        "left": 60,
    }
    assert (teams["idle"]["jobs"], teams["idle"]["budget"]["left"], teams["idle"]["trouble"]) == (0, "5.00", None)


def test_a_budget_that_cannot_be_counted_says_why_and_hides_nothing_else(limited: Runs) -> None:
    done = limited.job("done")
    record = limited.run(done, story(1, T, 4), [Held(1, T, T + 10)])
    record.folder.held.write_text("{")
    [first, second] = limited.get("/v1/costs").json()["teams"]
    assert first["budget"] is None
    assert "held.json cannot be read" in first["trouble"]
    assert second["budget"]["left"] == "5.00"


def test_a_limit_is_held_against_the_run_and_its_team_at_once(limited: Runs) -> None:
    """By the folder, which knows more than the status of before; with what stopping costs while a driver lives."""
    stored = limited.job(budget={"limit": "70.00"})
    record = limited.run(stored, story(1, T, 4, None), [Held(1, T, T + 20)])
    client = limited.client(limited.secrets[Role.RUNNER])

    def asked(limit: str) -> tuple[int, str]:
        answer = client.patch("/v1/jobs/default/mini", json={"spec": {"budget": {"limit": limit}}})
        return answer.status_code, str(answer.json().get("detail", ""))

    code, detail = asked("19.00")
    assert (code, "below the 20.000000 USD that are spent" in detail) == (422, True), detail
    assert asked("200.00")[0] == 200, "a run that does not go on asks for its team's money when it starts again"
    with local.hold_lock(record.folder.launcher_lock):
        record.folder.reserved.write_text('{"amount": "70.00", "currency": "USD"}')
        code, detail = asked("201.00")
        assert (code, "default has 100 of its 100 left" in detail) == (402, True), detail
        assert asked("90.00")[0] == 200
        with local.hold_lock(record.folder.lock):
            code, detail = asked("60.00")
            assert (code, "that stopping costs" in detail) == (422, True), detail
