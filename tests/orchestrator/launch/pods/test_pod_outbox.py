"""What is delivered next, and where it goes on."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import resolved

from orchestrator.launch.base import RunFolder
from orchestrator.launch.delivery import (
    MOST_BODY_BYTES,
    MOST_EVENTS,
    MOST_FILE_BYTES,
    MOST_LOG_BYTES,
    Receipt,
)
from orchestrator.launch.events import Continue, EventLog
from orchestrator.launch.pods.outbox import Outbox, Parcel
from orchestrator.launch.reporter import FileReporter


class Stage:
    """A folder that is written to, and a controller that keeps what it gets."""

    def __init__(self, root: Path) -> None:
        self.folder = RunFolder(root / "run")
        self.reporter = FileReporter(self.folder.root, "u", 1, "i1")
        self.said: list[str] = []
        self.outbox = Outbox(self.folder, resolved(), self.said.append)
        self.seqs: list[int] = []
        self.log = b""

    def print(self, text: bytes) -> None:
        self.folder.log(1).parent.mkdir(parents=True, exist_ok=True)
        with self.folder.log(1).open("ab") as file:
            file.write(text)

    def steps(self, number: int) -> None:
        for step in range(number):
            self.reporter.progress(step=step, tokens=step, metrics={}, samples=0)

    def receipt(self) -> Receipt:
        return Receipt(seq=self.seqs[-1] if self.seqs else 0, log_offset=len(self.log), answer=Continue())

    def keep(self, parcel: Parcel) -> None:
        self.seqs += [event.seq for event in parcel.delivery.events]
        assert parcel.delivery.log_offset == len(self.log)
        self.log += parcel.delivery.log.encode()

    def deliver(self, *, final: bool = False) -> Parcel:
        parcel = self.outbox.pack(final=final)
        assert len(parcel.delivery.model_dump_json(by_alias=True)) < MOST_BODY_BYTES
        self.keep(parcel)
        assert self.outbox.acknowledged(parcel, self.receipt()) is not parcel.empty
        return parcel


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_an_empty_folder_asks_for_the_answer_only(stage: Stage) -> None:
    parcel = stage.deliver()
    assert parcel.empty
    sent = parcel.delivery
    assert (sent.namespace, sent.name, sent.job, sent.attempt, sent.incarnation) == ("default", "tiny", "u", 1, "i1")


def test_everything_comes_once_and_in_order(stage: Stage) -> None:
    stage.steps(3)
    stage.print(b"one\n")
    stage.reporter.artifact("sample.txt", b"hello")
    parcel = stage.deliver()
    assert stage.seqs == [1, 2, 3]
    assert parcel.delivery.log == "one\n"
    assert [(one.name, one.content) for one in parcel.delivery.artifacts] == [("sample.txt", b"hello")]
    assert stage.deliver().empty
    stage.steps(1)
    stage.print(b"two")
    stage.reporter.artifact("sample.txt", b"hello again")
    again = stage.deliver().delivery
    assert (stage.seqs, stage.log) == ([1, 2, 3, 4], b"one\ntwo")
    assert [one.content for one in again.artifacts] == [b"hello again"]


def test_what_was_not_acknowledged_comes_again(stage: Stage) -> None:
    stage.steps(3)
    stage.print(b"text")
    lost = stage.outbox.pack().delivery
    stage.steps(1)
    sent = stage.outbox.pack().delivery
    assert sent.events[:3] == lost.events
    assert [event.seq for event in sent.events] == [1, 2, 3, 4]
    assert sent.log == "text"


def test_a_controller_that_stored_some_gets_the_rest(stage: Stage) -> None:
    stage.steps(5)
    stage.print(b"0123456789")
    parcel = stage.outbox.pack()
    assert stage.outbox.acknowledged(parcel, Receipt(seq=2, log_offset=4, answer=Continue()))
    rest = stage.outbox.pack().delivery
    assert [event.seq for event in rest.events] == [3, 4, 5]
    assert (rest.log_offset, rest.log) == (4, "456789")


def test_a_controller_that_forgot_gets_it_from_the_folder(stage: Stage) -> None:
    stage.steps(4)
    stage.print(b"0123456789")
    stage.reporter.artifact("sample.txt", b"hello")
    stage.deliver()
    stage.steps(1)
    parcel = stage.outbox.pack()
    assert not stage.outbox.acknowledged(parcel, Receipt(seq=1, log_offset=3, answer=Continue())), "no step forward"
    again = stage.outbox.pack().delivery
    assert [event.seq for event in again.events] == [2, 3, 4, 5]
    assert (again.log_offset, again.log) == (3, "3456789")
    assert [one.name for one in again.artifacts] == ["sample.txt"]


def test_a_controller_that_forgets_again_and_again_is_not_hurried(stage: Stage) -> None:
    stage.steps(1)
    stage.deliver()
    stage.reporter.artifact("sample.txt", b"hello")
    assert not stage.outbox.acknowledged(stage.outbox.pack(), Receipt(answer=Continue()))


def test_a_controller_that_has_more_than_it_was_given_is_not_believed(stage: Stage) -> None:
    stage.steps(2)
    stage.print(b"0123")
    parcel = stage.outbox.pack()
    stage.outbox.acknowledged(parcel, Receipt(seq=99, log_offset=99, answer=Continue()))
    stage.steps(1)
    stage.print(b"45")
    sent = stage.outbox.pack().delivery
    assert [event.seq for event in sent.events] == [3]
    assert (sent.log_offset, sent.log) == (4, "45")


def test_a_torn_line_and_the_words_of_others_are_passed_over(stage: Stage) -> None:
    stage.steps(1)
    with stage.folder.events.open("ab") as file:
        file.write(b'{"kind": "progr')
    EventLog(stage.folder.events).append("warning", job="u", attempt=1, incarnation="i0", message="a zombie")
    stage.steps(1)
    stage.deliver()
    assert stage.seqs == [1, 2]


def test_a_line_that_is_not_whole_yet_waits(stage: Stage) -> None:
    stage.steps(2)
    data = stage.folder.events.read_bytes()
    stage.folder.events.write_bytes(data[:-5])
    stage.deliver()
    assert stage.seqs == [1]
    stage.folder.events.write_bytes(data)
    stage.deliver()
    assert stage.seqs == [1, 2]


def test_many_events_come_in_bounded_pieces(stage: Stage) -> None:
    line = stage_line(stage, "x")
    with stage.folder.events.open("wb") as file:
        for seq in range(1, 1301):
            file.write(line.replace(b'"seq":1,', b'"seq":%d,' % seq))
    sizes = [len(stage.deliver().delivery.events) for _ in range(4)]
    assert sizes == [MOST_EVENTS, MOST_EVENTS, 300, 0]
    assert stage.seqs == list(range(1, 1301))


def stage_line(stage: Stage, message: str) -> bytes:
    """One event as it stands in the file."""
    stage.reporter.warning(message)
    line = stage.folder.events.read_bytes()
    stage.folder.events.unlink()
    return line


def test_large_events_logs_and_files_together_stay_below_the_bound(stage: Stage) -> None:
    line = stage_line(stage, "\x01" * 4000)  # six bytes each as JSON
    with stage.folder.events.open("wb") as file:
        for seq in range(1, 301):
            file.write(line.replace(b'"seq":1,', b'"seq":%d,' % seq))
    stage.print(b"\x01" * (3 * MOST_LOG_BYTES))
    for name in ("a", "b"):
        stage.reporter.artifact(name, b"x" * MOST_FILE_BYTES)
    parcels = []
    while not (parcel := stage.deliver()).empty:
        parcels.append(parcel)
    assert stage.seqs == list(range(1, 301))
    assert stage.log == b"\x01" * (3 * MOST_LOG_BYTES)
    assert [[one.name for one in parcel.delivery.artifacts] for parcel in parcels[:3]] == [["a"], ["b"], []]


def test_a_file_that_is_too_large_stays_and_is_told_once(stage: Stage) -> None:
    stage.reporter.artifact("large.bin", b"x" * (MOST_FILE_BYTES + 1))
    stage.reporter.artifact("small.txt", b"x")
    (stage.folder.artifacts / ".draft.tmp").write_bytes(b"half")
    (stage.folder.artifacts / "no name.txt").write_bytes(b"x")
    assert [one.name for one in stage.deliver().delivery.artifacts] == ["small.txt"]
    assert stage.deliver().empty
    assert stage.said == ["large.bin has 1048577 bytes and 1048576 are delivered at most: it stays in the pod"]


def test_a_character_between_two_pieces_is_not_cut(stage: Stage) -> None:
    text = "€" * (MOST_LOG_BYTES // 3 + 10)
    assert MOST_LOG_BYTES % 3
    stage.print(text.encode())
    while not stage.deliver(final=True).empty:
        pass
    assert stage.log.decode() == text


def test_a_character_is_not_cut(stage: Stage) -> None:
    stage.print("a€".encode()[:-1])
    assert stage.deliver().delivery.log == "a"
    stage.print("€".encode()[-1:])
    assert stage.deliver().delivery.log == "€"
    stage.print("ü".encode()[:1])
    assert stage.deliver().empty
    assert stage.deliver(final=True).delivery.log == "?", "at the end nothing waits"
    assert len(stage.log) == 5


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_whatever_is_printed_offsets_are_those_of_the_file(pieces: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        for piece in pieces:
            stage.print(piece)
            stage.deliver()
        while not stage.deliver(final=True).empty:
            pass
        printed = b"".join(pieces)
        assert len(stage.log) == len(printed)
        assert all(ours in (theirs, ord("?")) for ours, theirs in zip(stage.log, printed, strict=True))
        try:
            printed.decode()
        except UnicodeDecodeError:
            return
        assert stage.log == printed
