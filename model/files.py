"""Reads files that anybody may have put there: never one that does not end, never more than a limit. No torch."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def local_path(uri: str | Path) -> Path | None:
    """The path of a local file or folder (`file://` too); None for any other URL."""
    text = str(uri)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return None if "://" in text else Path(text)


def make_durable(path: Path) -> None:
    """A file, or the names in a folder, stand even if the machine loses its power now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(uri: str | Path, limit: int) -> bytes:
    """All bytes of a file: a path or any URL that fsspec knows.

    FileNotFoundError if there is none; ValueError for what is no file (a folder, pipe, socket or device), for more than
    `limit` bytes and for a URL that fsspec does not know; ImportError and OSError as they come.
    """
    path = local_path(uri)
    try:
        raw = _remote(str(uri), limit) if path is None else _local(path, limit)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there is no file {uri}") from None
    except ValueError as error:
        raise ValueError(f"{uri} {error}") from None
    if len(raw) > limit:
        raise ValueError(f"{uri} is larger than {limit} bytes: this is not what should be there")
    return raw


def _local(path: Path, limit: int) -> bytes:
    with _links_end():
        mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise ValueError(_no_file(folder=stat.S_ISDIR(mode)))
    with path.open("rb") as file:
        return file.read(limit + 1)


def _remote(uri: str, limit: int) -> bytes:
    import fsspec  # late: only URLs need it

    fs, name = fsspec.core.url_to_fs(uri)
    file_size(fs, name)
    return bytes(fs.cat_file(name, start=0, end=limit + 1))


def file_size(fs: Any, path: str) -> int:  # noqa: ANN401 - fsspec is untyped
    """Bytes of a file of fsspec's; ValueError for folders and for what may never end or never begin, such as pipes."""
    with _links_end():
        info = fs.info(path)
    if info["type"] != "file":
        raise ValueError(_no_file(folder=info["type"] == "directory"))
    return int(info["size"])


def _no_file(*, folder: bool) -> str:
    return f"is a {'folder' if folder else 'device or pipe'}, not a file"


@contextmanager
def _links_end() -> Iterator[None]:
    """ValueError for a link that leads to itself."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ValueError("is a link that leads to itself") from None
