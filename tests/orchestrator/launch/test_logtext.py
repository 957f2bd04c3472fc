"""Pieces of a log: all of its text once, in bounded pieces, harmless to whoever shows it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.launch import logtext
from orchestrator.launch.archive import FileSource
from orchestrator.launch.logtext import harmless, log_piece, tail_offset


class Memory:
    """A source that remembers how much was read."""

    def __init__(self, data: bytes) -> None:
        self.data, self.read_bytes = data, 0

    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, limit: int) -> bytes:
        found = self.data[offset : offset + limit]
        self.read_bytes += len(found)
        return found


def _all(data: bytes, limit: int) -> str:
    """The pieces of a log that is over, put together."""
    offset, text = 0, ""
    while (piece := log_piece(Memory(data), offset, final=True, limit=limit)) is not None:
        assert offset < piece.next <= offset + limit
        text += piece.text + "\n" * piece.whole
        offset = piece.next
    assert offset == len(data)
    return text


@given(text=st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cf")) | st.just("\n"), max_size=80))
def test_pieces_are_the_log_whatever_their_size_and_cut_no_character(text: str) -> None:
    for limit in (4, 7, 64):
        assert _all(text.encode(), limit) == text


@given(data=st.binary(max_size=60))
def test_bytes_that_are_no_text_stop_nobody(data: bytes) -> None:
    for limit in (4, 9, 100):
        _all(data, limit)


def test_a_line_waits_for_its_end_unless_nothing_will_follow() -> None:
    source = Memory("whole\nbegun ö".encode())
    assert log_piece(source, 0, final=False) == logtext.Piece("whole", 6, whole=True)
    assert log_piece(source, 6, final=False) is None
    assert log_piece(source, 6, final=True) == logtext.Piece("begun ö", source.size(), whole=False)
    assert log_piece(source, source.size(), final=True) is None


def test_empty_lines_are_lines() -> None:
    assert log_piece(Memory(b"\n\n"), 0, final=False) == logtext.Piece("\n", 2, whole=True)
    assert log_piece(Memory(b"\n"), 0, final=False) == logtext.Piece("", 1, whole=True)


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[1;1Hgone", "gone"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("10%\r20%\r\nend", "10%\n20%\nend"),
        ("\x1b", "␛"),
        ("\x1b[31", "␛[31"),
        ("a\x00b\x07c\x7fd\x9be", "a␀b␇c␡d�e"),
        ("user\u202etxt.exe", "user�txt.exe"),
        ("tab\tstays", "tab\tstays"),
    ],
)
def test_what_steers_a_terminal_is_taken_out(dirty: str, clean: str) -> None:
    assert harmless(dirty.encode()) == clean


@given(text=st.text(st.sampled_from("\x1b[]0;m\x07\\ P_^\x9b\r\nA\x00\u202e"), max_size=40))
def test_nothing_that_steers_is_left_whatever_it_was_put_together_from(text: str) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", harmless(text.encode()))


def test_cleaning_takes_time_in_proportion_to_its_text() -> None:
    began = time.process_time()
    for hostile in ("\x1b[" * 500_000, "\x1b]" * 500_000, "\x1b[" + "1" * 1_000_000, "\x1b" + " " * 1_000_000):
        harmless(hostile.encode())
    assert time.process_time() - began < 10


@given(lines=st.lists(st.text("ab", max_size=5), max_size=30), ended=st.booleans(), wanted=st.integers(0, 35))
def test_a_tail_begins_where_the_last_lines_do(lines: list[str], ended: bool, wanted: int) -> None:
    data = "\n".join(lines).encode() + (b"\n" if ended and lines else b"")
    shown = data.splitlines(keepends=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logtext, "_BACKWARDS", 7)
        assert data[tail_offset(Memory(data), wanted) :] == b"".join(shown[len(shown) - min(wanted, len(shown)) :])


def test_a_tail_reads_only_the_end_of_a_log_of_five_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "attempt-1.log"
    with path.open("wb") as file:
        file.truncate(5 << 30)  # without a block on the disk
        file.seek(0, 2)
        file.write(b"\nlast but one\nlast\n")
    source = FileSource(path)
    began = time.process_time()
    begin = tail_offset(source, 2)
    assert log_piece(source, begin, final=False) == logtext.Piece("last but one\nlast", source.size(), whole=True)
    assert time.process_time() - began < 1
