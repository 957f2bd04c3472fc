"""The cache is what the server has, whatever becomes of lists, watches and connections."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from support.apiserver import ApiServer
from support.kube_jobs import KubeJobs
from support.kube_objects import CONFIG_MAPS, World, until, versions
from support.kube_proxy import Call, Fault, KubeProxy, Line, Say
from support.store import small_document

from orchestrator.kube.client import Kube, Timeouts
from orchestrator.kube.resources import TRAINING_JOBS, Target
from orchestrator.kube.stream import Stream
from orchestrator.kube.watch import Informer, Rhythm

pytestmark = pytest.mark.kube
QUICK = Rhythm(page=2, first_wait=0.01, longest_wait=0.05)
Start = Callable[..., Informer]


@pytest.fixture
def start(through: Kube, namespace: str) -> Iterator[Start]:
    """Informers of ConfigMaps in the test's namespace, through the proxy."""
    made: list[Informer] = []

    def begin(rhythm: Rhythm = QUICK, **more: str) -> Informer:
        informer = Informer(through, CONFIG_MAPS.at(namespace), rhythm=rhythm, **more)
        made.append(informer)
        informer.start()
        return informer

    yield begin
    for informer in made:
        informer.stop()


@pytest.fixture
def world(kube: Kube, namespace: str) -> World:
    return World(kube, namespace)


def converges(informer: Informer, world: World) -> None:
    until(
        lambda: versions(informer.cache.all()) == world.truth(),
        lambda: f"cached {versions(informer.cache.all())}, there is {world.truth()}",
    )


def lists(proxy: KubeProxy) -> list[Call]:
    return [call for call in proxy.calls if call.method == "GET" and not call.watch]


def watches(proxy: KubeProxy) -> list[Call]:
    return [call for call in proxy.calls if call.watch]


def listed_again(proxy: KubeProxy) -> None:
    """The connection breaks, and what the watch would go on from is too old."""
    before = len(lists(proxy))
    proxy.plan = lambda call: Say(410, "Expired") if call.watch and len(lists(proxy)) == before else "ok"
    proxy.hang_up()


# ------------------------------------------------------------------ in good weather
def test_what_is_there_and_what_happens(start: Start, world: World, proxy: KubeProxy) -> None:
    for number in range(5):
        world.make(f"m{number}")
    informer = start()
    assert informer.synced.wait(120)
    assert len(informer.cache) == 5
    assert len(lists(proxy)) == 3, "two a page"
    told: list[str] = []
    informer.on_change(told.append)
    until(lambda: watches(proxy))
    world.make("new", a="1")
    until(lambda: f"{world.namespace}/new" in told)
    world.change("new", a="2")
    until(lambda: (informer.cache.get(f"{world.namespace}/new") or {}).get("data") == {"a": "2"})
    world.remove("new")
    until(lambda: informer.cache.get(f"{world.namespace}/new") is None)
    converges(informer, world)
    until(lambda: told.count(f"{world.namespace}/new") == 3, lambda: str(told))
    assert set(told) == {f"{world.namespace}/new"}
    assert len(lists(proxy)) == 3, "a watch that works needs no list"
    assert "managedFields" not in informer.cache.all()[0]["metadata"]
    assert informer.cache.all("another") == []


def test_who_is_told_knows_how_far_the_cache_is(start: Start, world: World) -> None:
    """Of a list, too: what is not in it was not there at its version."""
    world.make("a")
    informer, told = start(), list[tuple[int, int]]()

    def handler(key: str) -> None:
        found = informer.cache.get(key)
        told.append((informer.reached, int(found["metadata"]["resourceVersion"]) if found else 0))

    informer.on_change(handler)
    assert informer.synced.wait(120)
    world.change("a", x="1")
    world.remove("a")
    until(lambda: told and told[-1][1] == 0)
    assert all(reached >= version > 0 for reached, version in told[:-1])
    assert told[-1][0] > told[-2][0]


def test_custom_objects_as_they_are(through: Kube, kube_jobs: KubeJobs) -> None:
    kube_jobs.create(small_document("a"))
    informer = Informer(through, TRAINING_JOBS)
    informer.start()
    assert informer.synced.wait(120)
    key = f"{kube_jobs.namespace}/a"
    found = informer.cache.get(key)
    assert found is not None
    assert found["spec"] == kube_jobs.get("a")["spec"]
    kube_jobs.accept("a", phase="Queued")
    until(lambda: (informer.cache.get(key) or {}).get("status", {}).get("phase") == "Queued")
    informer.stop()


def test_only_what_the_selector_names(start: Start, world: World) -> None:
    world.make("mine")
    world.kube.create(
        CONFIG_MAPS.at(world.namespace, "other"),
        {"metadata": {"name": "other", "labels": {"of": "else"}}},
    )
    informer = start(labels="of=test")
    assert informer.synced.wait(120)
    assert set(versions(informer.cache.all())) == {"mine"}
    world.kube.patch(CONFIG_MAPS.at(world.namespace, "mine"), {"metadata": {"labels": {"of": "else"}}}, "merge")
    until(lambda: len(informer.cache) == 0)


def test_a_watch_that_the_server_ends_goes_on(start: Start, world: World, proxy: KubeProxy) -> None:
    informer = start(replace(QUICK, watch=2.0))
    until(lambda: len(watches(proxy)) >= 2)
    assert len(lists(proxy)) == 1
    world.make("late")
    converges(informer, world)


def test_lists_come_from_time_to_time(start: Start, proxy: KubeProxy) -> None:
    start(replace(QUICK, relist=1.0))
    until(lambda: len(lists(proxy)) >= 2)


# ------------------------------------------------------------------ lost events
def test_each_event_lost_once(start: Start, world: World, proxy: KubeProxy) -> None:
    """Each of the events of a small story is dropped in a run of its own; the next list repairs it."""

    def story() -> None:
        world.make("a")
        world.change("a", x="1")
        world.make("b")
        world.remove("a")
        world.remove("b")
        world.make("c")

    for lost in range(6):
        seen: dict[int, int] = {}
        before = int(world.kube.get(CONFIG_MAPS.at(world.namespace))["metadata"]["resourceVersion"])

        def drop(line: bytes, seen: dict[int, int] = seen, lost: int = lost, before: int = before) -> list[Line]:
            """By its number, however often it is sent: a watch that goes on from before sends it once more."""
            event = json.loads(line)
            version = int(event["object"]["metadata"]["resourceVersion"])
            if event["type"] == "BOOKMARK" or version <= before:
                return [line]
            return [] if seen.setdefault(version, len(seen)) == lost else [line]

        proxy.calls.clear()
        proxy.lines, proxy.plan = drop, lambda call: "ok"
        informer = start()
        assert informer.synced.wait(120)
        until(lambda: watches(proxy))
        story()
        until(lambda seen=seen: len(seen) == 6)
        if lost >= 3:  # before that, a later event of the same object repairs it, too
            assert versions(informer.cache.all()) != world.truth()
            listed_again(proxy)
        converges(informer, world)
        informer.stop()
        proxy.hang_up()
        world.remove("c")


def test_a_deletion_that_was_missed_is_told_at_the_next_list(start: Start, world: World, proxy: KubeProxy) -> None:
    world.make("a")
    proxy.lines = lambda line: []
    informer = start(replace(QUICK, relist=1.0))
    assert informer.synced.wait(120)
    told: list[str] = []
    informer.on_change(told.append)
    until(lambda: watches(proxy))
    world.remove("a")
    until(lambda: told == [f"{world.namespace}/a"])
    assert len(informer.cache) == 0


# ------------------------------------------------------------------ bad answers
@pytest.mark.parametrize("how", ["status", "event"])
def test_a_state_that_is_too_old_is_listed_anew(start: Start, world: World, proxy: KubeProxy, how: str) -> None:
    world.make("a")
    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
    expired = b"%s\n" % json.dumps({"type": "ERROR", "object": gone}).encode()

    def first_watch(call: Call) -> Fault:
        if how == "status" and call.watch and len(watches(proxy)) == 1:
            return Say(410, "Expired")
        if how == "event" and call.watch and len(watches(proxy)) == 1:
            return Say(200, body=expired)
        return "ok"

    proxy.plan = first_watch
    informer = start()
    until(lambda: len(watches(proxy)) >= 2)
    assert len(lists(proxy)) == 2
    world.make("b")
    converges(informer, world)


@pytest.mark.parametrize(
    "bad",
    [
        b'{"type": "ADDED", "object": {"meta',
        b'{"type": "ADDED"}\n',
        b'{"type": "ADDED", "object": {"metadata": {"resourceVersion": "1"}}}\n',
        b'{"type": "WHAT", "object": {"metadata": {"name": "x", "resourceVersion": "1"}}}\n',
        b'{"type": "ERROR", "object": {"code": 500, "message": "ill"}}\n',
        b'{"type": "ERROR", "object": null}\n',
        b"[]\n",
        b"no json\n",
        b"\xff\xfe\n",
        b"",
    ],
)
def test_whatever_a_watch_says(start: Start, world: World, proxy: KubeProxy, bad: bytes) -> None:
    """Half a line, lines that are no events, nothing: the first two watches say that; the cache is right in the end."""
    world.make("a")
    proxy.plan = lambda call: Say(200, body=bad) if call.watch and len(watches(proxy)) <= 2 else "ok"
    informer = start()
    until(lambda: len(watches(proxy)) >= 3)
    world.make("b")
    converges(informer, world)
    assert set(versions(informer.cache.all())) == {"a", "b"}


def test_half_a_line_and_a_cut(start: Start, world: World, proxy: KubeProxy) -> None:
    torn: list[bytes] = []

    def tear(line: bytes) -> list[Line]:
        if json.loads(line)["type"] == "BOOKMARK" or torn:
            return [line]
        torn.append(line)
        return [line[: len(line) // 2], "cut"]

    proxy.lines = tear
    informer = start()
    until(lambda: watches(proxy))
    world.make("a")
    until(lambda: torn)
    converges(informer, world)
    assert len(lists(proxy)) == 1, "the watch goes on from the last whole event"


@pytest.mark.parametrize("status", [429, 500, 503, 409, 404, 403, 401])
def test_refusals_pass(start: Start, world: World, proxy: KubeProxy, status: int) -> None:
    world.make("a")
    proxy.plan = lambda call: Say(status, headers=(("Retry-After", "0"),)) if call.number < 4 else "ok"
    informer = start()
    assert informer.synced.wait(120)
    converges(informer, world)


def test_refusals_are_not_answered_by_a_storm(start: Start, proxy: KubeProxy) -> None:
    """Expired at every watch: lists and watches become rarer."""
    proxy.plan = lambda call: Say(410, "Expired") if call.watch else "ok"
    start(replace(QUICK, first_wait=0.4, longest_wait=60.0))
    until(lambda: len(watches(proxy)) >= 3)
    began, before = time.monotonic(), len(watches(proxy))
    until(lambda: time.monotonic() - began > 1.0)
    assert len(watches(proxy)) - before <= 2


def test_a_list_from_before_is_asked_for_again(start: Start, world: World, proxy: KubeProxy) -> None:
    """A stale cache on the way: what is gone does not come back."""
    world.make("a")
    stale = json.dumps(world.kube.get(CONFIG_MAPS.at(world.namespace))).encode()
    world.remove("a")
    world.make("b")
    proxy.plan = lambda call: Say(200, body=stale) if not call.watch and 2 <= len(lists(proxy)) <= 3 else "ok"
    informer = start(replace(QUICK, relist=1.0))
    assert informer.synced.wait(120)
    told: list[str] = []
    informer.on_change(told.append)
    until(lambda: len(lists(proxy)) >= 4)
    converges(informer, world)
    assert told == []


def test_a_server_restored_from_a_backup_is_believed_in_the_end(start: Start, world: World, proxy: KubeProxy) -> None:
    world.make("a")
    stale = json.dumps(world.kube.get(CONFIG_MAPS.at(world.namespace))).encode()
    world.make("b")
    informer = start(replace(QUICK, relist=1.0))
    assert informer.synced.wait(120)
    proxy.plan = lambda call: Say(200, body=stale) if not call.watch else Say(500)
    until(lambda: set(versions(informer.cache.all())) == {"a"})


def test_a_list_that_is_none_empties_nothing(start: Start, world: World, proxy: KubeProxy) -> None:
    bodies = [b"{}", b'{"items": [], "metadata": {}}', b'{"items": {}, "metadata": {"resourceVersion": "1"}}']
    world.make("a")
    informer = start(replace(QUICK, relist=1.0))
    assert informer.synced.wait(120)
    told: list[str] = []
    informer.on_change(told.append)
    asked = len(lists(proxy))
    proxy.plan = lambda call: "ok" if call.watch else Say(200, body=bodies[len(lists(proxy)) % 3])
    until(lambda: len(lists(proxy)) > asked + 4)
    assert set(versions(informer.cache.all())) == {"a"}
    assert told == []


# ------------------------------------------------------------------ dead lines
def test_the_server_is_away_for_a_while(start: Start, world: World, proxy: KubeProxy) -> None:
    world.make("a")
    world.make("b")
    informer = start()
    assert informer.synced.wait(120)
    until(lambda: watches(proxy))
    proxy.leave()
    asked = len(proxy.calls)
    until(lambda: len(proxy.calls) > asked + 4)
    world.make("c")
    world.remove("a")
    world.change("b", x="1")
    assert set(versions(informer.cache.all())) == {"a", "b"}, "what was last known stays known"
    proxy.away = False
    converges(informer, world)


@pytest.mark.parametrize("process", ["kube-apiserver", "etcd"])
def test_the_server_hangs_for_a_while(
    api_server: ApiServer, kube: Kube, namespace: str, world: World, proxy: KubeProxy, process: str
) -> None:
    """Connections stay open and nobody answers."""
    world.make("a")
    kube.timeouts = Timeouts(1.0, 0.5)
    informer = Informer(kube, CONFIG_MAPS.at(namespace), rhythm=replace(QUICK, idle=0.3, relist=1.0))
    informer.start()
    assert informer.synced.wait(120)
    with api_server.paused(process):
        until(lambda: "no answer" in informer.problem)
        assert set(versions(informer.cache.all())) == {"a"}
    until(lambda: not informer.problem)
    kube.timeouts = Timeouts()
    world.make("b")
    converges(informer, world)
    informer.stop()


def test_a_kind_that_is_installed_later(api_server: ApiServer, kube: Kube, namespace: str) -> None:
    names = {"plural": "things", "singular": "thing", "kind": "Thing"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    spec = {
        "group": "test.fathom.dev",
        "names": names,
        "scope": "Namespaced",
        "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
    }
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.test.fathom.dev"},
        "spec": spec,
    }
    things = Target("test.fathom.dev", "v1", "things", "Thing")
    informer = Informer(kube, things, rhythm=QUICK)
    informer.start()
    until(lambda: "check namespace and name, and that the kind is installed" in informer.problem)
    assert informer.missing
    assert not informer.synced.is_set()
    api_server.install(definition)
    assert informer.synced.wait(120)
    assert not informer.missing
    body = {"apiVersion": "test.fathom.dev/v1", "kind": "Thing", "metadata": {"name": "a", "namespace": namespace}}
    kube.create(things.at(namespace, "a"), body)
    until(lambda: informer.cache.get(f"{namespace}/a"))
    assert informer.problem == ""
    informer.stop()


def test_an_idle_connection_is_made_anew(start: Start, world: World, proxy: KubeProxy) -> None:
    """A watch that is open and says nothing, not even a bookmark."""
    proxy.lines = lambda line: []
    informer = start(replace(QUICK, idle=0.4))
    until(lambda: len(watches(proxy)) >= 3)
    proxy.lines = lambda line: [line]
    world.make("a")
    converges(informer, world)


def test_crumbs_are_no_sign_of_life(start: Start, world: World, proxy: KubeProxy) -> None:
    """Bytes that never become a line do not keep a connection."""
    world.make("a")
    proxy.lines = lambda line: [b" "]
    informer = start(replace(QUICK, idle=0.4))
    assert informer.synced.wait(120)
    for number in range(1000):
        world.change("a", x=str(number))
        if len(watches(proxy)) >= 2:
            break
    assert len(watches(proxy)) >= 2


def test_silence_is_told(start: Start, proxy: KubeProxy) -> None:
    informer = start(replace(QUICK, idle=60))
    assert informer.synced.wait(120)
    proxy.leave()
    until(lambda: informer.silent_for() > 0.3)


# ------------------------------------------------------------------ its end
@pytest.mark.parametrize("where", ["list", "opening", "watch", "backoff"])
def test_it_ends_within_a_second(start: Start, world: World, proxy: KubeProxy, where: str) -> None:
    match where:
        case "list":
            proxy.plan = lambda call: "hold"
        case "opening":
            proxy.plan = lambda call: "hold" if call.watch else "ok"
        case "backoff":
            proxy.plan = lambda call: Say(500)
    informer = start(replace(QUICK, longest_wait=120, first_wait=120) if where == "backoff" else QUICK)
    until(lambda: len(watches(proxy)) if where in ("opening", "watch") else len(proxy.calls) > (where == "backoff"))
    told: list[str] = []
    informer.on_change(told.append)
    began = time.monotonic()
    informer.stop()
    assert time.monotonic() - began < 30, "a second, and what a busy machine takes"
    world.make("after")
    proxy.go_on.set()
    assert told == []
    assert not informer.synced.is_set() or where in ("opening", "watch")


def test_it_ends_when_it_was_stopped_while_a_watch_was_opened(through: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stopped it saw no stream to end."""
    begun: list[Informer] = []
    opened = threading.Event()
    open_watch = through.watch

    def late(target: Target, **more: Any) -> Stream:  # noqa: ANN401
        stream = open_watch(target, **more)
        stopping = threading.Thread(target=begun[0].stop, args=(0.0,))
        stopping.start()
        stopping.join()
        opened.set()
        return stream

    monkeypatch.setattr(through, "watch", late)
    before = set(threading.enumerate())
    informer = Informer(through, CONFIG_MAPS.at("default"), rhythm=QUICK)
    begun.append(informer)
    informer.start()
    assert opened.wait(120)
    until(lambda: not [one for one in set(threading.enumerate()) - before if one.name.startswith("configmaps")])


def test_a_handler_that_fails_keeps_nobody_from_hearing(
    start: Start, world: World, proxy: KubeProxy, caplog: pytest.LogCaptureFixture
) -> None:
    informer = start()
    told: list[str] = []

    def bad(key: str) -> None:
        raise RuntimeError("a defect")

    informer.on_change(bad)
    informer.on_change(told.append)
    until(lambda: watches(proxy))
    world.make("a")
    world.make("b")
    until(lambda: len(told) == 2)
    assert "a handler failed" in caplog.text
