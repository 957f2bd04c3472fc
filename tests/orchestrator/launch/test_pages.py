"""Pages of an event file: whatever is in it, every event once and in order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs import event

from orchestrator.errors import UsageError
from orchestrator.launch import pages
from orchestrator.launch.archive import FileSource, FolderArchive
from orchestrator.launch.base import RunFolder
from orchestrator.launch.pages import event_page


class Memory:
    """A source that remembers how much was asked for at once."""

    def __init__(self, data: bytes) -> None:
        self.data, self.largest = data, 0

    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, limit: int) -> bytes:
        self.largest = max(self.largest, limit)
        return self.data[offset : offset + limit]


def _line(step: int) -> bytes:
    return (
        event("progress", float(step + 1), step=step, tokens=step, seq=step + 1).model_dump_json(by_alias=True).encode()
    )


def _warning(number: int) -> bytes:
    return event("warning", float(number + 1), message="of progress", seq=9).model_dump_json(by_alias=True).encode()


def _steps(source: Memory, *, limit: int, kind: str | None = None) -> list[int]:
    """All pages, one after the other."""
    found: list[int] = []
    offset, more = 0, True
    while more:
        page = event_page(source, offset, limit=limit, kind=kind)
        assert page.next > offset or not page.more, "a page that asks to go on has gone on"
        found += [getattr(entry.event, "step", -1) for entry in page.entries]
        offset, more = page.next, page.more
    return found


_PARTS = st.lists(
    st.one_of(
        st.integers(0, 9).map(lambda step: ("event", _line(step))),
        st.binary(max_size=40).map(lambda junk: ("junk", junk.replace(b"\n", b""))),
        st.integers(300, 700).map(lambda length: ("junk", b"\0" * length)),
    ),
    max_size=12,
)


@given(parts=_PARTS, limit=st.integers(1, 5), torn=st.booleans())
def test_damage_stops_nobody_and_every_event_comes_once(parts: list[tuple[str, bytes]], limit: int, torn: bool) -> None:
    data = b"\n".join(line for _, line in parts) + (b"" if torn else b"\n")
    complete = parts[:-1] if torn else parts
    wanted = [int(line.split(b'"step":')[1].split(b",")[0]) for kind, line in complete if kind == "event"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "BLOCK", 256)  # an event fits, a long line does not
        source = Memory(data)
        assert _steps(source, limit=limit) == wanted
        assert source.largest <= 256


def test_a_torn_line_waits_and_is_served_once_it_is_complete() -> None:
    whole = _line(1) + b"\n" + _line(2) + b"\n"
    for cut in range(len(_line(1)) + 1, len(whole)):
        first = event_page(Memory(whole[:cut]))
        assert [entry.next for entry in first.entries] == [first.next] == [len(_line(1)) + 1]
        second = event_page(Memory(whole), first.next)
        assert [entry.event.seq for entry in second.entries] == [3]


@given(offset=st.integers(0, 3 * (len(_line(1)) + 1)))
def test_any_offset_goes_on_with_the_next_whole_line(offset: int) -> None:
    data = b"".join(_line(step) + b"\n" for step in (1, 2, 3))
    length = len(_line(1)) + 1
    page = event_page(Memory(data), offset)
    assert [entry.event.seq for entry in page.entries] == [2 + n for n in range(-(-offset // length), 3)]


def test_one_kind_only_and_a_page_without_any_goes_on_behind_what_was_looked_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = (_warning(1) + b"\n") * 50 + _line(7) + b"\n"
    assert _steps(Memory(data), limit=3, kind="progress") == [7]
    monkeypatch.setattr(pages, "MAX_SCAN", 1000)
    page = event_page(Memory(data), kind="progress")
    assert page.more
    assert not page.entries
    assert _steps(Memory(data), limit=3, kind="progress") == [7]


def test_an_offset_beyond_the_end_is_refused_and_one_at_the_end_finds_nothing() -> None:
    source = Memory(_line(1) + b"\n")
    assert event_page(source, source.size()) == pages.EventPage((), source.size(), more=False)
    with pytest.raises(UsageError, match=rf"offset {source.size() + 1} is beyond the end at {source.size()}"):
        event_page(source, source.size() + 1)


def test_a_time_that_no_date_can_say_is_no_event() -> None:
    late = event("warning", 1e30, message="x", seq=1).model_dump_json(by_alias=True).encode()
    page = event_page(Memory(late + b"\n" + _line(1) + b"\n"))
    assert [entry.event.kind for entry in page.entries] == ["progress"]


def test_the_folder_of_a_run_is_an_archive(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    archive = FolderArchive(folder)
    assert (archive.newest_attempt(), archive.events().size(), archive.log(1).read(0, 9)) == (0, 0, b"")
    folder.log(1).parent.mkdir()
    folder.log(1).write_bytes(b"0123456789")
    folder.resolved(3).write_text("{}")
    assert archive.newest_attempt() == 3
    assert archive.log(1).read(2, 3) == b"234"
    assert archive.log(1).read(8, 100) == b"89"


def test_a_link_or_a_pipe_in_the_place_of_a_log_shows_nothing(tmp_path: Path) -> None:
    import os

    (tmp_path / "secret").write_text("of another team")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        source = FileSource(tmp_path / name)
        assert (source.size(), source.read(0, 100)) == (0, b"")
