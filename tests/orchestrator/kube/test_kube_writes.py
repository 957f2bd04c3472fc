"""Twice is the same as once, and a stale read never wins: against a real API server, with answers that are lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.kube_jobs import KubeJobs
from support.kube_objects import CONFIG_MAPS, config_map, owned
from support.kube_proxy import KubeProxy, Say
from support.store import small_document

from orchestrator.errors import Conflict, Forbidden, NotFound, RateLimited, Unavailable
from orchestrator.kube.again import Anybody, Patience, again
from orchestrator.kube.client import Kube
from orchestrator.kube.lease import LostLease
from orchestrator.kube.merge import merge_patch
from orchestrator.kube.notices import Notice, Notices
from orchestrator.kube.problems import Gone, TryLater
from orchestrator.kube.resources import EVENTS, TRAINING_JOBS, Json
from orchestrator.kube.writes import HASH_LABEL, MANAGER, Writer

kube_server = pytest.mark.kube
QUICK = Patience(first=0.01, longest=0.02, total=60.0)
OWNER, OTHER = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
# what may become of a write on its way
FAULTS = [
    "cut before",
    "cut after",
    Say(500),
    Say(500, after=True),
    Say(503, headers=(("Retry-After", "0"),)),
    Say(429, headers=(("Retry-After", "0"),)),
    Say(504, "Timeout", after=True),
    Say(200, after=True, body=b"half an ans"),
]


class Holder:
    """A lease that can be lost at the n-th question."""

    def __init__(self, writes: int = 1_000_000) -> None:
        self.writes, self.asked = writes, 0

    def require(self) -> float:
        self.asked += 1
        if self.asked > self.writes:
            raise LostLease("another leads")
        return 120.0


def writer(kube: Kube, holder: Any = None, **more: Any) -> Writer:  # noqa: ANN401
    return Writer(kube, holder or Holder(), patience=QUICK, **more)


def first_writes(proxy: KubeProxy, fault: Any, count: int = 1) -> None:  # noqa: ANN401
    """The first writes from here on meet this."""
    before = sum(call.writes for call in proxy.calls)
    proxy.plan = lambda call: (
        fault if call.writes and sum(one.writes for one in proxy.calls) <= before + count else "ok"
    )


def names(kube: Kube, namespace: str) -> list[str]:
    return [one["metadata"]["name"] for one in kube.get(CONFIG_MAPS.at(namespace))["items"]]


# ------------------------------------------------------------------ create
@kube_server
@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("times", [1, 3])
def test_a_create_ends_in_one_object(
    through: Kube,
    kube: Kube,
    proxy: KubeProxy,
    namespace: str,
    fault: Any,  # noqa: ANN401
    times: int,
) -> None:
    target, body = CONFIG_MAPS.at(namespace, "one"), owned(namespace, "one", OWNER)
    first_writes(proxy, fault, times)
    made = writer(through).create_if_absent(target, body)
    assert names(kube, namespace) == ["one"]
    assert made["metadata"]["uid"] == kube.get(target)["metadata"]["uid"]
    assert writer(through).create_if_absent(target, body) == kube.get(target), "and again"


@kube_server
@pytest.mark.parametrize(
    ("there", "words"),
    [
        (("x", OTHER, "a1"), f"of owner {OTHER}; ours is {OWNER}"),
        (("x", OWNER, "b2"), "with content b2; ours is a1"),
        (None, f"of owner nobody; ours is {OWNER}"),
    ],
)
def test_what_is_anothers_is_left_alone(kube: Kube, namespace: str, there: Any, words: str) -> None:  # noqa: ANN401
    target = CONFIG_MAPS.at(namespace, "x")
    found = kube.create(target, owned(namespace, *there) if there else config_map(namespace, "x"))
    with pytest.raises(Conflict, match=words):
        writer(kube).create_if_absent(target, owned(namespace, "x", OWNER))
    assert kube.get(target) == found


@kube_server
def test_what_is_on_its_way_out_is_said(kube: Kube, namespace: str) -> None:
    """The job was deleted and made again under its name, and what belonged to the first is still ending."""
    target, body = CONFIG_MAPS.at(namespace, "x"), owned(namespace, "x", OTHER)
    body["metadata"]["finalizers"] = ["fathom.dev/test"]
    kube.create(target, body)
    kube.delete(target, {})
    with pytest.raises(Conflict, match="and is being deleted"):
        writer(kube).create_if_absent(target, owned(namespace, "x", OWNER))
    kube.patch(target, {"metadata": {"finalizers": None}}, "merge")
    assert writer(kube).create_if_absent(target, owned(namespace, "x", OWNER))["metadata"]["uid"]


@kube_server
def test_two_who_create_at_once_make_one(kube: Kube, namespace: str) -> None:
    target, body = CONFIG_MAPS.at(namespace, "x"), owned(namespace, "x", OWNER)
    uids: list[str] = []
    threads = [
        threading.Thread(target=lambda: uids.append(writer(kube).create_if_absent(target, body)["metadata"]["uid"]))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(uids) == 6
    assert len(set(uids)) == 1


def test_an_object_without_owner_or_hash_is_a_defect() -> None:
    for missing in ("ownerReferences", "labels"):
        body = owned("ns", "x", OWNER)
        del body["metadata"][missing]
        with pytest.raises(AssertionError, match=HASH_LABEL):
            Writer(None, Holder()).create_if_absent(CONFIG_MAPS.at("ns", "x"), body)  # type: ignore[arg-type]


# ------------------------------------------------------------------ apply
@kube_server
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_an_apply_ends_in_one_object(through: Kube, kube: Kube, proxy: KubeProxy, namespace: str, fault: Any) -> None:  # noqa: ANN401
    target = CONFIG_MAPS.at(namespace, "one")
    first_writes(proxy, fault, 2)
    made = writer(through).apply(target, config_map(namespace, "one", a="1"))
    found = kube.get(target)
    assert made == found
    assert [one["manager"] for one in found["metadata"]["managedFields"]] == [MANAGER]
    again_made = writer(through).apply(target, config_map(namespace, "one", a="1"))
    assert again_made["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"], "nothing is written"


@kube_server
def test_fields_of_others_stay_and_a_conflict_names_them(kube: Kube, namespace: str) -> None:
    target = CONFIG_MAPS.at(namespace, "x")
    others = Writer(kube, Anybody(), manager="somebody")
    others.apply(target, {**config_map(namespace, "x", theirs="1", both="1")})
    with pytest.raises(Conflict, match=r'apply ConfigMap .*conflict with "somebody".*\.data\.both'):
        writer(kube).apply(target, config_map(namespace, "x", ours="1", both="2"))
    writer(kube).apply(target, config_map(namespace, "x", ours="1", both="2"), force=True)
    assert kube.get(target)["data"] == {"theirs": "1", "ours": "1", "both": "2"}
    writer(kube).apply(target, config_map(namespace, "x", ours="2"), force=True)
    assert kube.get(target)["data"] == {"theirs": "1", "ours": "2"}, "what we no longer name goes"


@kube_server
def test_an_apply_does_not_hit_another_of_that_name(kube: Kube, namespace: str) -> None:
    target, body = CONFIG_MAPS.at(namespace, "x"), config_map(namespace, "x", a="1")
    kube.create(target, config_map(namespace, "x"))
    body["metadata"]["uid"] = OTHER
    with pytest.raises(Conflict, match=f"another has that name now, not {OTHER}"):
        writer(kube).apply(target, body, force=True)
    assert "data" not in kube.get(target)
    body["metadata"]["name"] = "y"
    with pytest.raises(Conflict, match="uid mismatch"):
        writer(kube).apply(CONFIG_MAPS.at(namespace, "y"), body, force=True)


# ------------------------------------------------------------------ status
@kube_server
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_status_is_written_once_or_read_again(
    through: Kube,
    kube: Kube,
    proxy: KubeProxy,
    kube_jobs: KubeJobs,
    fault: Any,  # noqa: ANN401
) -> None:
    """When the answer was lost, the repetition is stale: whoever reads again finds that nothing is to be done."""
    kube_jobs.create(small_document("a"))
    target = TRAINING_JOBS.at(kube_jobs.namespace, "a")
    wanted = {"phase": "Queued"}
    first_writes(proxy, fault)
    for _ in range(3):
        try:
            found = writer(through).set_status(target, kube.get(target), wanted)
        except Conflict:
            continue
        break
    assert found["status"]["phase"] == "Queued"
    calls = len(proxy.calls)
    same = {key: found["status"][key] for key in found["status"]}
    assert writer(through).set_status(target, found, same) is found
    assert len(proxy.calls) == calls, "nothing is sent"


@kube_server
def test_a_stale_read_never_writes(kube: Kube, kube_jobs: KubeJobs) -> None:
    kube_jobs.create(small_document("a"))
    target = TRAINING_JOBS.at(kube_jobs.namespace, "a")
    old = kube.get(target)
    kube_jobs.accept("a", phase="Running")
    with pytest.raises(Conflict, match=r"patch TrainingJob .*\(status\).*modified"):
        writer(kube).set_status(target, old, {"phase": "Queued"})
    fresh = kube.get(target)
    assert fresh["status"]["phase"] == "Running"
    # the same name, another object
    kube.delete(target, {})
    kube_jobs.create(small_document("a"))
    with pytest.raises(Conflict, match="modified"):
        writer(kube).set_status(target, fresh, {"phase": "Queued"})
    assert kube.get(target).get("status", {}).get("phase") != "Queued"


@kube_server
def test_a_status_that_loses_fields(kube: Kube, kube_jobs: KubeJobs) -> None:
    kube_jobs.create(small_document("a"))
    target = TRAINING_JOBS.at(kube_jobs.namespace, "a")
    found = kube_jobs.accept("a", mlflow={"experimentId": "1", "runId": "2"})
    assert found["status"]["mlflow"]
    left = {key: value for key, value in found["status"].items() if key != "mlflow"}
    lost = writer(kube).set_status(target, found, left)
    assert lost["status"] == left
    # a default that is left out comes back, and that is no change
    version = writer(kube).set_status(target, lost, {**left, "phase": None})["metadata"]["resourceVersion"]
    assert version == lost["metadata"]["resourceVersion"]


LEAVES = st.none() | st.booleans() | st.integers(0, 2) | st.lists(st.integers(0, 1), max_size=2)
FLAT = st.dictionaries(st.sampled_from("abc"), LEAVES, max_size=3)
JSON_OBJECTS = st.dictionaries(st.sampled_from("abc"), LEAVES | FLAT, max_size=3)


def _merged(found: Json, patch: Json) -> Json:
    """RFC 7386, as it is written there."""
    made = dict(found)
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        elif isinstance(value, dict):
            made[key] = _merged(made[key] if isinstance(made.get(key), dict) else {}, value)
        else:
            made[key] = value
    return made


def _known(value: Any) -> Any:  # noqa: ANN401
    if not isinstance(value, dict):
        return value
    return {key: _known(inner) for key, inner in value.items() if inner is not None}


@given(found=JSON_OBJECTS, wanted=JSON_OBJECTS)
def test_the_patch_makes_one_of_the_other(found: Json, wanted: Json) -> None:
    found = _known(found)
    patch = merge_patch(found, wanted)
    assert _merged(found, patch) == _known(wanted)
    assert merge_patch(_merged(found, patch), wanted) == {}, "and then there is nothing to do"


# ------------------------------------------------------------------ delete
@kube_server
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_delete_ends_it_whatever_happens(
    through: Kube,
    kube: Kube,
    proxy: KubeProxy,
    namespace: str,
    fault: Any,  # noqa: ANN401
) -> None:
    target = CONFIG_MAPS.at(namespace, "x")
    uid = kube.create(target, config_map(namespace, "x"))["metadata"]["uid"]
    first_writes(proxy, fault, 2)
    writer(through).delete(target, uid)
    with pytest.raises(NotFound):
        kube.get(target)
    assert writer(through).delete(target, uid) is False


@kube_server
def test_another_of_that_name_is_not_deleted(kube: Kube, namespace: str) -> None:
    target = CONFIG_MAPS.at(namespace, "x")
    made = kube.create(target, config_map(namespace, "x"))
    assert writer(kube).delete(target, OTHER) is False
    assert kube.get(target) == made
    assert writer(kube).delete(target, made["metadata"]["uid"]) is True


@kube_server
def test_how_children_end_is_the_callers_choice(kube: Kube, namespace: str) -> None:
    target = CONFIG_MAPS.at(namespace, "x")
    made = kube.create(target, config_map(namespace, "x"))
    writer(kube).delete(target, made["metadata"]["uid"], propagation="Foreground")
    assert kube.get(target)["metadata"]["finalizers"] == ["foregroundDeletion"], "nobody collects here"


# ------------------------------------------------------------------ the lease, and repetitions
@kube_server
def test_every_write_asks_the_lease_first(through: Kube, proxy: KubeProxy, kube: Kube, namespace: str) -> None:
    target = CONFIG_MAPS.at(namespace, "x")
    found = kube.create(target, config_map(namespace, "x"))
    nobody = writer(through, Holder(0))
    tries: list[Callable[[], object]] = [
        lambda: nobody.create_if_absent(target, owned(namespace, "x", OWNER)),
        lambda: nobody.apply(target, config_map(namespace, "x")),
        lambda: nobody.set_status(target, found, {"a": 1}),
        lambda: nobody.delete(target, found["metadata"]["uid"]),
        lambda: Notices(through, Holder(0), "pod-0").tell(Notice(found, "Told", "Tell", "a note")),
    ]
    for one in tries:
        with pytest.raises(LostLease):
            one()
    assert proxy.calls == []


@kube_server
def test_a_repetition_asks_the_lease_too(through: Kube, proxy: KubeProxy, namespace: str) -> None:
    proxy.plan = lambda call: Say(500)
    with pytest.raises(LostLease):
        writer(through, Holder(2)).apply(CONFIG_MAPS.at(namespace, "x"), config_map(namespace, "x"))
    assert len(proxy.calls) == 2


@kube_server
def test_a_write_takes_no_longer_than_the_lease_allows(through: Kube, proxy: KubeProxy, namespace: str) -> None:
    class Short:
        def require(self) -> float:
            return 0.3

    proxy.plan = lambda call: "hold"
    brief, began = Writer(through, Short(), patience=Patience(attempts=1)), time.monotonic()
    with pytest.raises(Unavailable, match="no answer"):
        brief.apply(CONFIG_MAPS.at(namespace, "x"), config_map(namespace, "x"))
    assert time.monotonic() - began < through.timeouts.read / 2


class Server:
    """Answers with these errors, one after the other."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.waited, self.sent = list(errors), [], 0
        self.waited: list[float]

    def send(self, seconds: float) -> str:
        self.sent += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def ask(self, patience: Patience) -> str:
        return again(self.send, Anybody(), patience, self.waited.append)


def test_what_is_worth_it_is_sent_again_after_longer_and_longer() -> None:
    server = Server(*[Unavailable("x")] * 4)
    assert server.ask(Patience(attempts=5, first=1.0, longest=4.0)) == "done"
    assert [low <= one <= 3 * low for low, one in zip((0.5, 1, 2, 2), server.waited, strict=True)] == [True] * 4


@pytest.mark.parametrize("error", [RateLimited("x", 3.0), TryLater("x", 3.0)])
def test_the_server_says_how_long(error: Exception) -> None:
    server = Server(error)
    assert server.ask(Patience(first=0.01)) == "done"
    assert server.waited == [3.0]
    late = Server(error)
    with pytest.raises(type(error)):
        late.ask(Patience(total=2.0))
    assert late.waited == [], "it is not waited for when it would be too late"


@pytest.mark.parametrize(
    "error",
    [Conflict("x"), NotFound("x"), Forbidden("x"), Gone("x"), LostLease("x")],
    ids=lambda one: type(one).__name__,
)
def test_an_answer_is_an_answer(error: Exception) -> None:
    server = Server(error)
    with pytest.raises(type(error)):
        server.ask(Patience())
    assert server.sent == 1


def test_patience_ends() -> None:
    server = Server(*[Unavailable("x")] * 9)
    with pytest.raises(Unavailable):
        server.ask(Patience(attempts=4))
    assert server.sent == 4


# ------------------------------------------------------------------ events
class Told:
    """Notices with a clock of the test."""

    def __init__(self, kube: Kube) -> None:
        self.now = 0.0
        self.kube = kube
        self.notices = Notices(kube, Holder(), "pod-0", clock=lambda: self.now)

    def events(self, namespace: str) -> list[Json]:
        return list(self.kube.get(EVENTS.at(namespace))["items"])


@kube_server
def test_the_same_words_are_one_event_with_a_count(kube: Kube, kube_jobs: KubeJobs) -> None:
    job = kube_jobs.create(small_document("a"))
    told = Told(kube)
    for second in (0, 10, 20, 61, 62):
        told.now = second
        told.notices.tell(Notice(job, "NoGpuFree", "Queue", "8 GPUs are asked for, 0 are free", "Warning"))
    [event] = told.events(kube_jobs.namespace)
    assert event["series"]["count"] == 4, "two more of the first minute, one after it; the last is yet to be told"
    assert event["regarding"]["uid"] == job["metadata"]["uid"]
    assert (event["type"], event["reason"], event["action"]) == ("Warning", "NoGpuFree", "Queue")
    # another replica goes on counting
    other = Told(kube)
    other.notices.tell(Notice(job, "NoGpuFree", "Queue", "8 GPUs are asked for, 0 are free", "Warning"))
    assert other.events(kube_jobs.namespace)[0]["series"]["count"] == 5
    other.notices.tell(Notice(job, "NoGpuFree", "Queue", "8 GPUs are asked for, 4 are free", "Warning"))
    assert len(other.events(kube_jobs.namespace)) == 2


@kube_server
def test_an_event_is_never_too_long(kube: Kube, kube_jobs: KubeJobs) -> None:
    job = kube_jobs.create(small_document("a"))
    told = Told(kube)
    told.notices.tell(Notice(job, "R" * 500, "A" * 500, "ä" * 5000))
    [event] = told.events(kube_jobs.namespace)
    assert event["note"].endswith("ä...")
    assert len(event["note"].encode()) <= 1024


@kube_server
def test_an_event_that_cannot_be_written_is_forgotten(
    through: Kube, proxy: KubeProxy, namespace: str, kube: Kube, caplog: pytest.LogCaptureFixture
) -> None:
    found = kube.create(CONFIG_MAPS.at(namespace, "x"), config_map(namespace, "x"))
    proxy.plan = lambda call: Say(500)
    Notices(through, Holder(), "pod-0").tell(Notice(found, "Told", "Tell", "a note"))
    assert "event Told" in caplog.text
    assert len(proxy.calls) == 1


@kube_server
def test_what_is_remembered_of_events_is_bounded(kube: Kube, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.kube.notices._KEPT", 3)
    found = kube.create(CONFIG_MAPS.at(namespace, "x"), config_map(namespace, "x"))
    told = Told(kube)
    for number in range(5):
        told.notices.tell(Notice(found, "Told", "Tell", f"note {number}"))
    assert len(told.notices._told) == 3
    assert len(told.events(namespace)) == 5


@kube_server
@pytest.mark.parametrize("fault", FAULTS)
def test_an_annotation_goes_and_others_stay(
    kube: Kube, through: Kube, proxy: KubeProxy, namespace: str, fault: Any,  # noqa: ANN401
) -> None:  # fmt: skip
    body = config_map(namespace, "a", by="hand")
    body["metadata"]["annotations"] = {"gate": "closed", "other": "kept"}
    target = CONFIG_MAPS.at(namespace, "a")
    uid = kube.create(target, body)["metadata"]["uid"]
    proxy.plan = lambda call: fault if call.writes and call.number == 0 else "ok"
    assert writer(through).annotate(target, uid, {"gate": None, "new": "there"})
    found = kube.get(target)
    assert (found["metadata"]["annotations"], found["data"]) == ({"new": "there", "other": "kept"}, {"by": "hand"})


@kube_server
def test_another_of_that_name_is_not_annotated(kube: Kube, namespace: str) -> None:
    target = CONFIG_MAPS.at(namespace, "a")
    assert not writer(kube).annotate(target, OTHER, {"gate": None})
    kube.create(target, config_map(namespace, "a"))
    assert not writer(kube).annotate(target, OTHER, {"gate": "open"})
    assert "annotations" not in kube.get(target)["metadata"]
