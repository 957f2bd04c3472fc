"""News to a controller on loopback that loses, fails, forgets, fences and orders."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.ear import Ear, fenced, listening
from support.runs import resolved

from orchestrator.launch.base import RunFolder
from orchestrator.launch.control import amend_control
from orchestrator.launch.events import CheckpointAndStop, Continue, HardDeadline, read, read_control
from orchestrator.launch.pods.courier import FINAL_SECONDS, MOST_SECONDS, RHYTHM_SECONDS, Courier
from orchestrator.launch.pods.outbox import Outbox
from orchestrator.launch.pods.post import Post
from orchestrator.launch.reporter import FileReporter

ORDER = CheckpointAndStop(deadline=50.0, reason="cancelled")


class Pod:
    """Its folder and its courier, who goes when the test says so."""

    def __init__(self, root: Path, ear: Ear) -> None:
        self.root, self.ear = root, ear
        self.folder = RunFolder(root / "run")
        self.reporter = FileReporter(self.folder.root, "u", 1, "i1")
        (root / "token").write_text("t")
        self.said: list[str] = []
        self.fenced: list[str] = []
        self.posts: list[Post] = []
        self.courier = self.hire(ear.url)

    def hire(self, url: str) -> Courier:
        outbox = Outbox(self.folder, resolved(), self.said.append)
        post = Post(url, self.root / "token")
        self.posts.append(post)
        return Courier(outbox, post, self.folder.control, self.fenced.append, say=self.said.append, chance=lambda: 1.0)

    def work(self, steps: int = 3, text: str = "text\n") -> None:
        for step in range(steps):
            self.reporter.progress(step=step, tokens=step, metrics={"train/loss": 2.5}, samples=0)
        self.folder.log(1).parent.mkdir(parents=True, exist_ok=True)
        with self.folder.log(1).open("a") as file:
            file.write(text)

    def is_delivered(self) -> bool:
        """Whether the controller has exactly what the folder has."""
        return self.ear.events == read(self.folder.events)[0] and self.ear.log == self.folder.log(1).read_bytes()


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with listening(RunFolder(tmp_path / "controller")) as ear:
        made = Pod(tmp_path, ear)
        yield made
        made.courier.finish(0)
        for post in made.posts:
            post.close()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_news_goes_at_once_and_then_with_the_rhythm(pod: Pod) -> None:
    pod.work()
    assert pod.courier.deliver() == 0.0, "there may be more"
    assert pod.is_delivered()
    assert pod.courier.deliver() == RHYTHM_SECONDS
    assert pod.said == []


def test_an_answer_that_was_lost_costs_nothing(pod: Pod) -> None:
    pod.ear.lose = lambda delivery: (502, b"cut off") if len(pod.ear.got) < 3 else None
    for _ in range(4):
        pod.work(2, "more ")
        pod.courier.deliver()
    assert pod.is_delivered()
    assert len(pod.ear.events) == 8


def test_a_controller_that_is_away_is_asked_less_and_less_often_and_told_once(pod: Pod) -> None:
    pod.work()
    pod.ear.refuse = lambda _: (503, b'{"code": "standby", "detail": "another replica leads"}')
    pauses = [pod.courier.deliver() for _ in range(8)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, MOST_SECONDS, MOST_SECONDS, MOST_SECONDS]
    told = "the controller could not be told, which is tried again: answered 503: another replica leads"
    assert pod.said == [told]
    pod.ear.refuse = lambda _: (401, b'{"code": "unauthorized", "detail": "the token is too old"}')
    for _ in range(3):
        pod.courier.deliver()
    assert [text.rpartition(": ")[2] for text in pod.said] == ["another replica leads", "the token is too old"]
    pod.ear.refuse = lambda _: None
    pod.courier.deliver()
    assert pod.said[2:] == ["the controller takes deliveries again"]
    assert pod.is_delivered()
    pod.ear.refuse = lambda _: (503, b"")
    assert pod.courier.deliver() == 1.0, "anew"


def test_at_the_end_it_tries_more_often(pod: Pod) -> None:
    pod.work()
    pod.ear.refuse = lambda _: (503, b"")
    pod.courier.finish(0)
    assert [pod.courier.deliver() for _ in range(4)] == [1.0, FINAL_SECONDS, FINAL_SECONDS, FINAL_SECONDS]


def test_pauses_are_of_many_lengths(pod: Pod) -> None:
    pod.ear.refuse = lambda _: (503, b"")
    courier = pod.courier
    courier._chance = lambda: 0.0
    assert [courier.deliver() for _ in range(3)] == [0.5, 1.0, 2.0]


def test_a_controller_that_forgot_gets_everything_again(pod: Pod) -> None:
    pod.work()
    pod.courier.deliver()
    pod.ear.forget()
    pod.work(1)
    pod.ear.got.clear()
    assert pod.courier.deliver() == RHYTHM_SECONDS, "what was asked for is no step forward"
    assert pod.courier.deliver() == 0.0
    assert pod.is_delivered()
    assert [[event.seq for event in one.events] for one in pod.ear.got] == [[4], [1, 2, 3, 4]]


def test_who_is_fenced_says_nothing_more(pod: Pod) -> None:
    pod.work()
    pod.ear.refuse = lambda _: fenced("attempt 2 has begun")
    pod.courier.start()
    until(lambda: bool(pod.fenced))
    assert pod.fenced == ["attempt 2 has begun"]
    assert not pod.courier.finish(30), "and nobody waits"
    assert len(pod.ear.tokens) == 1


# The answer


def deadline(number: int, incarnation: str = "i1") -> HardDeadline:
    return HardDeadline(number=number, incarnation=incarnation, stop=100.0, end=110.0, limit=120.0)


def test_an_order_stops_the_workers_as_on_a_laptop(pod: Pod) -> None:
    pod.ear.answer = ORDER
    pod.courier.deliver()
    stop = pod.reporter.stop_requested()
    assert stop is not None
    assert (stop.deadline, stop.reason) == (50.0, "cancelled")
    pod.ear.answer = Continue()
    pod.courier.deliver()
    assert read_control(pod.folder.control) == ORDER, "an order stays"


def test_the_same_answer_is_written_once(pod: Pod) -> None:
    pod.ear.answer = ORDER
    pod.courier.deliver()
    own = CheckpointAndStop(deadline=60.0, reason="terminated")
    amend_control(pod.folder.control, order=own)
    pod.courier.deliver()
    assert read_control(pod.folder.control) == own, "the later word, as if both wrote into one file"
    pod.ear.answer = CheckpointAndStop(deadline=40.0, reason="over-budget")
    pod.courier.deliver()
    assert read_control(pod.folder.control) == pod.ear.answer


def test_deadlines_come_with_the_answer(pod: Pod) -> None:
    pod.ear.answer = Continue(hard_deadline=deadline(2))
    pod.courier.deliver()
    assert read_control(pod.folder.control).hard_deadline == deadline(2)
    pod.ear.answer = Continue(hard_deadline=deadline(1))
    pod.courier.deliver()
    assert read_control(pod.folder.control).hard_deadline == deadline(2), "an older one says nothing"
    pod.ear.answer = ORDER.model_copy(update={"hard_deadline": deadline(3)})
    pod.courier.deliver()
    assert read_control(pod.folder.control) == pod.ear.answer


def test_an_answer_that_cannot_be_written_is_tried_again(pod: Pod) -> None:
    pod.ear.answer = ORDER
    pod.folder.control.mkdir(parents=True)
    pod.courier.deliver()
    assert "could not be written" in pod.said[0]
    pod.folder.control.rmdir()
    pod.courier.deliver()
    assert read_control(pod.folder.control) == ORDER


# The end


def test_the_end_waits_for_everything(pod: Pod) -> None:
    pod.work(1200, "x" * 600_000)
    pod.courier.start()
    assert pod.courier.finish(180)
    assert pod.is_delivered()


def test_the_end_waits_no_longer_than_it_may(pod: Pod) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    courier = pod.hire(f"http://127.0.0.1:{port}")
    pod.work()
    courier.start()
    began = time.monotonic()
    assert not courier.finish(0.3)
    assert 0.3 <= time.monotonic() - began < 60


def test_a_controller_that_comes_back_meanwhile_is_told(pod: Pod) -> None:
    pod.work()
    pod.ear.refuse = lambda _: (503, b"") if len(pod.ear.tokens) < 3 else None
    pod.courier.start()
    assert pod.courier.finish(180)
    assert pod.is_delivered()


def test_what_nobody_foresaw_does_not_end_the_courier(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    pack, failed = pod.courier._outbox.pack, []

    def once(*, final: bool) -> object:
        if not failed:
            failed.append(1)
            raise RuntimeError("never seen")
        return pack(final=final)

    monkeypatch.setattr(pod.courier._outbox, "pack", once)
    pod.work()
    pod.courier.start()
    assert pod.courier.finish(180)
    assert pod.is_delivered()
