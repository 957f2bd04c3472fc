"""Writes that nobody waits for."""

from __future__ import annotations

import threading

from support.kube_objects import until

from orchestrator.errors import Unavailable
from orchestrator.kube.lease import LostLease
from orchestrator.kube.queue import Backoff
from orchestrator.launch.cluster.tending import Tending


def test_what_fails_is_done_again_and_told_once() -> None:
    said, left = list[str](), [3]

    def act() -> None:
        left[0] -= 1
        if left[0] > 0:
            raise Unavailable("no answer")

    tending = Tending(said.append, Backoff(first=0.01, longest=0.02))
    tending.start()
    tending.do("x", act)
    until(lambda: left[0] == 0)
    tending.stop()
    assert said == ["x failed, and is tried again: no answer"]


def test_a_defect_stops_no_other() -> None:
    said, done = list[str](), threading.Event()
    tending = Tending(said.append, Backoff(first=60.0, longest=60.0))
    tending.start()

    def defect() -> None:
        raise KeyError("x")

    tending.do("bad", defect)
    tending.do("good", done.set)
    assert done.wait(120)
    tending.stop()
    assert said == ["bad failed, and is tried again: KeyError: 'x'"]


def test_who_leads_no_more_does_nothing_again() -> None:
    said, calls, done = list[str](), list[int](), threading.Event()

    def lost() -> None:
        calls.append(1)
        raise LostLease("another leads")

    tending = Tending(said.append, Backoff(first=0.01, longest=0.01))
    tending.start()
    tending.do("x", lost)
    tending.do("y", done.set)
    assert done.wait(120)
    tending.stop()
    assert (calls, said) == ([1], [])


def test_what_is_asked_for_again_meanwhile_is_done_again() -> None:
    began, go, done = threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        began.set()
        assert go.wait(120)

    tending = Tending(lambda text: None)
    tending.start()
    tending.do("x", slow)
    assert began.wait(120)
    tending.do("x", done.set)
    go.set()
    assert done.wait(120)
    tending.stop()


def test_it_may_be_stopped_before_it_was_started() -> None:
    Tending(lambda text: None).stop()
