"""What a run has left to be read, wherever that lies: its events, and the log of each attempt, as bytes by offset.

Read by the API. Behind it: the folder of a run on this machine; a cluster's storage (pieces with an index) fits the
same protocols. Invariant: what was read at an offset is there for good; a source only grows at its end.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.launch.base import RunFolder


class Source(Protocol):
    """Bytes that grow at their end; nothing at first."""

    def size(self) -> int:
        """Bytes that are there; 0 where there is nothing (yet)."""
        ...

    def read(self, offset: int, limit: int) -> bytes:
        """At most `limit` bytes from `offset` on: all of them, unless fewer are there."""
        ...


class Archive(Protocol):
    """Of one job."""

    def events(self) -> Source:
        """All events of all attempts, as JSON lines; see `launch.events`."""
        ...

    def log(self, attempt: int) -> Source:
        """All that an attempt has printed."""
        ...

    def newest_attempt(self) -> int:
        """Number of the last one prepared; 0 before the first. Nothing is added to the logs of earlier ones."""
        ...


@dataclass(frozen=True)
class FileSource:
    """A file that may not be there yet; read without being kept open."""

    path: Path

    def size(self) -> int:
        try:
            found = self.path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return 0
        return found.st_size if stat.S_ISREG(found.st_mode) else 0

    def read(self, offset: int, limit: int) -> bytes:
        try:  # a link would show what is none of the run's; a pipe would wait for ever
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return b""
        except OSError:
            if self.path.is_symlink():
                return b""
            raise
        try:
            return _read_all(descriptor, offset, limit) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        finally:
            os.close(descriptor)


def _read_all(descriptor: int, offset: int, limit: int) -> bytes:
    """The kernel may give less than was asked for; an empty answer is the end."""
    parts: list[bytes] = []
    left = limit
    while left and (part := os.pread(descriptor, left, offset)):
        parts.append(part)
        offset += len(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


@dataclass(frozen=True)
class FolderArchive:
    """The archive in a run's folder."""

    folder: RunFolder

    def events(self) -> Source:
        return FileSource(self.folder.events)

    def log(self, attempt: int) -> Source:
        return FileSource(self.folder.log(attempt))

    def newest_attempt(self) -> int:
        return self.folder.last_attempt()
