"""Files that people and other processes change while a run goes on: whether one has changed, asked several times a
second."""

from __future__ import annotations

from pathlib import Path

_State = tuple[int, int, int]
"""Time of the last change, size, number of the file; (0, 0, 0): it is not there, or cannot be looked at."""


class WatchedFile:
    """Says of each state of a file once that it is new, and of the first one, too."""

    def __init__(self, path: Path, *, patient: bool = False) -> None:
        """`patient`: for a file that is not replaced as a whole; a state is told when two looks have seen it."""
        self.path, self._patient = path, patient
        self._told: _State | None = None
        self._seen: _State | None = None

    def changed(self) -> bool:
        """Whether to read it now."""
        state, before = self._state(), self._seen
        self._seen = state
        being_written = self._patient and self._told is not None and state != before
        if state == self._told or being_written:
            return False
        self._told = state
        return True

    def again(self) -> None:
        """What was told last could not be made use of: tell it again."""
        self._told = None

    def _state(self) -> _State:
        try:
            found = self.path.stat()
        except OSError:
            return 0, 0, 0
        return found.st_mtime_ns, found.st_size, found.st_ino
