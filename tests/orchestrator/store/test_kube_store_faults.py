"""What becomes of reads and writes when the watch is late or away, answers are lost, and others are quicker."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from support.kube_jobs import KubeJobs
from support.kube_objects import until
from support.kube_proxy import Call, KubeProxy, Line, Say
from support.kube_store import serving
from support.store import in_phase, small_document, small_job, suspended

from orchestrator.errors import Conflict, NotFound, Unavailable
from orchestrator.kube.again import Patience
from orchestrator.kube.client import Kube
from orchestrator.kube.lease import LostLease
from orchestrator.kube.writes import Writer
from orchestrator.status import JobStatus, Phase
from orchestrator.store.base import Query, StoredJob, Wish
from orchestrator.store.kube import KubeStore

pytestmark = pytest.mark.kube
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def store(through: Kube, kube_jobs: KubeJobs) -> Iterator[KubeStore]:
    """Of the namespace of `kube_jobs`, through the proxy."""
    with serving(through, [kube_jobs.namespace]) as made:
        yield made


@pytest.fixture
def team(kube_jobs: KubeJobs) -> str:
    return kube_jobs.namespace


class Late:
    """A watch whose events wait until they are let go."""

    def __init__(self, proxy: KubeProxy) -> None:
        self._proxy, self.held, self.lost = proxy, list[bytes](), False
        proxy.lines = self._line

    def _line(self, line: bytes) -> list[Line]:
        self.held.append(line)
        return []

    def let_go(self) -> None:
        """With the next event that comes."""
        held = self.held

        def all_of_them(line: bytes) -> list[Line]:
            out: list[Line] = [*held, line]
            held.clear()
            return out

        self._proxy.lines = all_of_them

    def lose(self) -> None:
        """The connection breaks, and a list follows."""
        self._proxy.lines = lambda line: [line]
        self._proxy.hang_up()


@pytest.fixture
def late(store: KubeStore, proxy: KubeProxy) -> Late:
    until(lambda: [call for call in proxy.calls if call.watch])
    return Late(proxy)


def told(store: KubeStore, kube_jobs: KubeJobs, name: str = "sign") -> None:
    """Until the watch has come so far."""
    kube_jobs.create(small_document(name))
    until(lambda: name in names(store))


def names(store: KubeStore) -> list[str]:
    return [job.name for job in store.list(Query()).jobs]


def seen(store: KubeStore, job: StoredJob) -> None:
    """Everywhere, and as it is."""
    assert store.get(job.namespace, job.name) == job == store.by_uid(job.uid)
    assert store.list(Query()).jobs[0] == job
    assert store.open_jobs()[0] == job


def resumed(wish: Wish) -> Wish:
    return replace(wish, resumed=wish.resumed + 1)


# ------------------------------------------------------------------ a watch that is late
def test_nobody_sees_a_state_from_before_his_own_change(
    store: KubeStore, late: Late, kube_jobs: KubeJobs, team: str
) -> None:
    made = store.create(small_job(namespace=team), by="ann")
    seen(store, made)
    changed = store.change(team, "mini", suspended)
    seen(store, changed)
    status = in_phase(Phase.SUSPENDED, observed=2)
    store.set_status(made.uid, status)
    now = store.get(team, "mini")
    assert (now.status, now.generation) == (status, 2)
    seen(store, now)
    shown: list[StoredJob] = []
    store.on_wish(lambda: shown.append(store.get(team, "mini")))
    late.let_go()
    told(store, kube_jobs)
    assert all(job == now for job in shown), "what came late is older"
    assert store.get(team, "mini") == now
    leaving = store.change(team, "mini", lambda wish: replace(wish, deleted_at=NOON))
    assert store.get(team, "mini") == leaving


def test_what_is_gone_does_not_come_back(store: KubeStore, late: Late, kube_jobs: KubeJobs, team: str) -> None:
    made = store.create(small_job(namespace=team), by="ann")
    store.change(team, "mini", suspended)
    store.remove(made.uid)
    again = store.create(small_job(namespace=team), by="bob")
    shown: set[str] = set()
    store.on_wish(lambda: shown.update(job.uid for job in store.list(Query()).jobs))
    late.let_go()
    told(store, kube_jobs)
    assert made.uid not in shown
    assert again.uid in shown
    assert store.by_uid(made.uid) is None
    assert store.get(team, "mini") == again


def test_a_job_of_ours_that_went_between_two_lists_is_gone(
    store: KubeStore, late: Late, kube_jobs: KubeJobs, team: str
) -> None:
    """No event ever tells of it, and no list shows it."""
    made = store.create(small_job(namespace=team), by="ann")
    kube_jobs.patch("mini", {"metadata": {"finalizers": None}})
    kube_jobs.delete("mini")
    assert names(store) == ["mini"]
    late.lose()
    until(lambda: names(store) == [])
    assert store.by_uid(made.uid) is None


def test_what_went_while_nobody_watched_is_gone(
    store: KubeStore, proxy: KubeProxy, kube_jobs: KubeJobs, team: str
) -> None:
    """The watch cannot go on, and the list that follows does not show it."""
    told(store, kube_jobs, "went")
    told(store, kube_jobs, "stays")
    proxy.plan = lambda call: Say(410, "Expired") if call.watch else "ok"
    proxy.hang_up()
    kube_jobs.delete("went")
    until(lambda: names(store) == ["stays"])


def test_a_list_from_before_a_create_does_not_hide_it(
    store: KubeStore, proxy: KubeProxy, kube_jobs: KubeJobs, team: str
) -> None:
    kube_jobs.create(small_document("first"))
    until(lambda: names(store) == ["first"])
    lists = [call for call in proxy.calls if call.method == "GET" and not call.watch]
    held = threading.Event()

    def plan(call: Call) -> Any:  # noqa: ANN401
        if call.method == "GET" and "limit" in call.query:
            held.set()
            return "hold"
        return Say(500) if call.watch and not held.is_set() else "ok"

    proxy.plan = plan
    proxy.hang_up()
    assert held.wait(120), f"{len(lists)} lists, and no more"
    until(lambda: [call for call in proxy.calls if "limit" in call.query][-1] not in lists)
    kube_jobs.delete("first")
    made = store.create(small_job("second", team), by="ann")
    proxy.plan = lambda call: "ok"
    shown: list[list[str]] = []
    store.on_wish(lambda: shown.append(names(store)))
    proxy.go_on.set()
    until(lambda: names(store) == ["second"])
    assert all("second" in one for one in shown)
    assert store.by_uid(made.uid) is not None


def test_what_people_do_is_seen_while_nobody_tells_of_it(
    store: KubeStore, proxy: KubeProxy, kube_jobs: KubeJobs, team: str
) -> None:
    told(store, kube_jobs, "mini")
    proxy.plan = lambda call: Say(403) if call.watch or "limit" in call.query else "ok"
    proxy.hang_up()
    until(lambda: [one for one in store._informers.values() if one.problem])
    kube_jobs.patch("mini", {"spec": {"suspend": True}})
    assert store.get(team, "mini").wish.job.spec.suspend
    kube_jobs.delete("mini")
    with pytest.raises(NotFound, match="there is no job"):
        store.get(team, "mini")
    assert names(store) == []


def test_a_server_that_was_set_back(store: KubeStore, proxy: KubeProxy, kube_jobs: KubeJobs, team: str) -> None:
    """Its state is older than what was seen, and counts; the proxy makes it so by saying smaller versions."""
    told(store, kube_jobs, "stays")
    told(store, kube_jobs, "lost")
    stays = kube_jobs.get("stays")
    stays["metadata"]["resourceVersion"] = "7"
    stays["metadata"]["annotations"] = {"fathom.dev/resumed": "4"}
    body = json.dumps({"kind": "TrainingJobList", "metadata": {"resourceVersion": "9"}, "items": [stays]}).encode()
    proxy.plan = lambda call: Say(200, body=body) if "limit" in call.query else Say(500) if call.watch else "ok"
    proxy.hang_up()
    until(lambda: names(store) == ["stays"])
    assert store.list(Query()).jobs[0].wish.resumed == 4


# ------------------------------------------------------------------ others are quicker
def writes(proxy: KubeProxy, fault: Any, count: int, path: str = "") -> None:  # noqa: ANN401
    """The first writes from here on meet this."""
    begun = len(proxy.calls)

    def plan(call: Call) -> Any:  # noqa: ANN401
        before = [one for one in proxy.calls[begun : call.number] if one.writes and one.path.endswith(path)]
        return fault if call.writes and call.path.endswith(path) and len(before) < count else "ok"

    proxy.plan = plan


def test_a_storm_of_conflicts_passes(store: KubeStore, proxy: KubeProxy, team: str) -> None:
    made = store.create(small_job(namespace=team), by="ann")
    for act in (
        lambda: store.change(team, "mini", suspended),
        lambda: store.set_status(made.uid, in_phase(Phase.RUNNING)),
        lambda: store.change(team, "mini", lambda wish: replace(wish, deleted_at=NOON, force=True)),
    ):
        writes(proxy, Say(409, "Conflict"), 7)
        assert act()
    writes(proxy, Say(409, "Conflict"), 7)
    store.remove(made.uid)
    assert names(store) == []


def test_a_storm_that_does_not_pass_is_told(store: KubeStore, proxy: KubeProxy, team: str) -> None:
    made = store.create(small_job(namespace=team), by="ann")
    writes(proxy, Say(409, "Conflict"), 1000)
    with pytest.raises(Conflict, match="was changed by others 20 times"):
        store.change(team, "mini", suspended)
    with pytest.raises(Conflict, match=f"the status of {made.uid} could not be written"):
        store.set_status(made.uid, in_phase(Phase.RUNNING))
    with pytest.raises(Conflict, match="could not be removed"):
        store.remove(made.uid)


def test_a_job_that_cannot_be_held_up_yet_waits(
    store: KubeStore, proxy: KubeProxy, kube_jobs: KubeJobs, caplog: pytest.LogCaptureFixture
) -> None:
    told(store, kube_jobs, "mini")
    writes(proxy, Say(409, "Conflict"), 2)
    assert store.open_jobs() == ()
    assert store.open_jobs() == ()
    assert [job.name for job in store.open_jobs()] == ["mini"]
    assert not caplog.records, "somebody was quicker: nothing is wrong"
    told(store, kube_jobs, "second")
    writes(proxy, Say(403), 1)
    assert [job.name for job in store.open_jobs()] == ["mini"]
    assert "second cannot be begun: " in caplog.text


def test_one_that_is_gone_before_its_deletion_was_answered(
    store: KubeStore, proxy: KubeProxy, kube_jobs: KubeJobs, team: str
) -> None:
    """The controller, or somebody who takes finalizers away, was quicker than we could look again."""
    made = store.create(small_job(namespace=team), by="ann")

    def plan(call: Call) -> Any:  # noqa: ANN401
        if call.method == "DELETE":
            kube_jobs.patch("mini", {"metadata": {"finalizers": None}})
        return "ok"

    proxy.plan = plan
    last = store.change(team, "mini", lambda wish: replace(wish, deleted_at=NOON))
    assert last == replace(made, wish=replace(made.wish, deleted_at=NOON), generation=2)
    assert store.by_uid(made.uid) is None


def test_writers_beside_each_other_lose_nothing(kube: Kube, kube_jobs: KubeJobs, team: str) -> None:
    """Two that change wishes, in two processes as it were, and a controller that writes the status all the time."""
    rounds, failures = 15, list[BaseException]()
    with serving(kube, [team]) as one, serving(kube, [team]) as two:
        made = one.create(small_job(namespace=team), by="ann")

        def resume(store: KubeStore) -> None:
            for _ in range(rounds):
                store.change(team, "mini", resumed)

        def tell() -> None:
            for number in range(2 * rounds):
                status = in_phase(Phase.RUNNING).model_copy(update={"attempt_count": number})
                assert one.set_status(made.uid, status)

        def kept(act: Callable[[], None]) -> None:
            try:
                act()
            except BaseException as error:  # noqa: BLE001 - it is looked at below
                failures.append(error)

        threads = [
            threading.Thread(target=kept, args=(act,)) for act in (lambda: resume(one), lambda: resume(two), tell)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        now = one.change(team, "mini", lambda wish: wish)
        assert (now.wish.resumed, now.status.attempt_count, now.generation) == (30, 29, 31)
        until(lambda: one.get(team, "mini") == two.get(team, "mini") == now)


# ------------------------------------------------------------------ answers that are lost
LOST = [
    "cut after",
    Say(500, after=True),
    Say(504, "Timeout", after=True),
    "cut before",
    Say(429, headers=(("Retry-After", "0"),)),
]


@pytest.mark.parametrize("fault", LOST, ids=str)
def test_twice_is_the_same_as_once(
    store: KubeStore,
    proxy: KubeProxy,
    kube_jobs: KubeJobs,
    team: str,
    fault: Any,  # noqa: ANN401
) -> None:
    writes(proxy, fault, 1)
    made = store.create(small_job(namespace=team), by="ann")
    writes(proxy, fault, 1)
    assert store.change(team, "mini", resumed, generation=1).wish.resumed == 1
    writes(proxy, fault, 1)
    assert store.change(team, "mini", resumed).wish.resumed == 2
    assert kube_jobs.get("mini")["metadata"]["annotations"]["fathom.dev/resumed"] == "2"
    writes(proxy, fault, 1)
    assert store.set_status(made.uid, in_phase(Phase.RUNNING))
    assert kube_jobs.get("mini")["status"]["phase"] == "Running"
    writes(proxy, fault, 1)
    assert store.change(team, "mini", lambda wish: replace(wish, deleted_at=NOON)).wish.deleted_at
    writes(proxy, fault, 1)
    store.remove(made.uid)
    assert kube_jobs.get("mini")["code"] == 404
    assert names(store) == []


def test_a_name_that_another_took_meanwhile_is_a_conflict(
    store: KubeStore, proxy: KubeProxy, kube_jobs: KubeJobs, team: str
) -> None:
    """The request was lost before the server had it, and somebody else was there before the second."""

    def plan(call: Call) -> Any:  # noqa: ANN401
        if call.writes and not [one for one in proxy.calls[: call.number] if one.writes]:
            kube_jobs.create(small_document())
            return "cut before"
        return "ok"

    proxy.plan = plan
    with pytest.raises(Conflict, match=r"exists already \(Pending, of "):
        store.create(small_job(namespace=team), by="ann")


def test_a_server_that_is_away_is_told(store: KubeStore, proxy: KubeProxy, kube_jobs: KubeJobs, team: str) -> None:
    made = store.create(small_job(namespace=team), by="ann")
    kube_jobs.create(small_document("person"))
    until(lambda: len(names(store)) == 2)
    proxy.leave()
    acts: list[Callable[[], object]] = [
        lambda: store.create(small_job("two", team), by="ann"),
        lambda: store.change(team, "mini", suspended),
        lambda: store.set_status(made.uid, in_phase(Phase.RUNNING)),
        lambda: store.remove(made.uid),
    ]
    for act in acts:
        with pytest.raises(Unavailable):
            act()
    assert sorted(names(store)) == ["mini", "person"], "what is known can be read"
    assert [job.name for job in store.open_jobs()] == ["mini"], "what runs is looked after"


def test_a_server_that_does_not_answer_is_not_asked_for_each_job(
    store: KubeStore, proxy: KubeProxy, kube_jobs: KubeJobs, team: str
) -> None:
    """The controller has a status to write for each of its jobs, and others things to do."""
    jobs = [store.create(small_job(f"j{number}", team), by="ann") for number in range(4)]
    begun = len(proxy.calls)
    proxy.plan = lambda call: "cut before" if call.writes else "ok"
    for job in jobs:
        with pytest.raises(Unavailable):
            store.set_status(job.uid, in_phase(Phase.RUNNING))
    assert {call.path.split("/")[-2] for call in proxy.calls[begun:] if call.writes} == {"j0"}
    kube_jobs.create(small_document("person"))
    until(lambda: len(names(store)) == 5)
    assert [job.uid for job in store.open_jobs()] == [job.uid for job in jobs]
    proxy.plan = lambda call: "ok"

    def written() -> bool:
        try:
            return store.set_status(jobs[3].uid, in_phase(Phase.RUNNING))
        except Unavailable:
            return False

    until(written)
    until(lambda: len(store.open_jobs()) == 5)


def test_who_does_not_lead_writes_nothing(kube: Kube, kube_jobs: KubeJobs, team: str) -> None:
    class Lost:
        def require(self) -> float:
            raise LostLease("another leads")

    with serving(kube, [team]) as store:
        made = store.create(small_job(namespace=team), by="ann")
        kube_jobs.create(small_document("person"))
        until(lambda: len(names(store)) == 2)
        before = kube_jobs.get("mini"), kube_jobs.get("person")
        store._writer = store._intake._writer = Writer(kube, Lost(), patience=Patience(attempts=1))
        for act in (
            lambda: store.create(small_job("two", team), by="ann"),
            lambda: store.change(team, "mini", suspended),
            lambda: store.set_status(made.uid, in_phase(Phase.RUNNING)),
            lambda: store.remove(made.uid),
            store.open_jobs,
        ):
            with pytest.raises(LostLease):
                act()
        assert (kube_jobs.get("mini"), kube_jobs.get("person")) == before
        assert kube_jobs.get("two")["code"] == 404
        assert store.get(team, "mini").status == JobStatus()
