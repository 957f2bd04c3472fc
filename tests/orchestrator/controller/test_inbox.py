"""What pods deliver is stored once, whatever comes twice, late, torn or not at all, and whoever dies in between."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import event

from orchestrator.controller import inbox
from orchestrator.controller.inbox import Heard, Inbox, Inboxes, fresh
from orchestrator.errors import Fenced, Unavailable, UsageError
from orchestrator.launch.base import RunFolder
from orchestrator.launch.control import amend_control
from orchestrator.launch.delivery import Artifact, Delivery, Receipt
from orchestrator.launch.events import CheckpointAndStop, Continue, Event, EventLog, read

JOB, ONE, TWO = "11111111-1111-1111-1111-111111111111", "mini-a1-abcde", "mini-a1-fghij"


def told(seq: int, kind: str = "progress", *, incarnation: str = ONE, attempt: int = 1, **fields: Any) -> Event:  # noqa: ANN401
    content = {"step": seq, "tokens": 100 * seq} if kind == "progress" else {}
    return event(kind, float(seq), attempt=attempt, seq=seq, incarnation=incarnation, job=JOB, **(content | fields))


def delivery(events: Sequence[Event] = (), log: str = "", offset: int = 0, **fields: Any) -> Delivery:  # noqa: ANN401
    content = {"namespace": "team-a", "name": "mini", "job": JOB, "attempt": 1, "incarnation": ONE}
    return Delivery(**(content | fields), events=tuple(events), log=log, log_offset=offset)


def new_folder(root: Path, attempts: int = 1) -> RunFolder:
    folder = RunFolder(root)
    root.mkdir(parents=True, exist_ok=True)
    for number in range(1, attempts + 1):
        folder.resolved(number).write_text("{}")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return new_folder(tmp_path / "run")


def deliver(folder: RunFolder, *args: Any, leaving: bool = False, **fields: Any) -> Receipt:  # noqa: ANN401
    return Inbox(folder).store(delivery(*args, **fields), leaving=leaving).receipt


def seqs(folder: RunFolder, incarnation: str = ONE) -> list[int]:
    return [one.seq for one in read(folder.events)[0] if one.incarnation == incarnation]


# ------------------------------------------------------------------ whatever happens, the same file


class Crash(BaseException):
    """The process dies here."""


def _dying(moment: int, torn: float) -> Callable[[int, bytes], int]:
    """`os.write` of a process that dies at its n-th write, with a part of it done."""
    count = 0
    write = os.write

    def dying(descriptor: int, data: bytes) -> int:
        nonlocal count
        count += 1
        if count == moment:
            write(descriptor, data[: int(len(data) * torn)])
            raise Crash
        return write(descriptor, data)

    return dying


STORY = [told(seq) for seq in range(1, 13)]
TEXT = "".join(f"Schritt {number}: größer\n" for number in range(12))
RAW = TEXT.encode()


@st.composite
def pieces(draw: st.DrawFn) -> tuple[int, int, int, int]:
    first, last = sorted((draw(st.integers(0, 12)), draw(st.integers(0, 12))))
    begin, end = sorted((draw(st.integers(0, 12)), draw(st.integers(0, 12))))
    return first, last, begin, end


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(pieces(), st.integers(0, 4), st.floats(0, 1), st.booleans()), max_size=12))
def test_any_order_of_repeats_losses_and_crashes_gives_the_same_file(
    plan: list[tuple[tuple[int, int, int, int], int, float, bool]],
) -> None:
    lines = TEXT.splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        folder, kept = new_folder(Path(root) / "run"), Inbox(RunFolder(Path(root) / "run"))
        for (first, last, begin, end), moment, torn, restarted in plan:
            piece = delivery(STORY[first:last], "".join(lines[begin:end]), len("".join(lines[:begin]).encode()))
            patch.setattr(inbox.os, "write", _dying(moment, torn))
            try:
                receipt = kept.store(piece, leaving=False).receipt
            except Crash:
                kept = Inbox(folder)  # another process
                continue
            finally:
                patch.undo()
            assert seqs(folder) == list(range(1, receipt.seq + 1))
            assert folder.log(1).read_bytes() == RAW[: receipt.log_offset]
            kept = Inbox(folder) if restarted else kept
        # the driver goes on from the receipt until all is there
        receipt = deliver(folder)
        begun = len(RAW[: receipt.log_offset].decode(errors="ignore").encode())  # whole letters travel
        deliver(folder, STORY[receipt.seq :], RAW[begun:].decode(), begun)
        assert read(folder.events)[0] == STORY
        assert folder.log(1).read_bytes() == RAW


@given(st.binary(max_size=30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_a_piece_adds_what_comes_next(whole: bytes, known: int, begin: int, end: int) -> None:
    known, begin = min(known, len(whole)), min(begin, len(whole))
    after = whole[:known] + fresh(known, begin, whole[begin:end])
    assert after == whole[: len(after)]
    assert len(after) == (max(known, min(end, len(whole)) if end > begin else known) if begin <= known else known)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=20))
def test_events_are_taken_in_one_row(ranges: list[tuple[int, int]]) -> None:
    heard, stored = Heard(), list[int]()
    for first, last in ranges:
        for one in heard.take(delivery([told(seq) for seq in range(first, last + 1)]), leaving=False):
            heard.add(one)
            stored.append(one.seq)
    assert stored == list(range(1, len(stored) + 1))


# ------------------------------------------------------------------ who counts


def test_a_repeat_changes_nothing_and_has_the_same_receipt(folder: RunFolder) -> None:
    first = deliver(folder, STORY[:3], "one\n")
    before = folder.events.read_bytes()
    assert deliver(folder, STORY[:3], "one\n") == first == Receipt(seq=3, log_offset=4, answer=Continue())
    assert folder.events.read_bytes() == before
    assert folder.log(1).read_text() == "one\n"


def test_after_a_gap_the_receipt_says_where_to_go_on(folder: RunFolder) -> None:
    deliver(folder, STORY[:2], "ab")
    assert deliver(folder, STORY[4:6], "ef", 4) == Receipt(seq=2, log_offset=2, answer=Continue())
    assert (seqs(folder), folder.log(1).read_text()) == ([1, 2], "ab")


@pytest.mark.parametrize(("attempt", "attempts"), [(1, 2), (2, 1), (1, 0)])
def test_only_the_newest_attempt_counts(tmp_path: Path, attempt: int, attempts: int) -> None:
    folder = new_folder(tmp_path / "run", attempts)
    with pytest.raises(Fenced, match=f"the newest is {attempts}"):
        deliver(folder, [told(1, attempt=attempt)], "x", attempt=attempt)
    assert not folder.events.exists()
    assert not folder.log(attempt).exists()


def test_an_incarnation_counts_no_more_once_another_has_begun(folder: RunFolder) -> None:
    deliver(folder, STORY[:2], "first, torn")
    second = [told(seq, incarnation=TWO) for seq in (1, 2)]
    assert deliver(folder, second, "second\n", incarnation=TWO).log_offset == 7
    with pytest.raises(Fenced, match=TWO):
        deliver(folder, STORY[2:3], "more", 11)
    assert (seqs(folder), seqs(folder, TWO)) == ([1, 2], [1, 2])
    assert folder.log(1).read_text() == "first, torn\nsecond\n"


def test_a_pod_on_its_way_out_ends_what_it_began_and_begins_nothing(folder: RunFolder) -> None:
    deliver(folder, STORY[:1])
    assert deliver(folder, STORY[1:2], leaving=True).seq == 2
    with pytest.raises(Fenced, match=ONE):
        deliver(folder, [told(1, incarnation=TWO)], incarnation=TWO, leaving=True)


def test_the_controllers_word_that_it_is_over_is_the_last(folder: RunFolder) -> None:
    deliver(folder, STORY[:2])
    log = EventLog(folder.events)
    log.append("ended", job=JOB, attempt=1, incarnation=ONE, outcome="failed", failure_class="driver-lost")
    for events in ([told(4)], STORY[2:4]):
        with pytest.raises(Fenced, match="over"):
            deliver(folder, events)
    with pytest.raises(Fenced, match="over"):
        deliver(folder, [told(1, incarnation=TWO)], incarnation=TWO)
    load = told(4, "machine-load", node="a", metrics={"cpu": 1.0})
    other = load.model_copy(update={"incarnation": TWO, "seq": 1})
    for events in ([other], []):
        with pytest.raises(Fenced, match="over"):
            deliver(folder, events, "more", incarnation=TWO)
    assert deliver(folder, [load], "last line\n").seq == 4


def test_words_on_money_have_numbers_of_their_own(folder: RunFolder) -> None:
    assert deliver(folder, STORY[:2]).seq == 2
    log = EventLog(folder.events)
    log.append("budget", job=JOB, attempt=1, incarnation="launcher", about="share-spent", message="half is spent")
    assert deliver(folder, STORY[:3]).seq == 3, "nobody has begun by that"
    assert seqs(folder) == [1, 2, 3]


def test_a_line_that_lacks_only_its_end_is_known(folder: RunFolder) -> None:
    deliver(folder, STORY[:2])
    os.truncate(folder.events, folder.events.stat().st_size - 1)
    deliver(folder, STORY[:3])
    assert seqs(folder) == [1, 2, 3]


@pytest.mark.parametrize(
    "events",
    [
        [told(2), told(1)], [told(1), told(1)], [told(1, incarnation=TWO)], [told(1, attempt=2)],
        [told(1).model_copy(update={"job": "other"})],
    ],
)  # fmt: skip
def test_events_that_are_not_its_own_row_are_refused(folder: RunFolder, events: list[Event]) -> None:
    with pytest.raises(UsageError, match="event"):
        deliver(folder, events, "x")
    assert folder.events.read_bytes() == b""
    assert not folder.log(1).exists()


# ------------------------------------------------------------------ files


def test_artifacts_are_kept_and_replaced_and_nothing_else_is(folder: RunFolder) -> None:
    folder.artifacts.mkdir()
    folder.forecast.write_text("ours")
    outside = folder.root / "secret"
    outside.write_text("secret")
    (folder.artifacts / "sample.txt").symlink_to(outside)
    given = [("sample.txt", "YQ=="), ("load.json", "Yg=="), ("forecast.json", "Yw==")]
    deliver(folder, artifacts=tuple(Artifact(name=name, data=data) for name, data in given))
    deliver(folder, artifacts=(Artifact(name="load.json", data="ZA=="),))
    found = {path.name: path.read_text() for path in folder.artifacts.iterdir()}
    assert found == {"sample.txt": "a", "load.json": "d", "forecast.json": "ours"}
    assert outside.read_text() == "secret"


def test_artifacts_and_logs_are_bounded(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "MOST_ARTIFACTS", 2)
    monkeypatch.setattr(inbox, "MOST_LOG_BYTES", 4)
    deliver(folder, artifacts=tuple(Artifact(name=f"{name}.txt", data="YQ==") for name in "abc"))
    deliver(folder, artifacts=(Artifact(name="a.txt", data="Yg=="),))
    assert sorted(path.name for path in folder.artifacts.iterdir()) == ["a.txt", "b.txt"]
    assert (folder.artifacts / "a.txt").read_text() == "b"
    assert deliver(folder, log="12345").log_offset == 5
    assert deliver(folder, log="6789", offset=5).log_offset == 9, "its driver does not wait for room"
    assert folder.log(1).read_text() == "12345"
    monkeypatch.setattr(inbox, "MOST_EVENT_BYTES", 10)
    deliver(folder, STORY[:1])
    with pytest.raises(UsageError, match="more than 10 bytes"):
        deliver(folder, STORY[:2])


def test_a_full_disk_takes_nothing_and_it_comes_again(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(folder, STORY[:1])
    with monkeypatch.context() as patch:
        patch.setattr(inbox.os, "write", lambda *_: 3)
        with pytest.raises(Unavailable, match="disk"):
            deliver(folder, STORY[:3], "text")
    assert deliver(folder, STORY[:3], "text").seq == 3
    assert (seqs(folder), folder.log(1).read_text()) == ([1, 2, 3], "text")


def test_the_receipt_has_the_answer_to_the_driver(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    amend_control(folder.control, order=CheckpointAndStop(deadline=5.0, reason="enough"))
    assert deliver(folder).answer == CheckpointAndStop(deadline=5.0, reason="enough")
    folder.control.write_text("nonsense")
    assert deliver(folder).answer == Continue()
    assert "holds no answer" in caplog.text


def test_inboxes_read_each_file_once(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    inboxes, read_from = Inboxes(), list[int]()
    scan = inbox.scan
    monkeypatch.setattr(inbox, "scan", lambda path, offset: (read_from.append(offset), scan(path, offset))[1])
    for last in (1, 2, 3):
        inboxes.of(folder).store(delivery(STORY[:last]), leaving=False)
    assert read_from == sorted(set(read_from)), "each goes on where the one before ended"
    assert Inboxes().of(folder).store(delivery(STORY[:3]), leaving=False).events == 0
