"""TrainingJobs that people make and change with kubectl, and how wishes are counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.apiserver import ApiServer
from support.kube_jobs import KubeJobs
from support.kube_objects import until
from support.kube_proxy import KubeProxy, Say
from support.kube_store import serving, store_of
from support.store import in_phase, small_document, small_job, suspended

from orchestrator.errors import Conflict, InvalidJob, NotFound, Unavailable, UsageError
from orchestrator.kube.client import Kube
from orchestrator.kube.resources import Json
from orchestrator.status import Condition, ConditionType, JobStatus, Phase, Reason
from orchestrator.store import intake
from orchestrator.store.base import Query, Wish
from orchestrator.store.document import document
from orchestrator.store.kube import KubeStore
from orchestrator.store.resource import FINALIZER

pytestmark = pytest.mark.kube
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def store(kube: Kube, kube_jobs: KubeJobs) -> Iterator[KubeStore]:
    """Of the namespace of `kube_jobs`."""
    with serving(kube, [kube_jobs.namespace]) as made:
        yield made


class People:
    """With kubectl, in one namespace."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self._server, self._namespace = server, namespace

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        done = self._server.kubectl(arguments[0], "-n", self._namespace, *arguments[1:], stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply(self, name: str = "mini", **spec: Any) -> None:  # noqa: ANN401 - any part of a job
        body = {"apiVersion": "fathom.dev/v1alpha1", "kind": "TrainingJob", **small_document(name, **spec)}
        body["metadata"] = {"name": name}
        self("apply", "-f", "-", stdin=json.dumps(body))


@pytest.fixture
def people(api_server: ApiServer, kube_jobs: KubeJobs) -> People:
    return People(api_server, kube_jobs.namespace)


def said(about: int, status: str = "True") -> Condition:
    return Condition(
        type=ConditionType.ACCEPTED,
        status=status,
        reason=Reason.VALID,
        last_transition_time=NOON,
        observed_generation=about,
    )


def resumed(wish: Wish) -> Wish:
    return replace(wish, resumed=wish.resumed + 1, granted_after=wish.granted_after + 2)


# ------------------------------------------------------------------ jobs of people
def test_a_job_of_a_person(store: KubeStore, people: People, kube_jobs: KubeJobs) -> None:
    people.apply(budget={"limit": "5.00"})
    found = store.get(kube_jobs.namespace, "mini")
    resource = kube_jobs.get("mini")
    assert found.wish == Wish(small_job(namespace=kube_jobs.namespace, budget={"limit": "5.00"}))
    assert (found.status, found.generation, found.created_by) == (JobStatus(), 1, "kubectl")
    assert found.folder == f"{kube_jobs.namespace}.mini.{found.uid[:8]}"
    assert found.uid == resource["metadata"]["uid"]
    assert str(found.version) == resource["metadata"]["resourceVersion"]
    assert "finalizers" not in resource["metadata"], "to read it changes nothing"
    [page] = store.documents(Query()).documents
    assert page == document(found)


def test_it_is_held_up_before_anything_is_begun(store: KubeStore, people: People, kube_jobs: KubeJobs) -> None:
    people.apply()
    [taken] = until(store.open_jobs)
    resource = kube_jobs.get("mini")
    assert resource["metadata"]["finalizers"] == [FINALIZER]
    assert str(taken.version) == resource["metadata"]["resourceVersion"]
    people("delete", "tj", "mini", "--wait=false")
    [leaving] = until(lambda: [job for job in store.open_jobs() if job.wish.deleted_at])
    assert leaving.generation == 2
    assert leaving.wish.deleted_at is not None
    assert abs(leaving.wish.deleted_at - datetime.now(UTC)) < timedelta(minutes=1)
    store.remove(leaving.uid)
    assert store.open_jobs() == ()
    assert kube_jobs.get("mini")["code"] == 404


def test_those_for_which_there_is_no_time_wait(
    store: KubeStore, kube_jobs: KubeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many may come at once, and what runs is looked at in each turn."""
    kube_jobs.create(small_document())
    until(lambda: store.list(Query()).jobs)
    begun = store.create(small_job("begun", kube_jobs.namespace), by="ann")
    with monkeypatch.context() as patch:
        patch.setattr(intake, "_CLAIM_SECONDS", 0.0)
        assert [job.uid for job in store.open_jobs()] == [begun.uid]
        assert "finalizers" not in kube_jobs.get("mini")["metadata"]
    assert len(store.open_jobs()) == 2


def test_one_that_nobody_has_begun_goes_at_once(store: KubeStore, people: People, kube_jobs: KubeJobs) -> None:
    people.apply()
    made = store.get(kube_jobs.namespace, "mini")
    people("delete", "tj", "mini")
    until(lambda: store.by_uid(made.uid) is None)
    assert store.open_jobs() == ()


def test_what_another_holds_up_is_no_job_of_ours(store: KubeStore, people: People, kube_jobs: KubeJobs) -> None:
    people.apply()
    [taken] = until(store.open_jobs)
    kube_jobs.patch("mini", {"metadata": {"finalizers": [FINALIZER, "example.com/other"]}})
    people("delete", "tj", "mini", "--wait=false")
    until(lambda: [job for job in store.open_jobs() if job.wish.deleted_at])
    store.remove(taken.uid)
    assert kube_jobs.get("mini")["metadata"]["finalizers"] == ["example.com/other"]
    for missing in (store.by_uid(taken.uid), *store.open_jobs(), *store.list(Query()).jobs):
        assert missing is None
    with pytest.raises(NotFound, match="there is no job"):
        store.get(kube_jobs.namespace, "mini")
    with pytest.raises(Conflict, match=r"exists already \(Pending, of .*, being deleted\)"):
        store.create(small_job(namespace=kube_jobs.namespace), by="ann")


def test_what_another_holds_up_was_never_ours(store: KubeStore, people: People, kube_jobs: KubeJobs) -> None:
    """Deleted before we had seen it: to hold it up now is not allowed any more, and nothing of it runs."""
    body = small_document()
    body["metadata"]["finalizers"] = ["example.com/other"]
    kube_jobs.create(body)
    until(lambda: store.list(Query()).jobs)
    people("delete", "tj", "mini", "--wait=false")
    until(lambda: not store.list(Query()).jobs)
    assert store.open_jobs() == ()
    with pytest.raises(NotFound, match="there is no job"):
        store.get(kube_jobs.namespace, "mini")


def test_a_deletion_of_one_that_nobody_has_begun_waits_for_the_controller(
    store: KubeStore, people: People, kube_jobs: KubeJobs
) -> None:
    people.apply()
    changed = store.change(kube_jobs.namespace, "mini", lambda wish: replace(wish, deleted_at=NOON, keep_files=True))
    assert changed.wish.deleted_at is not None
    assert changed.wish.keep_files
    assert [job.uid for job in store.open_jobs()] == [changed.uid]


def test_wishes_of_people_in_annotations(store: KubeStore, people: People, kube_jobs: KubeJobs) -> None:
    people.apply()
    made = store.get(kube_jobs.namespace, "mini")
    told: list[int] = []
    store.on_wish(lambda: told.append(1))
    people("annotate", "tj", "mini", "fathom.dev/cancelled-at=2026-03-01T12:00:00Z", "fathom.dev/force=true")
    until(lambda: told)
    found = store.get(kube_jobs.namespace, "mini")
    assert found.wish == replace(made.wish, cancelled_at=NOON, force=True)
    assert found.generation == made.generation + 2
    people("annotate", "tj", "mini", "note=none-of-ours")
    until(lambda: store.get(kube_jobs.namespace, "mini").version > found.version)
    assert store.get(kube_jobs.namespace, "mini").generation == found.generation


@pytest.mark.parametrize(
    ("annotation", "wish"),
    [
        ("cancelled-at=now", {"cancelled_at": "made"}),
        ("cancelled-at=2026-03-01T12:00:00", {"cancelled_at": NOON}),
        ("cancelled-at=0001-01-01T00:00:00+14:00", {"cancelled_at": "made"}),
        ("cancelled-at=false", {}),
        ("created-at=0001-01-01T00:00:00Z", {}),
        ("created-at=9999-12-31T23:59:59-14:00", {}),
        ("cancelled-at=", {}),
        ("keep-files=yes", {}),
        ("force=TRUE", {}),
        ("resumed=-1", {}),
        ("resumed=x", {}),
        ("resumed=٣", {}),
        ("granted-after=" + "9" * 30, {}),
        ("granted-after=9999999999", {"granted_after": 10**9}),
    ],
)
def test_annotations_that_nobody_can_read(
    store: KubeStore, kube_jobs: KubeJobs, annotation: str, wish: dict[str, Any]
) -> None:
    name, _, value = annotation.partition("=")
    body = small_document()
    body["metadata"]["annotations"] = {f"fathom.dev/{name}": value}
    made = kube_jobs.create(body)["metadata"]["creationTimestamp"]
    wish = {key: datetime.fromisoformat(made) if one == "made" else one for key, one in wish.items()}
    found = store.get(kube_jobs.namespace, "mini")
    assert found.wish == replace(Wish(small_job(namespace=kube_jobs.namespace)), **wish)
    until(lambda: store.documents(Query()).documents == (document(found),))
    assert store.change(kube_jobs.namespace, "mini", resumed).wish.resumed == 1


def test_a_change_writes_only_what_changed(store: KubeStore, people: People, kube_jobs: KubeJobs) -> None:
    people.apply(tracking={"tags": {"a": "1", "b": "2"}}, budget={"limit": "5.00"})
    before = kube_jobs.get("mini")

    def edit(wish: Wish) -> Wish:
        tracking = wish.job.spec.tracking.model_copy(update={"tags": {"b": "3"}})
        spec = wish.job.spec.model_copy(update={"tracking": tracking, "budget": None})
        return replace(wish, job=wish.job.model_copy(update={"spec": spec}), cancelled_at=NOON)

    changed = store.change(kube_jobs.namespace, "mini", edit)
    after = kube_jobs.get("mini")
    assert changed.wish.job.spec.tracking.tags == {"b": "3"}
    assert changed.wish.job.spec.budget is None
    assert after["spec"] == {
        **{key: value for key, value in before["spec"].items() if key != "budget"},
        "tracking": {**before["spec"]["tracking"], "tags": {"b": "3"}},
    }
    assert "kubectl.kubernetes.io/last-applied-configuration" in after["metadata"]["annotations"]
    assert changed.generation == 3, "the spec, and the wish to cancel"


def test_what_the_server_refuses_is_told_by_field(store: KubeStore, kube_jobs: KubeJobs) -> None:
    kube_jobs.create(small_document())
    kube_jobs.accept("mini")

    def edit(wish: Wish) -> Wish:
        training = wish.job.spec.training.model_copy(update={"tokens": 5})
        return replace(
            wish, job=wish.job.model_copy(update={"spec": wish.job.spec.model_copy(update={"training": training})})
        )

    with pytest.raises(InvalidJob, match=r"spec.training.tokens: .*is fixed once accepted"):
        store.change(kube_jobs.namespace, "mini", edit)


# ------------------------------------------------------------------ generations
def observed(resource: Json) -> tuple[int, int, list[int]]:
    status = resource["status"]
    own = [one["observedGeneration"] for one in status["conditions"]]
    return status["observedGeneration"], status.get("observedWishes", 0), own


def test_kubectl_waits_for_the_generation_of_kubernetes(store: KubeStore, people: People, kube_jobs: KubeJobs) -> None:
    team = kube_jobs.namespace
    uid = store.create(small_job(namespace=team), by="ann").uid
    store.change(team, "mini", resumed)
    job = store.change(team, "mini", suspended)
    assert job.generation == 5, "two changes of the spec, resumed once, two attempts granted"
    status = JobStatus(observed_generation=5, conditions=[said(5)])
    store.set_status(uid, status)
    resource = kube_jobs.get("mini")
    assert observed(resource) == (2, 3, [2])
    assert resource["metadata"]["generation"] == 2
    assert store.get(team, "mini").status == status
    people("wait", "tj", "mini", "--for=condition=Accepted", "--timeout=120s")
    store.change(team, "mini", resumed)
    store.set_status(uid, status)
    assert observed(kube_jobs.get("mini")) == (2, 3, [2]), "still about the wish of before"
    assert [job.uid for job in store.open_jobs()] == [uid]
    newer = JobStatus(phase=Phase.SUCCEEDED, observed_generation=8, conditions=[said(8)])
    store.set_status(uid, newer)
    assert observed(kube_jobs.get("mini")) == (2, 6, [2])
    assert store.get(team, "mini").status == newer
    assert store.open_jobs() == ()


def test_a_generation_of_before_is_never_said_to_be_newer(store: KubeStore, kube_jobs: KubeJobs) -> None:
    """Read at 2, written when it is at 5, and no status stands between."""
    team = kube_jobs.namespace
    uid = store.create(small_job(namespace=team), by="ann").uid
    store.change(team, "mini", suspended)
    store.change(team, "mini", resumed)
    store.set_status(uid, JobStatus(observed_generation=2, conditions=[said(1)]))
    own, wishes, conditions = observed(kube_jobs.get("mini"))
    assert own + wishes == 2
    assert own <= 2
    assert conditions <= [own]
    assert store.get(team, "mini").status.observed_generation == 2
    before = kube_jobs.get("mini")
    store.set_status(uid, store.get(team, "mini").status)
    assert kube_jobs.get("mini") == before, "what was read is there"


# ------------------------------------------------------------------ the order
def test_jobs_of_one_second_are_in_the_order_in_which_they_came(store: KubeStore, kube_jobs: KubeJobs) -> None:
    for number in range(20):
        store.create(small_job(f"j{number:02}", kube_jobs.namespace), by="ann")
    assert [job.name for job in store.list(Query()).jobs] == [f"j{number:02}" for number in reversed(range(20))]
    assert [job.name for job in store.open_jobs()] == [f"j{number:02}" for number in range(20)]


def test_nobody_puts_his_job_before_all_others(store: KubeStore, kube_jobs: KubeJobs) -> None:
    body = small_document("forged")
    body["metadata"]["annotations"] = {"fathom.dev/created-at": "2999-01-01T00:00:00Z"}
    made = datetime.fromisoformat(kube_jobs.create(body)["metadata"]["creationTimestamp"])
    assert store.get(kube_jobs.namespace, "forged").created_at <= made + timedelta(seconds=1)
    kube_jobs.patch("forged", {"metadata": {"annotations": {"fathom.dev/created-at": "1999-01-01T00:00:00Z"}}})
    until(lambda: store.get(kube_jobs.namespace, "forged").created_at < made)
    store.create(small_job("other", kube_jobs.namespace), by="ann")
    assert [job.name for job in store.list(Query(limit=1)).jobs] == ["other"]
    kube_jobs.delete("forged")
    until(lambda: len(store.list(Query()).jobs) == 1)


# ------------------------------------------------------------------ jobs that our models refuse
@pytest.fixture
def newer(api_server: ApiServer, trainingjobs: dict[str, Any]) -> Iterator[None]:
    """A definition that admits a field that this version does not know."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trainingjobs.fathom.dev"
    client = api_server.client()

    def put(future: bool) -> None:
        found = client.get(path).json()
        spec = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        spec.pop("future", None)
        if future:
            spec["future"] = {"type": "string"}
        answer = client.put(path, json=found)
        assert answer.status_code == 200, answer.text

    put(True)
    yield
    put(False)


@pytest.fixture
def unfit(newer: None, kube_jobs: KubeJobs) -> Json:
    """A job with that field, which the server needs a moment to know; a watch from before would not show it."""
    body = small_document("unfit")
    body["spec"]["future"] = "x"
    answer = until(lambda: (found := kube_jobs.post(body)).status_code == 201 and found)
    found: Json = answer.json()
    return found


def accepted(resource: Json) -> list[Json]:
    return [one for one in (resource.get("status") or {}).get("conditions", ()) if one["type"] == "Accepted"]


def test_what_our_models_refuse_stops_nobody_and_is_told(
    unfit: Json, store: KubeStore, people: People, kube: Kube, kube_jobs: KubeJobs, caplog: pytest.LogCaptureFixture
) -> None:
    team = kube_jobs.namespace
    store.create(small_job("good", team), by="ann")
    until(lambda: len(store.documents(Query()).documents) == 2)
    for _ in range(3):
        assert [job.name for job in store.open_jobs()] == ["good"]
    [told] = accepted(kube_jobs.get("unfit"))
    assert (told["status"], told["reason"]) == ("False", "Invalid")
    assert told["message"].startswith(
        f"TrainingJob {team}/unfit cannot be read by this version of Fathom: spec.future: "
    )
    assert len([one for one in caplog.records if "left out" in one.message]) == 1
    assert "Invalid" in people("get", "tj", "unfit", "-o", "wide")
    assert [job.name for job in store.list(Query()).jobs] == ["good"]
    assert [job.name for job in store.unlinked()] == []
    with pytest.raises(Unavailable, match=r"spec\.future"):
        store.get(team, "unfit")
    version = kube_jobs.get("unfit")["metadata"]["resourceVersion"]
    with serving(kube, [team]) as another:
        assert [job.name for job in another.open_jobs()] == ["good"]
    assert kube_jobs.get("unfit")["metadata"]["resourceVersion"] == version, "told once, by all controllers to come"
    kube_jobs.patch("unfit", {"spec": {"future": None}})
    mended = until(lambda: [job for job in store.open_jobs() if job.name == "unfit"])
    assert mended[0].generation > mended[0].status.observed_generation


def test_it_is_told_as_soon_as_it_can_be(unfit: Json, through: Kube, proxy: KubeProxy, kube_jobs: KubeJobs) -> None:
    with serving(through, [kube_jobs.namespace]) as store:
        proxy.plan = lambda call: Say(409, "Conflict") if call.writes else "ok"
        assert store.open_jobs() == ()
        assert not accepted(kube_jobs.get("unfit"))
        proxy.plan = lambda call: "ok"
        assert store.open_jobs() == ()
        assert accepted(kube_jobs.get("unfit"))


def test_what_our_models_refuse_can_be_deleted(
    unfit: Json, store: KubeStore, people: People, kube_jobs: KubeJobs
) -> None:
    until(lambda: store.open_jobs() == () and accepted(kube_jobs.get("unfit")))
    people("delete", "tj", "unfit")
    kube_jobs.post(small_document("unfit") | {"spec": unfit["spec"]})
    kube_jobs.patch("unfit", {"metadata": {"finalizers": [FINALIZER]}})
    people("delete", "tj", "unfit", "--wait=false")
    until(lambda: store.open_jobs() == () and kube_jobs.get("unfit").get("code") == 404)


def test_one_that_has_run_stays_as_it_is(unfit: Json, store: KubeStore, kube_jobs: KubeJobs) -> None:
    kube_jobs.patch("unfit", {"metadata": {"finalizers": [FINALIZER]}})
    kube_jobs.patch("unfit", {"spec": {"suspend": True}})
    kube_jobs.accept("unfit", phase="Running", attemptCount=1, observedGeneration=1)

    def running() -> list[Json]:
        assert store.open_jobs() == ()
        found = kube_jobs.get("unfit")["status"]["conditions"]
        return [one for one in found if one["type"] == "Running"]

    [told] = until(running)
    assert (told["status"], told["reason"]) == ("Unknown", "ControllerError")
    [still] = accepted(kube_jobs.get("unfit"))
    assert still["status"] == "True"
    assert kube_jobs.get("unfit")["status"]["observedGeneration"] == 1, "nobody has looked at what is wished since"
    kube_jobs.delete("unfit")
    until(lambda: [one for one in store.documents(Query()).documents if "deletedAt" in one["metadata"]])
    assert store.open_jobs() == ()
    assert kube_jobs.get("unfit")["metadata"]["finalizers"] == [FINALIZER], "something of it may run"


# ------------------------------------------------------------------ which namespaces
def test_jobs_of_other_namespaces_are_not_there(
    store: KubeStore, kube: Kube, kube_jobs: KubeJobs, api_server: ApiServer
) -> None:
    other = KubeJobs(kube_jobs.client, api_server.namespace())
    other.create(small_document())
    with pytest.raises(NotFound, match="there is no job"):
        store.get(other.namespace, "mini")
    with pytest.raises(
        UsageError, match=f"nobody looks after jobs in the namespace {other.namespace}: .* {kube_jobs.namespace}$"
    ):
        store.create(small_job("two", other.namespace), by="ann")
    with serving(kube, []) as everywhere:
        assert everywhere.get(other.namespace, "mini").name == "mini"
        assert other.namespace in {job.namespace for job in everywhere.list(Query(limit=1000)).jobs}
        with pytest.raises(NotFound, match="namespaces"):
            everywhere.create(small_job(namespace="not-there"), by="ann")


def test_nothing_is_said_before_all_is_read(kube: Kube, kube_jobs: KubeJobs) -> None:
    store = store_of(kube, [kube_jobs.namespace])
    assert not store.synced
    for ask in (store.open_jobs, lambda: store.get("a", "b"), lambda: store.documents(Query(limit=1))):
        with pytest.raises(Unavailable, match=f"the TrainingJobs of {kube_jobs.namespace} are not read yet"):
            ask()


def test_a_status_of_a_real_run_comes_back(store: KubeStore, kube_jobs: KubeJobs) -> None:
    team = kube_jobs.namespace
    made = store.create(small_job(namespace=team), by="ann")
    status = in_phase(Phase.RUNNING).model_copy(update={"conditions": [said(1)], "attempt_count": 3})
    store.set_status(made.uid, status)
    assert store.get(team, "mini").status == status
    assert store.documents(Query()).documents == (document(store.get(team, "mini")),)
