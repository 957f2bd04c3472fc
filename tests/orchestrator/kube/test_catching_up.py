"""Who begins to write knows all that others did until then."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.kube_jobs import KubeJobs
from support.kube_objects import CONFIG_MAPS, World, until, versions
from support.kube_proxy import Call, KubeProxy, Line
from support.store import small_document

from orchestrator.kube import watch
from orchestrator.kube.client import Kube
from orchestrator.kube.resources import Target
from orchestrator.kube.stream import Stream
from orchestrator.kube.watch import Informer, Rhythm

pytestmark = pytest.mark.kube
QUICK = Rhythm(page=50, first_wait=0.01, longest_wait=0.05)


@pytest.fixture
def informer(through: Kube, namespace: str) -> Iterator[Informer]:
    """Of ConfigMaps in the test's namespace, through the proxy. The test starts it."""
    made = Informer(through, CONFIG_MAPS.at(namespace), rhythm=QUICK)
    yield made
    made.stop()


@pytest.fixture
def world(kube: Kube, namespace: str) -> World:
    return World(kube, namespace)


def watched(informer: Informer, proxy: KubeProxy) -> None:
    """It is started, and has come so far."""
    informer.start()
    assert informer.synced.wait(120)
    until(lambda: [call for call in proxy.calls if call.watch])


def listed(proxy: KubeProxy) -> list[Call]:
    return [call for call in proxy.calls if "limit" in call.query and not call.watch]


def test_who_catches_up_knows_all_that_others_did_without_a_list(
    informer: Informer, world: World, proxy: KubeProxy
) -> None:
    """The first watch loses three events; one that goes on from before them sends them once more."""
    for name in ("a", "b"):
        world.make(name)
    lost, losing = set[str](), threading.Event()

    def lose(line: bytes) -> list[Line]:
        if not losing.is_set():
            return [line]
        lost.add(json.loads(line)["object"]["metadata"]["resourceVersion"])
        return []

    proxy.lines = lose
    watched(informer, proxy)
    losing.set()
    world.change("a", x="1")
    world.remove("b")
    world.make("c")
    until(lambda: len(lost) >= 3)
    losing.clear()
    assert versions(informer.cache.all()) != world.truth()
    informer.catch_up()
    assert informer.synced.wait(120)
    assert versions(informer.cache.all()) == world.truth()
    assert len(listed(proxy)) == 1
    world.make("d")
    until(lambda: versions(informer.cache.all()) == world.truth())
    assert informer.problem == ""


def test_who_catches_up_is_told_when_there_was_nothing(
    informer: Informer, world: World, proxy: KubeProxy, kube_jobs: KubeJobs
) -> None:
    """What others wrote was of another kind: no event shows how far the cache is, a bookmark does."""
    world.make("a")
    watched(informer, proxy)
    made = kube_jobs.create(small_document("other"))
    informer.catch_up()
    assert informer.synced.wait(120)
    assert informer.reached >= int(made["metadata"]["resourceVersion"])
    assert len(listed(proxy)) == 1


def test_who_catches_up_with_a_server_without_bookmarks_lists(
    informer: Informer, world: World, proxy: KubeProxy, kube_jobs: KubeJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_CATCH_UP_S", 1)
    world.make("a")
    proxy.lines = lambda line: [] if json.loads(line)["type"] == "BOOKMARK" else [line]
    watched(informer, proxy)
    kube_jobs.create(small_document("other"))
    informer.catch_up()
    assert informer.synced.wait(120)
    assert len(listed(proxy)) == 2


def test_who_catches_up_while_a_watch_is_opened(through: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no stream yet that could be ended."""
    begun: list[Informer] = []
    opened, open_watch = threading.Event(), through.watch

    def late(target: Target, **more: Any) -> Stream:  # noqa: ANN401
        stream = open_watch(target, **more)
        if not opened.is_set():
            begun[0].catch_up()
            opened.set()
        return stream

    monkeypatch.setattr(through, "watch", late)
    informer = Informer(through, CONFIG_MAPS.at("default"), rhythm=QUICK)
    begun.append(informer)
    informer.start()
    assert opened.wait(120)
    assert informer.synced.wait(120)
    informer.stop()
