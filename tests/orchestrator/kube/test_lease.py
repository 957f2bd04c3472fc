"""One leader at a time: with real processes that are killed, paused and asked to go, and with clocks that jump."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.apiserver import ApiServer
from support.kube_objects import CONFIG_MAPS, config_map, until
from support.kube_proxy import Call, Fault, KubeProxy, Say
from support.kube_replica import BOARD, TERMS

from orchestrator.errors import NotFound, Unavailable
from orchestrator.kube.client import Kube, Timeouts
from orchestrator.kube.lease import EXIT_LOST, LeaderLease, LostLease, steady
from orchestrator.kube.lease_record import Record, Terms, Watched, record_of, released, taken
from orchestrator.kube.resources import LEASES

TESTS = Path(__file__).parents[2]
QUICK = Terms(duration=4.0, deadline=3.0, period=0.05)
"""Runs out while a test waits for it; on a busy machine at any time."""
STEADY = Terms(duration=300.0, deadline=200.0, period=0.05)
"""Runs out in no test."""


# ------------------------------------------------------------------ pure
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
OURS = LEASES.at("ns", "leader")


def test_a_lease_is_taken_only_when_it_has_not_changed_for_its_duration() -> None:
    watched = Watched("me", Terms(duration=15.0))
    theirs = Record("you", 15.0, "t1", "1")
    watched.saw(theirs, now=100.0)
    assert not watched.may_take(115.0)
    watched.saw(theirs, now=110.0)
    assert watched.may_take(115.1), "seeing the same again is no renewal"
    watched.saw(replace(theirs, renewed="t2"), now=116.0)
    assert not watched.may_take(131.0)


@pytest.mark.parametrize(("says", "lasts"), [(60.0, 60.0), (1.0, 15.0), (1e9, 3600.0), (0.0, 15.0)])
def test_the_holder_says_how_long(says: float, lasts: float) -> None:
    watched = Watched("me", Terms(duration=15.0))
    watched.saw(Record("you", says, "t", "1"), now=0.0)
    assert not watched.may_take(lasts)
    assert watched.may_take(lasts + 0.1)


def test_one_that_vanishes_is_held_until_it_would_run_out() -> None:
    watched = Watched("me", Terms(duration=15.0))
    watched.saw(Record("you", 15.0, "t", "1"), now=0.0)
    watched.saw(None, now=5.0)
    assert not watched.may_take(6.0)
    assert watched.may_take(15.1)
    assert Watched("me", Terms()).may_take(0.0), "one that never was is free"


@pytest.mark.parametrize(
    "lease", [{}, {"spec": None}, {"spec": []}, {"spec": {"leaseDurationSeconds": "x"}}, {"metadata": 3}]
)
def test_what_cannot_be_read_is_free(lease: dict[str, Any]) -> None:
    assert record_of(lease).holder == ""


def test_what_is_written() -> None:
    made = taken(None, OURS, "me", Terms(), NOW)
    assert made["spec"] == {
        "holderIdentity": "me",
        "leaseDurationSeconds": 15,
        "acquireTime": "2026-06-01T12:00:00.000000Z",
        "renewTime": "2026-06-01T12:00:00.000000Z",
        "leaseTransitions": 0,
    }
    renewed = taken(made, OURS, "me", Terms(), NOW + timedelta(seconds=2))
    assert renewed["spec"] == made["spec"] | {"renewTime": "2026-06-01T12:00:02.000000Z"}
    other = taken(renewed, OURS, "you", Terms(), NOW + timedelta(seconds=20))
    assert (other["spec"]["leaseTransitions"], other["spec"]["holderIdentity"]) == (1, "you")
    assert record_of(released(other, NOW)).holder == ""


@pytest.mark.parametrize("terms", [(15, 15, 2), (15, 10, 10), (15, 10, 0), (1.5, 1, 0.5)])
def test_terms_that_keep_nobody_safe(terms: tuple[float, float, float]) -> None:
    with pytest.raises(AssertionError):
        Terms(*terms)


# ------------------------------------------------------------------ in process, with clocks of the test
class Clock:
    """Steady, until the test says otherwise."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.wall = timedelta(0)

    def steady(self) -> float:
        return steady() + self.ahead

    def now(self) -> datetime:
        return datetime.now(UTC) + self.wall


class Replica:
    """In a thread."""

    def __init__(self, kube: Kube, namespace: str, identity: str, terms: Terms = STEADY) -> None:
        self.clock, self.stop, self.lost = Clock(), threading.Event(), threading.Event()
        self.lease = LeaderLease(
            kube,
            namespace,
            "leader",
            identity,
            terms=terms,
            on_lost=self.lost.set,
            clock=self.clock.steady,
            wall=self.clock.now,
        )
        self.thread = threading.Thread(target=self.lease.acquire, args=(self.stop,), daemon=True)

    def start(self) -> Replica:
        self.thread.start()
        return self

    def end(self) -> None:
        self.stop.set()
        self.thread.join(120)
        self.lease.release()


@pytest.fixture
def replicas() -> Iterator[list[Replica]]:
    made: list[Replica] = []
    yield made
    for one in made:
        one.end()


def looks(proxy: KubeProxy) -> int:
    return sum(call.method == "GET" for call in proxy.calls)


@pytest.fixture
def pair(through: Kube, kube: Kube, namespace: str, replicas: list[Replica]) -> tuple[Replica, Replica]:
    """One that leads, past the proxy; one that follows, through it."""
    leader = Replica(kube, namespace, "one").start()
    replicas.append(leader)
    until(lambda: leader.lease.leads)
    follower = Replica(through, namespace, "two").start()
    replicas.append(follower)
    return leader, follower


@pytest.mark.kube
@pytest.mark.parametrize("hours", [-24, 24])
def test_wall_clocks_may_be_wrong_and_jump(pair: tuple[Replica, Replica], proxy: KubeProxy, hours: int) -> None:
    leader, follower = pair
    follower.clock.wall = timedelta(hours=-hours)
    until(lambda: looks(proxy) >= 3)
    leader.clock.wall = timedelta(hours=hours)
    seen = looks(proxy)
    until(lambda: looks(proxy) >= seen + 10)
    assert leader.lease.leads
    assert not follower.lease.leads
    assert not leader.lost.is_set()


@pytest.mark.kube
def test_a_leader_that_slept_is_none(pair: tuple[Replica, Replica]) -> None:
    """Its steady clock says that more time went by than it has: nothing is written, nothing is renewed, it ends."""
    leader, _ = pair
    leader.clock.ahead = STEADY.deadline + 0.5
    with pytest.raises(LostLease, match=r"renewed .* s ago, and 200 s are the limit"):
        leader.lease.require()
    assert leader.lost.wait(120)
    leader.clock.ahead = 0
    with pytest.raises(LostLease):
        leader.lease.require()


@pytest.mark.kube
def test_a_leader_that_slept_does_not_renew_what_nobody_took(pair: tuple[Replica, Replica]) -> None:
    """Although it could: another may have led in between, and gone."""
    leader, _ = pair
    leader.clock.ahead = STEADY.deadline + 0.5
    assert leader.lost.wait(120)


@pytest.mark.kube
def test_seconds_left_for_a_write(pair: tuple[Replica, Replica]) -> None:
    leader, follower = pair
    assert STEADY.duration - STEADY.deadline <= leader.lease.require() <= STEADY.duration
    with pytest.raises(LostLease, match=r"two_[0-9a-f]+ does not hold Lease"):
        follower.lease.require()


@pytest.mark.kube
def test_a_release_is_taken_over_at_once(kube: Kube, namespace: str, replicas: list[Replica]) -> None:
    leader = Replica(kube, namespace, "one").start()
    until(lambda: leader.lease.leads)
    follower = Replica(kube, namespace, "two").start()
    replicas += [leader, follower]
    leader.lease.release()
    with pytest.raises(LostLease):
        leader.lease.require()
    until(lambda: follower.lease.leads)
    assert not leader.lost.is_set(), "whoever goes has lost nothing"


@pytest.mark.kube
def test_a_lease_that_somebody_deletes_stays_with_its_holder(
    pair: tuple[Replica, Replica], kube: Kube, namespace: str, proxy: KubeProxy
) -> None:
    leader, follower = pair
    until(lambda: looks(proxy) >= 2)
    for _ in range(3):
        kube.delete(LEASES.at(namespace, "leader"), {})
        seen = looks(proxy)
        until(lambda seen=seen: looks(proxy) >= seen + 3)
    assert leader.lease.leads
    assert not follower.lease.leads


@pytest.mark.kube
def test_a_lease_in_other_hands_is_lost_although_it_is_young(
    pair: tuple[Replica, Replica], kube: Kube, namespace: str
) -> None:
    leader, _ = pair
    kube.patch(LEASES.at(namespace, "leader"), {"spec": {"holderIdentity": "thief"}}, "merge")
    assert leader.lost.wait(120)
    with pytest.raises(LostLease):
        leader.lease.require()


@pytest.mark.kube
def test_a_leader_whom_nobody_answers_ends(
    through: Kube, proxy: KubeProxy, namespace: str, replicas: list[Replica]
) -> None:
    leader = Replica(through, namespace, "one").start()
    replicas.append(leader)
    until(lambda: leader.lease.leads)
    proxy.leave()
    for _ in range(4):  # a renewal that is granted would make up for a quarter of the time
        tried = len(proxy.calls)
        until(lambda tried=tried: len(proxy.calls) >= tried + 2 or leader.lost.is_set())
        leader.clock.ahead += STEADY.deadline / 4
    assert leader.lost.wait(120)
    with pytest.raises(LostLease):
        leader.lease.require()
    proxy.away = False


@pytest.mark.kube
@pytest.mark.parametrize("fault", ["cut before", "cut after", Say(500), Say(500, after=True), Say(409), Say(429)])
def test_a_renewal_that_fails_now_and_then_loses_nothing(
    through: Kube,
    kube: Kube,
    proxy: KubeProxy,
    namespace: str,
    replicas: list[Replica],
    fault: Any,  # noqa: ANN401
) -> None:
    def every_other(call: Call) -> Fault:
        return fault if call.method == "PUT" and sum(one.method == "PUT" for one in proxy.calls) % 2 else "ok"

    leader = Replica(through, namespace, "one").start()
    replicas.append(leader)
    until(lambda: leader.lease.leads)
    proxy.plan = every_other
    until(lambda: sum(one.method == "PUT" for one in proxy.calls) >= 8)
    assert leader.lease.leads
    assert not leader.lost.is_set()
    assert kube.get(LEASES.at(namespace, "leader"))["spec"]["leaseTransitions"] == 0


@pytest.mark.kube
def test_a_renewal_that_hangs_does_not_hold_the_end(
    through: Kube, proxy: KubeProxy, namespace: str, replicas: list[Replica]
) -> None:
    through.timeouts = Timeouts(3, 60)
    leader = Replica(through, namespace, "one", QUICK).start()
    replicas.append(leader)
    leader.thread.join(120)  # it leads, or has
    proxy.plan = lambda call: "hold"
    assert leader.lost.wait(120)


@pytest.mark.kube
def test_of_two_that_begin_together_one_leads(kube: Kube, namespace: str, replicas: list[Replica]) -> None:
    replicas += [Replica(kube, namespace, f"r{number}") for number in range(6)]
    for one in replicas:
        one.start()
    until(lambda: any(one.lease.leads for one in replicas))
    holder = kube.get(LEASES.at(namespace, "leader"))["spec"]["holderIdentity"]
    assert [one.lease.identity for one in replicas if one.lease.leads] == [holder]


@pytest.mark.kube
def test_a_container_that_is_started_again_in_its_pod_waits_as_others_do(
    pair: tuple[Replica, Replica], through: Kube, namespace: str, proxy: KubeProxy, replicas: list[Replica]
) -> None:
    again = Replica(through, namespace, "one").start()
    replicas.append(again)
    seen = looks(proxy)
    until(lambda: looks(proxy) >= seen + 10)
    assert not again.lease.leads
    assert pair[0].lease.leads


@pytest.mark.kube
def test_each_renewal_puts_off_the_end(kube: Kube, namespace: str) -> None:
    """Whoever is paused for longer is dead before anybody else may lead; whoever gives the lease back may live."""
    ends: list[float | None] = []
    lease = LeaderLease(kube, namespace, "leader", "one", terms=QUICK, die_at=ends.append)
    began = steady()
    assert lease.acquire(threading.Event())
    until(lambda: len(ends) >= 3)
    lease.release()
    *renewed, last = ends
    assert last is None
    assert renewed == sorted(renewed)
    assert began + QUICK.deadline < renewed[0]
    assert renewed[-1] < steady() + QUICK.duration


@pytest.mark.kube
def test_whoever_never_led_releases_nothing(pair: tuple[Replica, Replica], kube: Kube, namespace: str) -> None:
    leader, follower = pair
    follower.end()
    assert kube.get(LEASES.at(namespace, "leader"))["spec"]["holderIdentity"] == leader.lease.identity
    assert leader.lease.leads


# ------------------------------------------------------------------ processes
class Processes:
    """Replicas as processes, and who has written on the board, in order."""

    def __init__(self, server: ApiServer, kube: Kube, namespace: str, folder: Path) -> None:
        self.kube, self.namespace, self._folder = kube, namespace, folder
        self._config = server.kubeconfig()
        self._all: list[subprocess.Popen[bytes]] = []
        made = kube.create(CONFIG_MAPS.at(namespace, BOARD), config_map(namespace, BOARD))
        query = [("resourceVersion", made["metadata"]["resourceVersion"]), ("timeoutSeconds", "600")]
        self.written: list[str] = []
        self._stream = kube.watch(CONFIG_MAPS.at(namespace), query=query, silence=610)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(Unavailable):  # the test's end
            for line in self._stream.lines():
                event = json.loads(line)
                if event["object"]["metadata"]["name"] == BOARD:
                    self.written.append(event["object"]["data"]["by"])
        self._stream.close()

    def start(self, identity: str, terms: str) -> subprocess.Popen[bytes]:
        with (self._folder / identity).open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "support.kube_replica", str(self._config), self.namespace, identity, terms],
                env={**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
            )
        self._all.append(process)
        return process

    def told(self, identity: str, word: str) -> float | None:
        """When it said so, by the steady clock."""
        for line in (self._folder / identity).read_text().splitlines(keepends=True):
            if line.startswith(f"{word} ") and line.endswith("\n"):  # it may be written just now
                return float(line.split()[1])
        return None

    def wait(self, identity: str, word: str) -> float:
        found = until(lambda: self.told(identity, word), lambda: (self._folder / identity).read_text())
        assert isinstance(found, float)
        return found

    def pair(self, terms: str = "short") -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
        """The first leads, and both run."""
        one = self.start("one", terms)
        self.wait("one", "leads")
        two = self.start("two", terms)
        self.wait("two", "ready")
        until(lambda: len(self.written) > 5)
        return one, two

    def one_after_the_other(self) -> None:
        """Nobody has written after another did."""
        until(lambda: "two" in self.written)
        first = self.written.index("two")
        assert set(self.written[:first]) == {"one"}
        assert set(self.written[first:]) == {"two"}

    def end(self) -> None:
        for process in self._all:
            process.kill()
            process.wait()
        self._stream.abort()
        self._reader.join(120)


@pytest.fixture
def processes(api_server: ApiServer, kube: Kube, namespace: str, tmp_path: Path) -> Iterator[Processes]:
    made = Processes(api_server, kube, namespace, tmp_path)
    yield made
    made.end()


@pytest.mark.kube
def test_a_killed_leader_is_followed_when_its_lease_has_run_out(processes: Processes) -> None:
    one, _ = processes.pair()
    one.send_signal(signal.SIGKILL)
    one.wait()
    lease = LEASES.at(processes.namespace, "leader")
    renewed = processes.kube.get(lease)["spec"]["renewTime"]
    processes.wait("two", "leads")
    acquired = processes.kube.get(lease)["spec"]["acquireTime"]
    assert datetime.fromisoformat(acquired) - datetime.fromisoformat(renewed) > timedelta(seconds=TERMS.duration)
    processes.one_after_the_other()


@pytest.mark.kube
def test_a_paused_leader_writes_nothing_when_it_wakes_and_ends(processes: Processes) -> None:
    one, two = processes.pair()
    one.send_signal(signal.SIGSTOP)
    processes.wait("two", "leads")
    until(lambda: "two" in processes.written)
    one.send_signal(signal.SIGCONT)
    assert one.wait(120) == EXIT_LOST
    assert processes.told("one", "refused") is not None
    seen = len(processes.written)
    until(lambda: len(processes.written) > seen + 5)
    processes.one_after_the_other()
    assert two.poll() is None


@pytest.mark.kube
def test_a_leader_that_is_asked_to_go_is_followed_at_once(processes: Processes) -> None:
    one, _ = processes.pair("long")
    one.send_signal(signal.SIGTERM)
    assert one.wait(120) == 0
    processes.wait("two", "leads")
    processes.one_after_the_other()


@pytest.mark.kube
def test_there_is_no_lease_before_somebody_leads(kube: Kube, namespace: str) -> None:
    with pytest.raises(NotFound):
        kube.get(LEASES.at(namespace, "leader"))
    lease = LeaderLease(kube, namespace, "leader", "one", terms=QUICK)
    stop = threading.Event()
    stop.set()
    assert not lease.acquire(stop)
    lease.release()
    with pytest.raises(NotFound):
        kube.get(LEASES.at(namespace, "leader"))
