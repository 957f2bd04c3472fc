"""What workers say through the mailbox, and what happens when nobody takes it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from support.kube_objects import until

from model.anomaly import Incident
from model.reporting import Reporter, Stop
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import read
from orchestrator.launch.pods import reporter as reporter_module
from orchestrator.launch.pods.mailbox import MailBox, kill_mailbox
from orchestrator.launch.pods.reporter import PodReporter
from orchestrator.launch.pods.stacks import follow, look
from orchestrator.launch.pods.worker import registered
from orchestrator.launch.reporter import FileReporter

INCIDENT = Incident.model_validate(
    {
        "step": 7, "data_step": 8, "kind": "spike", "value": 9.5, "score": 12.0, "action": "replay",
        "attempt": 1, "incarnation": "i1", "time": 1.0,
    }
)  # fmt: skip


class Asked:
    """A call that the test answers, when it wants to."""

    def __init__(self) -> None:
        self.answer: Future[Any] = Future()

    def future(self) -> Future[Any]:
        return self.answer


class Handle:
    """As an actor's, whose calls are noted."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[object, ...], Asked]] = []
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        class Method:
            @staticmethod
            def remote(*arguments: object) -> Asked:
                if self.error is not None:
                    raise self.error
                self.calls.append((name, arguments, Asked()))
                return self.calls[-1][2]

        return Method()

    @property
    def asked(self) -> list[Asked]:
        return [call for name, _, call in self.calls if name == "stop_requested"]


def speak(told: Reporter) -> None:
    """Everything that has no answer."""
    told.started(step=0, tokens=0, world_size=2, resumed_from=None, arithmetic="fp32")
    told.progress(step=1, tokens=10, metrics={"train/loss": 2.5}, samples=2**63)
    told.checkpoint_committed(step=1, uri="x/step-1", size_bytes=5, seconds=0.5)
    told.warning("mind the gap")
    told.anomaly(INCIDENT, "step 7: going back")
    told.artifact("sample.txt", b"hello")


def contents(folder: RunFolder) -> list[dict[str, Any]]:
    return [event.model_dump(exclude={"time"}) for event in read(folder.events)[0]]


def test_what_is_said_through_a_mailbox_is_what_is_said_on_a_laptop(tmp_path: Path) -> None:
    near, far = RunFolder(tmp_path / "near"), RunFolder(tmp_path / "far")
    speak(FileReporter(near.root, "u", 1, "i1"))
    handle = Handle()
    speak(PodReporter(handle, tmp_path))
    mailbox = MailBox(FileReporter(far.root, "u", 1, "i1"))
    for method, arguments, _ in handle.calls:
        getattr(mailbox, method)(*pickle.loads(pickle.dumps(arguments)))
    assert contents(far) == contents(near)
    assert len(contents(far)) == 5
    assert (far.artifacts / "sample.txt").read_bytes() == b"hello"


def test_nonsense_does_not_end_the_mailbox(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mailbox = MailBox(FileReporter(tmp_path, "u", 1, "i1"))
    mailbox.tell("progress", {"step": -1, "tokens": 0, "metrics": {}, "samples": 0})
    assert "greater than or equal to 0" in capsys.readouterr().err
    assert contents(RunFolder(tmp_path)) == []


def test_asking_whether_to_stop_never_waits_and_asks_one_at_a_time(tmp_path: Path) -> None:
    handle = Handle()
    told = PodReporter(handle, tmp_path)
    assert [told.stop_requested() for _ in range(5)] == [None] * 5
    assert len(handle.asked) == 1
    handle.asked[0].answer.set_result(None)
    assert told.stop_requested() is None
    assert len(handle.asked) == 2
    handle.asked[1].answer.set_result(Stop(50.0, "cancelled"))
    assert told.stop_requested() == Stop(50.0, "cancelled")
    handle.asked[2].answer.set_exception(RuntimeError("the actor died"))
    assert told.stop_requested() == Stop(50.0, "cancelled"), "the answer before holds"
    handle.asked[3].answer.set_result(Stop(40.0, "over-budget"))
    assert told.stop_requested() == Stop(40.0, "over-budget"), "the newest"


def test_a_question_that_got_lost_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle, now = Handle(), 100.0
    monkeypatch.setattr(reporter_module.time, "monotonic", lambda: now)
    told = PodReporter(handle, tmp_path)
    told.stop_requested()
    now += reporter_module.ANSWER_SECONDS + 1
    told.stop_requested()
    assert len(handle.asked) == 2


def test_training_does_not_end_because_nobody_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handle = Handle()
    handle.error = RuntimeError("the actor is gone")
    told = PodReporter(handle, tmp_path)
    for _ in range(3):
        speak(told)
        assert told.stop_requested() is None
        told.failed("not-finite", "m")
        assert told.has_failed() is False
    said = capsys.readouterr().err
    assert said == "the driver cannot be told, training goes on: RuntimeError: the actor is gone\n", "once"


def test_stacks_of_a_worker_reach_log_and_mailbox(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, sent = tmp_path / "rank-1.txt", list[str]()
    assert look(file, 0, sent.append) == 0, "nothing happened"
    file.write_text("Thread 1:\n")
    offset = look(file, 0, sent.append)
    assert look(file, offset, sent.append) == offset
    with file.open("a") as more:
        more.write("Thread 2:\n")
    look(file, offset, sent.append)
    assert sent == ["Thread 1:\n", "Thread 2:\n"]
    assert capsys.readouterr().err == "Thread 1:\n\nThread 2:\n\n"
    reporter = FileReporter(tmp_path / "run", "u", 1, "i1")
    for text in sent:
        MailBox(reporter).stacks(1, text)
    assert RunFolder(reporter.root).stacks(1, "i1", 1).read_text() == "Thread 1:\nThread 2:\n"


def test_a_thread_follows_what_a_stall_writes(tmp_path: Path) -> None:
    over, handle = threading.Event(), Handle()

    def wait(_: float) -> None:
        if over.wait(0.01):
            threading.Event().wait()  # until the process ends

    path = tmp_path / "rank-0.txt"
    path.write_text("of an earlier start\n")
    follow(path, lambda text: handle.stacks.remote(0, text), wait=wait)
    with path.open("a") as file:
        file.write("Thread 1:\n")
    until(lambda: handle.calls)
    over.set()
    assert [(name, arguments) for name, arguments, _ in handle.calls] == [("stacks", (0, "Thread 1:\n"))]


def test_a_training_process_is_registered_while_it_trains(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of training"), registered(tmp_path / "workers"):  # noqa: PT012
        assert [path.name for path in (tmp_path / "workers").iterdir()] == [str(os.getpid())]
        raise ValueError("of training")
    assert list((tmp_path / "workers").iterdir()) == []


def test_only_the_mailbox_itself_is_killed(tmp_path: Path) -> None:
    kill_mailbox(RunFolder(tmp_path))  # there never was one
    (tmp_path / "mailbox.pid").write_text(f"{os.getppid()} 1.5")  # the number is another's by now
    kill_mailbox(RunFolder(tmp_path))
    os.kill(os.getppid(), 0)


# With Ray


@pytest.mark.ray
def test_a_worker_of_another_pod(tmp_path: Path) -> None:
    """In order and without waiting; an order comes back; a mailbox that dies comes again, and nothing is lost."""
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "-m", "support.mailbox_trial", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": f"{root}:{root}/tests"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["first"] == list(range(1, 201))
    assert told["after its death"] == list(range(1, 251))
    assert told["another process"]
    assert told["stop"] == [50.0, "cancelled"]
    assert told["failed before, after"] == [False, True]
    assert told["failure"] == ["not-finite", "the loss is nan"]
    assert told["gone"] is False, "whoever asks a mailbox that is gone for ever"
    assert told["seconds of 200 steps"] < 60, "they wait for no answer"
    assert told["seconds without a mailbox"] < 120
