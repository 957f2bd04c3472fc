"""The few operations that checkpoints need of a storage, and a folder that has them (`remote`: the others).

Names are relative to the root, with slashes. What was written is written whole or not at all; locally it is
on disk before a call returns. Everything that goes wrong outside is an OSError, also where a client library
has errors of its own. Nothing is cached: a listing is what is there now.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class Entry(NamedTuple):
    """One thing in a folder."""

    size: int
    is_folder: bool


class Digest(NamedTuple):
    """What a file's content is."""

    size: int
    sha256: str


class Storage(Protocol):
    """See the module."""

    def entries(self, folder: str) -> dict[str, Entry]:
        """What is in a folder; nothing if it does not exist; NotADirectoryError if it is a file."""

    def read(self, name: str, limit: int) -> bytes:
        """A small file; OSError (EFBIG) if it has more than `limit` bytes."""

    def digest(self, name: str) -> Digest:
        """Reads the whole file."""

    def write(self, name: str, data: bytes) -> None:
        """Replaces what was there."""

    def create(self, name: str, data: bytes) -> None:
        """FileExistsError if there is one, also if two processes try at once (see the classes for how far)."""

    def version(self, name: str) -> str:
        """Changes with the content, where the storage can tell; FileNotFoundError if there is no such file."""

    def replace(self, name: str, data: bytes, version: str) -> None:
        """FileExistsError if it is no longer at `version` (where the storage can tell)."""

    def put(self, source: Path, name: str) -> None:
        """Take a local file in; `source` may be gone afterwards."""

    def remove_file(self, name: str) -> None:
        """Without a word if it is gone already."""

    def remove_folder(self, name: str) -> None:
        """With all that is in it; without a word if it is gone already."""


class LocalStorage:
    """A folder of this machine, or one mounted from elsewhere."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def entries(self, folder: str) -> dict[str, Entry]:
        """See `Storage`."""
        found = {}
        with suppress(FileNotFoundError), os.scandir(self.root / folder) as rows:
            for row in rows:
                with suppress(FileNotFoundError):  # gone since
                    found[row.name] = Entry(row.stat().st_size, row.is_dir())
        return found

    def read(self, name: str, limit: int) -> bytes:
        """See `Storage`."""
        with (self.root / name).open("rb") as file:
            data = file.read(limit + 1)
            size = os.fstat(file.fileno()).st_size
        require_size(name, max(size, len(data)), limit)
        return data

    def digest(self, name: str) -> Digest:
        """See `Storage`."""
        return file_digest(self.root / name)

    def write(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        with self._draft(name, data) as draft:
            draft.replace(self.root / name)
        sync((self.root / name).parent)

    def create(self, name: str, data: bytes) -> None:
        """See `Storage`. Exclusive by a link; on filesystems without links by O_EXCL, and then not always whole."""
        target = self.root / name
        with self._draft(name, data) as draft:
            try:
                os.link(draft, target)
            except OSError as error:
                if isinstance(error, FileExistsError) or error.errno not in _NO_LINKS:
                    raise
                _write_new(target, data)
        sync(target.parent)

    def version(self, name: str) -> str:
        """See `Storage`. Folders cannot tell."""
        (self.root / name).stat()
        return ""

    def replace(self, name: str, data: bytes, version: str) -> None:
        """See `Storage`."""
        self.write(name, data)

    def put(self, source: Path, name: str) -> None:
        """See `Storage`. Moves it, or copies it from another filesystem."""
        target = self.root / name
        make_folder(target.parent)
        sync(source)
        try:
            source.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            draft = _beside(target)
            try:
                shutil.copyfile(source, draft)
                sync(draft)
                draft.replace(target)
            finally:
                draft.unlink(missing_ok=True)
        sync(target.parent)

    def remove_file(self, name: str) -> None:
        """See `Storage`."""
        path = self.root / name
        path.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            sync(path.parent)

    def remove_folder(self, name: str) -> None:
        """See `Storage`."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.root / name)

    @contextmanager
    def _draft(self, name: str, data: bytes) -> Iterator[Path]:
        """The content in a file beside its destination; removed if it is still there at the end."""
        draft = _beside(self.root / name)
        make_folder(draft.parent)
        try:
            _write_new(draft, data)
            yield draft
        finally:
            draft.unlink(missing_ok=True)


def require_size(name: str, size: int, limit: int) -> None:
    """OSError (EFBIG) beyond the limit."""
    if size > limit:
        raise OSError(errno.EFBIG, f"has {size} bytes, at most {limit} are read", name)


def file_digest(path: Path) -> Digest:
    """Of a local file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Digest(file.tell(), sha256)


def make_folder(folder: Path) -> None:
    """With its parents, and all of them on disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    sync(folder.parent)


def sync(path: Path) -> None:
    """Have a file or folder written to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some filesystems know no fsync of folders
            raise
    finally:
        os.close(descriptor)


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
