"""Storage on any filesystem that fsspec opens; see `model.checkpoint.storage` for what it promises."""

from __future__ import annotations

import errno
import hashlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from model.checkpoint.storage import Digest, Entry, LocalStorage, require_size

_TRIES = 5
_BLOCK = 16 * 1024 * 1024
_BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci"}
"""Protocols of object stores: they have no folders to make, and making one could make a bucket."""
_REFUSED, _BUSY, _UNKNOWN = {"PreconditionFailed", "412"}, {"ConditionalRequestConflict", "409"}, {"NotImplemented"}
"""What servers call a condition that does not hold, another writer at the same moment, no conditions at all."""


def open_storage(uri: str) -> LocalStorage | RemoteStorage:
    """Connects to nothing yet. ImportError or ValueError for a URI that nothing here can open."""
    fs, root = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    return LocalStorage(Path(root)) if isinstance(fs, LocalFileSystem) else RemoteStorage(fs, root)


class RemoteStorage:
    """Whatever fsspec opens. Exclusive creation is a conditional write on S3 (and where else a filesystem's
    `pipe_file` knows `mode="create"` on its server); elsewhere it is a look and then a write, which two
    processes at the same instant can both pass."""

    def __init__(self, fs: Any, root: str) -> None:  # noqa: ANN401 - fsspec is untyped
        self._fs, self._root = fs, root.rstrip("/")
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        self._is_s3, self._has_folders = "s3" in protocols, not protocols & _BUCKETS

    def entries(self, folder: str) -> dict[str, Entry]:
        """See `Storage`."""
        path, found = self._path(folder), {}
        with _as_os_errors(path):
            try:
                rows = self._fs.ls(path, detail=True, refresh=True)
            except FileNotFoundError:
                return {}
        for row in rows:
            name, is_folder = str(row["name"]), row["type"] == "directory"
            if name.strip("/") != path.strip("/"):
                found[name.rstrip("/").rpartition("/")[2]] = Entry(int(row["size"] or 0), is_folder)
            elif not is_folder and not name.endswith("/"):  # with one it is a marker that stands for a folder
                raise NotADirectoryError(errno.ENOTDIR, "is a file, not a folder", path)
        return found

    def read(self, name: str, limit: int) -> bytes:
        """See `Storage`."""
        path = self._path(name)
        with _as_os_errors(path):
            require_size(name, int(self._fs.info(path)["size"] or 0), limit)
            data: bytes = self._fs.cat_file(path)
        return data

    def digest(self, name: str) -> Digest:
        """See `Storage`."""
        path, total, content = self._path(name), 0, hashlib.sha256()
        with _as_os_errors(path), self._fs.open(path, "rb", block_size=_BLOCK) as stream:
            while piece := stream.read(_BLOCK):
                content.update(piece)
                total += len(piece)
        return Digest(total, content.hexdigest())

    def write(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        path = self._path(name)
        with _as_os_errors(path):
            self._make_parent(path)
            self._fs.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        path = self._path(name)
        with _as_os_errors(path):
            self._make_parent(path)
            if not self._creates() or not self._conditional(path, data, mode="create"):
                if self._fs.exists(path):
                    raise FileExistsError(errno.EEXIST, "exists", path)
                self._fs.pipe_file(path, data)

    def version(self, name: str) -> str:
        """See `Storage`."""
        path = self._path(name)
        with _as_os_errors(path):
            return str(self._fs.info(path).get("ETag") or "")

    def replace(self, name: str, data: bytes, version: str) -> None:
        """See `Storage`. Only S3 can tell."""
        path = self._path(name)
        with _as_os_errors(path):
            if not self._is_s3 or not version or not self._conditional(path, data, IfMatch=version):
                self._fs.pipe_file(path, data)

    def put(self, source: Path, name: str) -> None:
        """See `Storage`."""
        path = self._path(name)
        with _as_os_errors(path):
            self._make_parent(path)
            self._fs.put_file(str(source), path)

    def get(self, name: str, target: Path) -> None:
        """Copy a file to this machine."""
        path = self._path(name)
        with _as_os_errors(path):
            self._fs.get_file(path, str(target))

    def remove_file(self, name: str) -> None:
        """See `Storage`."""
        path = self._path(name)
        with _as_os_errors(path), suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def remove_folder(self, name: str) -> None:
        """See `Storage`."""
        path = self._path(name)
        with _as_os_errors(path), suppress(FileNotFoundError):
            self._fs.rm(path, recursive=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _make_parent(self, path: str) -> None:
        if self._has_folders:
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _creates(self) -> bool:
        """Whether `mode` is a word to this filesystem; others would swallow it and overwrite."""
        method = getattr(self._fs, "_pipe_file", self._fs.pipe_file)
        return "mode" in inspect.signature(method).parameters

    def _conditional(self, path: str, data: bytes, **condition: str) -> bool:
        """Write under a condition; FileExistsError if it does not hold, False if the server knows no conditions."""
        for _ in range(_TRIES):
            try:
                self._fs.pipe_file(path, data, **condition)
            except OSError as error:
                code = _server_code(error)
                if isinstance(error, FileExistsError) or code in _REFUSED:
                    raise FileExistsError(errno.EEXIST, "another writer was first", path) from error
                if code in _UNKNOWN:
                    return False
                if code not in _BUSY:
                    raise
            else:
                return True
        raise OSError(errno.EBUSY, f"other writers came between {_TRIES} times", path)


@contextmanager
def _as_os_errors(path: str) -> Iterator[None]:
    """Client libraries have errors of their own, for a server that does not answer, say."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", path) from error


def _server_code(error: OSError) -> str | None:
    """What the server called the error (s3fs keeps it as the cause)."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code")) if isinstance(response, dict) else None
