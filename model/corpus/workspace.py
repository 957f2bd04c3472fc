"""The folder beside the output where finished pieces of work are kept until all is done.

Invariants: a piece counts only once its marker is there, which is written last and whole; a workspace belongs to one
listing and one set of options, and to one process at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class Workspace:
    """Pieces of one preparation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.selected = folder / "selected"
        self.encoded = folder / "encoded"
        self.result = folder / "result"

    def begin(self, digest: str) -> bool:
        """Make the folders, or take up those of the same inputs; -> whether there was something to take up."""
        known = self.folder / "inputs"
        same = known.exists() and known.read_text() == digest
        if not same:
            known.unlink(missing_ok=True)  # first: what is left of an interrupted removal belongs to nothing
            for old in (self.runs, self.selected, self.encoded, self.result):
                shutil.rmtree(old, ignore_errors=True)
        for folder in (self.runs, self.selected, self.encoded, self.result):
            folder.mkdir(exist_ok=True)
        write_whole(known, digest.encode())
        return same and any(self.runs.iterdir())

    def remove(self) -> None:
        """Everything, once the result has been moved away or the inputs were refused."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def workspace(out: Path) -> Iterator[Workspace]:
    """That of an output folder; FileExistsError if another process is at work in it."""
    folder = out.with_name(f".{out.name}.preparing")
    with _locked(folder, out):
        yield Workspace(folder)


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    """With the folder's lock file held; a file that was removed before it could be locked is nobody's."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError), (folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"another process is preparing {out}: wait for it, or choose another folder"
                raise FileExistsError(message) from None
            if os.fstat(lock.fileno()).st_ino != (folder / "lock").stat().st_ino:
                continue
            yield
            return


def read_marker(path: Path) -> dict[str, Any] | None:
    """What a finished piece says of itself; None if it is not finished, or its files are not what they were."""
    try:
        content = json.loads(path.read_text())
        sizes = content.pop("files")
        whole = all((path.parent / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return content if whole else None


def write_marker(path: Path, content: dict[str, Any], files: Iterable[Path] = ()) -> None:
    """Say that a piece is finished, whose files lie beside the marker."""
    sizes = {file.name: file.stat().st_size for file in files}
    write_whole(path, json.dumps({**content, "files": sizes}).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
