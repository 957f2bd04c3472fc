"""What every job store promises: the one in a file, and TrainingJobs of a real API server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from support.store import in_phase, small_job, suspended

from orchestrator.errors import Conflict, NotFound, UsageError
from orchestrator.spec import TrainingJob
from orchestrator.status import Condition, ConditionType, Cost, JobStatus, MlflowRun, Phase, Reason
from orchestrator.store.base import JobStore, Query, Wish
from orchestrator.store.document import document
from orchestrator.store.tally import Money, TeamTally

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(params=["sqlite", pytest.param("kube", marks=pytest.mark.kube)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    """Empty, with namespaces for the teams default, other, a and b."""
    from orchestrator.store.sqlite import SqliteStore

    with ExitStack() as stack:
        if request.param == "sqlite":
            made = SqliteStore(tmp_path / "fathom.db")
            stack.callback(made.database.close)
            yield made
        else:
            from support.kube_store import TEAMS, make_teams, serving

            request.getfixturevalue("trainingjobs")
            kube = request.getfixturevalue("kube")
            make_teams(kube)
            yield stack.enter_context(serving(kube, TEAMS))


def names(store: JobStore, **query: object) -> list[str]:
    return [job.name for job in store.list(Query(**query)).jobs]  # type: ignore[arg-type]


def test_it_is_a_job_store(store: JobStore) -> None:
    kept: JobStore = store
    assert kept.open_jobs() == ()


def test_a_job_comes_back_as_it_was_given(store: JobStore) -> None:
    job = small_job(budget={"limit": "5.00"}, tracking={"tags": {"why": "ünïcode \U0001f30a"}})
    made = store.create(job, by="ann")
    assert store.get("default", "mini") == made == store.by_uid(made.uid)
    assert made.wish == Wish(job)
    assert (made.status, made.generation, made.created_by) == (JobStatus(), 1, "ann")
    assert datetime.now(UTC) - made.created_at < timedelta(minutes=1)


def test_a_status_in_the_job_is_not_kept(store: JobStore) -> None:
    job = small_job().model_copy(update={"status": in_phase(Phase.RUNNING)})
    made = store.create(job, by="ann")
    assert made.wish.job.status is None
    assert made.status.phase is Phase.PENDING


def test_names_are_unique_in_their_namespace_only(store: JobStore) -> None:
    store.create(small_job(), by="ann")
    store.create(small_job(namespace="other"), by="ann")
    with pytest.raises(Conflict, match=r"default/mini exists already \(Pending"):
        store.create(small_job(), by="bob")


def test_what_is_not_there(store: JobStore) -> None:
    with pytest.raises(NotFound, match="no job default/mini"):
        store.get("default", "mini")
    with pytest.raises(NotFound):
        store.change("default", "mini", lambda wish: wish)
    assert store.by_uid("none") is None
    assert store.set_status("none", JobStatus()) is False
    store.remove("none")


def test_a_changed_wish_counts_and_leaves_the_status(store: JobStore) -> None:
    made = store.create(small_job(), by="ann")
    store.set_status(made.uid, in_phase(Phase.RUNNING))
    changed = store.change("default", "mini", suspended, generation=1)
    assert (changed.generation, changed.status.phase) == (2, Phase.RUNNING)
    assert changed.version > made.version
    assert store.get("default", "mini") == changed
    assert changed.wish.job.spec.suspend


def test_all_of_a_wish_is_kept(store: JobStore) -> None:
    store.create(small_job(), by="ann")
    wish = Wish(small_job(), cancelled_at=NOON, deleted_at=NOON, keep_files=True, granted_after=3, resumed=2)
    changed = store.change("default", "mini", lambda _: wish)
    found = store.get("default", "mini")
    assert found == changed
    assert found.wish.deleted_at is not None, "when, the store may know better"
    assert replace(found.wish, deleted_at=NOON) == wish


def test_the_same_wish_is_no_change(store: JobStore) -> None:
    made = store.create(small_job(), by="ann")
    assert store.change("default", "mini", lambda wish: wish) == made
    assert store.change("default", "mini", lambda wish: Wish(small_job())) == made


def test_a_wish_of_another_generation_is_refused(store: JobStore) -> None:
    store.create(small_job(), by="ann")
    store.change("default", "mini", suspended)
    with pytest.raises(Conflict, match="generation 2, you have 1"):
        store.change("default", "mini", lambda _: Wish(small_job()), generation=1)
    assert store.get("default", "mini").wish.job.spec.suspend


def test_what_an_edit_raises_changes_nothing(store: JobStore) -> None:
    made = store.create(small_job(), by="ann")

    def refuse(_: Wish) -> Wish:
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        store.change("default", "mini", refuse)
    assert store.get("default", "mini") == made


def test_a_wish_for_another_job_of_that_name_is_refused(store: JobStore) -> None:
    first = store.create(small_job(), by="ann")
    assert store.change("default", "mini", suspended, uid=first.uid).generation == 2
    store.remove(first.uid)
    store.create(small_job(), by="bob")
    with pytest.raises(Conflict, match="another job than the one you read"):
        store.change("default", "mini", suspended, uid=first.uid)


@pytest.mark.parametrize("lasting", ["cancelled_at", "deleted_at"])
def test_nothing_takes_an_end_back(store: JobStore, lasting: str) -> None:
    store.create(small_job(), by="ann")
    store.change("default", "mini", lambda wish: replace(wish, **{lasting: NOON}))
    with pytest.raises(AssertionError, match="never taken back"):
        store.change("default", "mini", lambda wish: replace(wish, **{lasting: None}))
    with pytest.raises(AssertionError, match="keeps its name"):
        store.change("default", "mini", lambda wish: replace(wish, job=small_job("other")))


def test_a_status_is_written_once(store: JobStore) -> None:
    made = store.create(small_job(), by="ann")
    assert store.set_status(made.uid, JobStatus())
    assert store.get("default", "mini") == made, "nothing was said yet"
    store.set_status(made.uid, in_phase(Phase.RUNNING))
    first = store.get("default", "mini")
    assert (first.status, first.generation) == (in_phase(Phase.RUNNING), 1)
    assert first.version > made.version
    for _ in range(3):
        assert store.set_status(made.uid, in_phase(Phase.RUNNING))
    assert store.get("default", "mini") == first


def test_a_forgotten_job_is_gone_and_its_name_free(store: JobStore) -> None:
    made = store.create(small_job(), by="ann")
    store.remove(made.uid)
    assert store.by_uid(made.uid) is None
    assert store.create(small_job(), by="ann").uid != made.uid


def test_open_jobs_are_those_with_something_to_do(store: JobStore) -> None:
    uids = {name: store.create(small_job(name), by="ann").uid for name in ("new", "runs", "done", "patched", "gone")}
    store.set_status(uids["runs"], in_phase(Phase.SUSPENDED))
    for name in ("done", "patched", "gone"):
        store.set_status(uids[name], in_phase(Phase.SUCCEEDED))
    assert [job.name for job in store.open_jobs()] == ["new", "runs"]
    store.change("default", "patched", suspended)
    store.change("default", "gone", lambda wish: replace(wish, deleted_at=NOON))
    store.set_status(uids["gone"], in_phase(Phase.SUCCEEDED, observed=2))
    assert [job.name for job in store.open_jobs()] == ["new", "runs", "patched", "gone"]
    store.set_status(uids["patched"], in_phase(Phase.SUCCEEDED, observed=2))
    assert [job.name for job in store.open_jobs()] == ["new", "runs", "gone"]


def test_lists_are_filtered(store: JobStore) -> None:
    for name, team in (("one", "a"), ("two", "a"), ("on-b", "b")):
        store.create(small_job(name, team), by="ann")
    store.set_status(store.get("a", "two").uid, in_phase(Phase.RUNNING))
    assert names(store) == ["on-b", "two", "one"]
    assert names(store, namespace="a") == ["two", "one"]
    assert names(store, namespace="none") == []
    assert names(store, phases=frozenset({Phase.RUNNING, Phase.FAILED})) == ["two"]
    assert names(store, name_contains="on") == ["on-b", "one"]
    assert names(store, name_contains="%") == names(store, name_contains="_") == []
    assert names(store, namespace="a", phases=frozenset({Phase.PENDING}), name_contains="o") == ["one"]


def test_pages_are_stable_while_jobs_come_and_go(store: JobStore) -> None:
    for number in range(7):
        store.create(small_job(f"j{number}"), by="ann")
    first = store.list(Query(limit=3))
    store.create(small_job("newer"), by="ann")
    store.remove(store.get("default", "j4").uid)  # the row that the cursor stands on
    store.remove(store.get("default", "j2").uid)
    second = store.list(Query(limit=3, after=first.next))
    assert [job.name for job in (*first.jobs, *second.jobs)] == ["j6", "j5", "j4", "j3", "j1", "j0"]
    assert second.next == ""


def test_a_full_last_page_has_nothing_after_it(store: JobStore) -> None:
    for number in range(4):
        store.create(small_job(f"j{number}"), by="ann")
    first = store.list(Query(limit=2))
    assert first.next
    assert store.list(Query(limit=2, after=first.next)).next == ""


@pytest.mark.parametrize(
    "cursor", ["x", "!!", "MA", "LTE", "MQ==", "MDE", "é", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "\ud800", " MQ", "0" * 5000]
)
def test_wrong_cursors_are_refused(store: JobStore, cursor: str) -> None:
    with pytest.raises(UsageError, match="none of ours"):
        store.list(Query(after=cursor))


def test_a_cursor_is_taken_as_it_was_given_only(store: JobStore) -> None:
    for number in range(2):
        store.create(small_job(f"j{number}"), by="ann")
    given = store.list(Query(limit=1)).next
    assert names(store, after=given) == ["j0"]
    assert len(given) <= 40, "what the API takes"
    for other in (given + "!", "!" + given, given[:-1], given + "="):
        with pytest.raises(UsageError, match="none of ours"):
            store.list(Query(after=other))


@pytest.mark.parametrize("limit", [0, -1, 1001, 2**70])
def test_wrong_limits_are_refused(store: JobStore, limit: int) -> None:
    with pytest.raises(UsageError, match=f"limit is {limit}"):
        store.documents(Query(limit=limit))


def test_documents_are_the_jobs_as_answers(store: JobStore) -> None:
    store.create(small_job("one", budget={"limit": "1.00"}, tracking={"tags": {"a": 'ü",\\"spec\\":'}}), by='"ann,')
    made = store.create(small_job("two"), by="ann")
    store.set_status(made.uid, in_phase(Phase.RUNNING))
    store.change("default", "two", lambda wish: replace(wish, cancelled_at=NOON))
    page = store.documents(Query())
    assert page.documents == tuple(document(job) for job in store.list(Query()).jobs)
    texts = store.texts(Query())
    assert [json.loads(text) for text in texts.texts] == list(page.documents)
    two = page.documents[0]
    assert two["metadata"] == {
        "name": "two",
        "namespace": "default",
        "uid": made.uid,
        "generation": 2,
        "version": store.get("default", "two").version,
        "createdAt": two["metadata"]["createdAt"],
        "createdBy": "ann",
        "folder": made.folder,
        "cancelledAt": "2026-03-01T12:00:00.000000Z",
    }
    assert two["status"]["phase"] == "Running"
    read_again = TrainingJob.model_validate({**two, "metadata": {"name": "two"}, "status": None})
    assert read_again == made.wish.job


def test_jobs_and_money_are_summed_by_team(store: JobStore) -> None:
    def paid(spent: str, currency: str = "USD") -> JobStatus:
        cost = Cost(spent=spent, burn_per_hour="2", wasted="0.5", currency=currency)
        return in_phase(Phase.RUNNING).model_copy(update={"cost": cost})

    jobs = [
        store.create(small_job(name, team), by="ann") for name, team in (("one", "a"), ("two", "a"), ("three", "b"))
    ]
    first = store.create(small_job("four", "a"), by="ann")
    store.set_status(jobs[0].uid, paid("1.25"))
    store.set_status(jobs[1].uid, paid("0.75"))
    store.set_status(first.uid, paid("3", "EUR"))
    both = {
        "USD": Money(Decimal("2"), Decimal("1.0"), Decimal("4")),
        "EUR": Money(Decimal("3"), Decimal("0.5"), Decimal("2")),
    }
    a, b = TeamTally("a", {Phase.RUNNING: 3}, both), TeamTally("b", {Phase.PENDING: 1})
    assert store.tally() == [a, b]
    assert store.tally("b") == [b]
    assert store.tally("none") == []


def test_jobs_of_which_mlflow_may_lack_something(store: JobStore) -> None:
    run = MlflowRun(experiment_id="1", run_id="a", url="http://mlflow/#/a")

    def says(reason: Reason, message: str = "", *, attempts: int = 1, link: MlflowRun | None = run) -> JobStatus:
        condition = Condition(
            type=ConditionType.TRACKING, status="False", reason=reason, message=message, last_transition_time=NOON
        )
        return JobStatus(
            phase=Phase.SUCCEEDED,
            observed_generation=1,
            conditions=[condition],
            attempt_count=attempts,
            mlflow=link,
        )

    assert store.unlinked() == ()
    for name, status in {
        "away": says(Reason.SERVER_UNREACHABLE),
        "there": says(Reason.LOGGED),
        "quoting": says(Reason.LOGGED, '"reason":"ServerUnreachable"'),
        "cut-short": says(Reason.LOGGED, '"mlflow":', link=None),
        "never-ran": says(Reason.LOGGED, attempts=0, link=None),
    }.items():
        store.set_status(store.create(small_job(name), by="ann").uid, status)
    store.create(small_job("new"), by="ann")
    assert [one.name for one in store.unlinked()] == ["away", "cut-short"]
