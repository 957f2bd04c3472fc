"""No key is lost, none is in two hands, and what fails comes again later and later."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from support.kube_objects import until

from orchestrator.kube.queue import Backoff, Waiting, WorkQueue

KEYS = st.sampled_from(["a", "b", "c"])
OFTEN = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # that says more about the machine than about the test
)
BACKOFF = Backoff(first=1.0, longest=20.0)


class Machine(RuleBasedStateMachine):
    """Beside a model that only knows which keys are owed a look, and from when."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.waiting = Waiting(BACKOFF)
        self.owed: dict[str, float] = {}  # the earliest time at which a key that was added may be taken
        self.held: set[str] = set()
        self.failures: Counter[str] = Counter()

    def _owe(self, key: str, when: float) -> None:
        self.owed[key] = min(when, self.owed.get(key, when))

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.waiting.add(key)
        self._owe(key, self.now)

    @rule(key=KEYS, seconds=st.floats(0, 50))
    def add_after(self, key: str, seconds: float) -> None:
        self.waiting.add_at(key, self.now + seconds)
        self._owe(key, self.now + seconds)

    @rule(seconds=st.floats(0, 30))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def take(self) -> None:
        key = self.waiting.take(self.now)
        free = {one for one, when in self.owed.items() if when <= self.now and one not in self.held}
        if key is None:
            assert not free, f"{free} are due at {self.now}"
            return
        assert key not in self.held, "in two hands"
        assert key in free, f"{key} was not to be had at {self.now}"
        # one that was also asked for at a later time comes again then
        del self.owed[key]
        if key in self.waiting.later:
            self._owe(key, self.waiting.later[key])
        self.held.add(key)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), well=st.booleans(), at_least=st.sampled_from([0.0, 0.0, 40.0]))
    def done(self, data: st.DataObject, well: bool, at_least: float) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        if well:
            self.waiting.forget(key)
            self.failures[key] = 0
        else:
            self.failures[key] += 1
            seconds = self.waiting.failed(key, self.now, at_least)
            assert seconds == max(at_least, min(20.0, 2.0 ** (self.failures[key] - 1)))
            self._owe(key, self.now + seconds)
        self.waiting.done(key)
        self.held.discard(key)

    @invariant()
    def nothing_is_kept_twice(self) -> None:
        due = list(self.waiting.due)
        assert len(due) == len(set(due))
        assert not set(due) & self.held
        assert self.waiting.held == self.held
        # the heap holds what is passed over only until it comes to the top
        assert len(self.waiting.times) <= 200

    @invariant()
    def what_is_owed_is_known(self) -> None:
        assert set(self.owed) <= self.waiting.wanted | set(self.waiting.later)

    def teardown(self) -> None:
        """In the end everything that was asked for is handed out."""
        for key in sorted(self.held):
            self.waiting.done(key)
        self.held.clear()
        self.now += 1000
        found = set()
        while (key := self.waiting.take(self.now)) is not None:
            found.add(key)
            self.waiting.done(key)
        assert found >= set(self.owed)


def test_no_key_is_lost_and_none_is_in_two_hands() -> None:
    run_state_machine_as_test(Machine, settings=OFTEN)


class Forgetful(Waiting):
    """A defect: what is added while it is worked on is not looked at again."""

    def done(self, key: str) -> None:
        self.held.discard(key)
        self.wanted.discard(key)


class Generous(Waiting):
    """A defect: what is worked on is handed out again."""

    def add(self, key: str) -> None:
        if key not in self.wanted:
            self.wanted.add(key)
            self.due.append(key)


@pytest.mark.parametrize("planted", [Forgetful, Generous])
def test_the_machine_would_notice(planted: type[Waiting]) -> None:
    class Planted(Machine):
        def __init__(self) -> None:
            super().__init__()
            self.waiting = planted(BACKOFF)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Planted, settings=settings(OFTEN, derandomize=True, report_multiple_bugs=False))


@given(first=st.floats(1e-3, 10), longest=st.floats(10, 1e4), failures=st.integers(1, 10_000))
def test_backoff_is_bounded_and_never_shrinks(first: float, longest: float, failures: int) -> None:
    backoff = Backoff(first, longest)
    assert first <= backoff.after(failures) <= longest
    assert backoff.after(failures) <= backoff.after(failures + 1)


def test_first_come_first_served() -> None:
    waiting = Waiting()
    for key in ("b", "a", "c", "a"):
        waiting.add(key)
    assert [waiting.take(0) for _ in range(4)] == ["b", "a", "c", None]


def test_what_nobody_took_cannot_be_handed_back() -> None:
    with pytest.raises(AssertionError, match="nobody's hands"):
        Waiting().done("a")


# ------------------------------------------------------------------ with threads


def test_threads_do_each_key_one_at_a_time() -> None:
    queue = WorkQueue(Backoff(0.001, 0.002))
    busy: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    clashes: list[str] = []
    lock = threading.Lock()

    def work() -> None:
        while (key := queue.get()) is not None:
            with lock:
                busy[key] += 1
                if busy[key] > 1:
                    clashes.append(key)
                seen[key] += 1
                again = seen[key] % 3 == 0
            if again:
                queue.failed(key)
            else:
                queue.forget(key)
            with lock:
                busy[key] -= 1
            queue.done(key)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(2000):
        queue.add(f"k{number % 7}")
    until(lambda: len(queue) == 0 and len(seen) == 7)
    queue.shut_down()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert clashes == []


def test_the_wait_ends_when_something_is_due() -> None:
    now = [0.0]
    queue = WorkQueue(clock=lambda: now[0])
    queue.add_after("later", 100.0)
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(queue.get()))
    thread.start()
    queue.add("now")
    thread.join(120)
    assert found == ["now"]
    now[0] = 100.0
    assert queue.get() == "later"


def test_the_end_wakes_everybody() -> None:
    queue = WorkQueue()
    queue.add_after("never", 1000.0)
    found: list[str | None] = []
    threads = [threading.Thread(target=lambda: found.append(queue.get())) for _ in range(3)]
    for thread in threads:
        thread.start()
    queue.shut_down()
    for thread in threads:
        thread.join(120)
    assert found == [None] * 3
    assert queue.get() is None
