"""`GET /v1/compare` on the real application: JSON and page, who may see what, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from support.compared import folder
from support.pages import Page
from support.store import small_job

from orchestrator.api.app import make_app
from orchestrator.api.capacity import Capacity, Slots
from orchestrator.compare.document import Comparison
from orchestrator.settings import Settings
from orchestrator.status import JobStatus, Phase
from orchestrator.store.access import Access, Role
from orchestrator.store.database import NAME
from orchestrator.store.sqlite import SqliteStore

Get = Callable[..., "tuple[int, dict[str, str], bytes]"]
BOTH = [("job", "fast"), ("job", "slow")]


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    """Two jobs of team default that have run, one of another team that has not."""
    store = SqliteStore(tmp_path / NAME)
    for name, slower in (("fast", 1.0), ("slow", 2.0)):
        stored = store.create(small_job(name), by="a")
        folder(tmp_path, name, [5.0, 4.0, 3.5, 3.0], slower=slower).rename(tmp_path / stored.folder)
        store.set_status(stored.uid, JobStatus(phase=Phase.SUCCEEDED))
    store.create(small_job("waits", "red"), by="a")
    return store


@pytest.fixture
def get(store: SqliteStore, tmp_path: Path) -> Get:
    """Asks with a token of a team, or of all."""
    settings = Settings.load({"FATHOM_HOME": str(tmp_path)})
    app = make_app(store, settings, capacity=lambda: Capacity(Slots(2, 0)), wake=lambda: None)
    access = Access(store.database)
    teams = (None, "default", "red")
    secrets = {team: access.make(f"of-{team or 'all'}", Role.READER, by="a", team=team)[1] for team in teams}
    client = TestClient(app, base_url="http://localhost")

    def ask(*parameters: tuple[str, str], team: str | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        answer = client.get(
            "/v1/compare", params=list(parameters), headers={"Authorization": f"Bearer {secrets[team]}"} | headers
        )
        return answer.status_code, dict(answer.headers), answer.content

    return ask


def test_json_by_any_axis_and_metric(get: Get) -> None:
    code, headers, body = get(*BOTH, ("by", "tokens"), ("metric", "train/loss"))
    assert (code, headers["content-type"]) == (200, "application/json")
    found = Comparison.model_validate_json(body)
    assert (found.by, found.metric.name) == ("tokens", "train/loss")
    assert [(run.name, run.phase) for run in found.runs] == [("fast", "Succeeded"), ("slow", "Succeeded")]
    assert Comparison.model_validate_json(get(*BOTH)[2]).equal[0].axis == "dollars"


def test_a_page_for_whoever_asks_for_one(get: Get) -> None:
    code, headers, body = get(*BOTH, accept="text/html,application/json;q=0.9")
    assert (code, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "style-src 'unsafe-inline'" in headers["content-security-policy"], "or a browser shows it bare"
    assert "svg" in Page(body.decode()).tags
    for accept in ("*/*", "application/json, text/html", "text/plain"):
        assert get(*BOTH, accept=accept)[1]["content-type"] == "application/json"


def test_a_job_that_waits_has_no_numbers(get: Get) -> None:
    code, _, body = get(("job", "default/fast"), ("job", "red/waits"))
    assert code == 200
    found = Comparison.model_validate_json(body)
    assert (found.runs[1].phase, found.runs[1].spent) == ("Pending", None)
    assert "no-steps" in [caution.code for caution in found.cautions]


def test_a_team_sees_its_own_jobs_only(get: Get) -> None:
    assert get(*BOTH, team="default")[0] == 200
    hidden = get(("job", "fast"), ("job", "red/waits"), team="default")
    absent = get(("job", "fast"), ("job", "red/none"), team="default")
    assert (hidden[0], absent[0]) == (404, 404)
    assert hidden[2].replace(b"waits", b"none").split(b"requestId")[0] == absent[2].split(b"requestId")[0]
    assert get(*BOTH, team="red")[0] == 404, "a name without a team is of the caller's"


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ([], 422),
        ([("job", "fast")], 422),
        ([("job", f"j{i}") for i in range(21)], 422),
        ([*BOTH, ("by", "joules")], 422),
        ([("job", "fast"), ("job", "../x")], 422),
        ([("job", "fast"), ("job", "fast")], 400),
        ([("job", "fast"), ("job", "default/fast")], 400),
        ([("job", "fast"), ("job", "none")], 404),
        ([*BOTH, ("metric", "none/such")], 404),
    ],
)
def test_what_is_refused(get: Get, parameters: list[tuple[str, str]], code: int) -> None:
    status, headers, _ = get(*parameters)
    assert (status, headers["content-type"]) == (code, "application/problem+json")


def test_a_damaged_run_is_no_fault_of_whoever_asks(get: Get, store: SqliteStore, tmp_path: Path) -> None:
    (tmp_path / store.get("default", "slow").folder / "held.json").write_text("{")
    assert get(*BOTH)[0] == 503
