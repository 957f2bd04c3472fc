"""Finds the files of a source: on this machine or on any file system that fsspec knows.

Invariant: nothing outside a source is read: links that lead out of it are left out, and so is whatever is not a regular
file (a pipe would wait for ever). The listing is sorted, so that the same files give the same work.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from model.corpus.mixture import Source
from model.corpus.skips import Skips
from model.files import local_path

ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
RECORDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class Member:
    """One file of a source."""

    source: int
    """Place of the source in the mixture."""
    name: str
    """Relative to the source, for messages."""
    url: str
    """A path, or a URL of fsspec."""
    size: int
    stamp: str
    """Changes when the file does: time of modification, or what a remote store says of its version."""
    format: str
    """text, jsonl, parquet or arrow."""
    compression: str | None
    alone: bool = False
    """The only file of its source: text in it is cut into documents."""


def list_source(index: int, source: Source, skips: Skips) -> list[Member]:
    """All files of a source that are to be read; FileNotFoundError or ValueError where there is none."""
    path = local_path(source.uri)
    with client_errors(source.uri):
        found = list(
            _list_local(source, Path(os.path.expanduser(path)), skips)
            if path is not None
            else _list_remote(source, skips)
        )
    members: list[Member] = []
    for name, url, size, stamp, alone in found:
        if name.lower().endswith(ARCHIVES):
            if alone:
                raise ValueError(f"{source.uri} is an archive: unpack it and give the folder")
            skips.add("archive", name)
            continue
        format, compression = _format(source, name)
        members.append(Member(index, name, url, size, stamp, format, compression, alone))
    return members


def open_member(url: str) -> Any:  # noqa: ANN401 - fsspec is untyped
    """The file, for reading bytes."""
    path = local_path(url)
    if path is not None:
        return path.open("rb")
    return io.BufferedReader(fsspec.open(url, "rb").open())  # not all of fsspec's files can read a line up to a limit


def stamp_of(url: str) -> tuple[int, str]:
    """Size and stamp of a file as they are now."""
    path = local_path(url)
    if path is not None:
        state = path.stat()
        return state.st_size, str(state.st_mtime_ns)
    with client_errors(url):
        fs, inner = fsspec.core.url_to_fs(url)
        info = fs.info(inner)
    return _size(info, url), _version(info)


@contextmanager
def client_errors(url: str) -> Iterator[None]:
    """OSError for what client libraries raise when a server does not answer, or refuses; not for this machine."""
    try:
        yield
    except (OSError, ValueError, ImportError):
        raise
    except Exception as error:
        if local_path(url) is not None:
            raise
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", url) from error


def wanted(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether the globs choose a file of this relative name; no `include` means all."""
    return (not include or matches(name, include)) and not matches(name, exclude)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches the name, a folder above it, or (as `folder/*`) the folder itself."""
    return any(
        fnmatch.fnmatchcase(name, pattern)
        or fnmatch.fnmatchcase(name, pattern.rstrip("/") + "/*")
        or fnmatch.fnmatchcase(name + "/", pattern)
        for pattern in patterns
    )


def _format(source: Source, name: str) -> tuple[str, str | None]:
    """Format and compression, by the ending of the name unless the source says more."""
    path = PurePosixPath(name.lower())
    compression = COMPRESSIONS.get(path.suffix)
    stem = PurePosixPath(path.stem) if compression else path
    format: str
    if source.format in ("text", "jsonl", "parquet"):
        format = source.format
    elif source.format == "datasets" or stem.suffix == ".arrow":
        format = "arrow"
    else:
        format = RECORDS.get(stem.suffix, "text")
    return format, None if format in ("parquet", "arrow") else compression


# ------------------------------------------------------------------ this machine
_Found = tuple[str, str, int, str, bool]
"""Name, address, size, stamp, whether it is the only one."""


def _list_local(source: Source, path: Path, skips: Skips) -> Iterator[_Found]:
    if glob.has_magic(str(path)) and not path.exists():
        yield from _expand(source, path, skips)
        return
    real = Path(os.path.realpath(path))
    if not real.exists():
        raise FileNotFoundError(f"no file or folder {path}")
    if real.is_file():
        if wanted(real.name, source.include, source.exclude):
            yield _local(real, real.name, alone=True)
    elif not real.is_dir():
        raise ValueError(f"{path} is neither a file nor a folder")
    elif names := _datasets_files(str(real), source):
        for name in names:
            if (kind := _unusable(real / name, real)) is not None:
                skips.add(kind, _printable(name))  # type: ignore[arg-type]
            else:
                yield _local(real / name, _printable(name))
    else:
        for file, name in _walk(real, source, skips):
            yield _local(file, name)


def _local(path: Path, name: str, *, alone: bool = False) -> _Found:
    size, stamp = stamp_of(str(path))
    return name, str(path), size, stamp, alone


def _expand(source: Source, pattern: Path, skips: Skips) -> Iterator[_Found]:
    """Files that a glob names, within the folder before its first wildcard."""
    parts = pattern.absolute().parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root = Path(os.path.realpath(Path(*parts[:fixed])))
    if "**" in parts:
        yield from _expand_below(source, root, parts[fixed:], pattern, skips)
        return
    names = sorted(glob.glob(str(Path(*parts[fixed:])), root_dir=root), key=os.fsencode)
    if not names:
        raise FileNotFoundError(f"no file matches {pattern}")
    for name in names:
        path, label = root / name, _printable(name)
        if path.is_dir() or not wanted(label, source.include, source.exclude):
            continue
        if (kind := _unusable(path, root)) is not None:
            skips.add(kind, label)  # type: ignore[arg-type]
        else:
            yield _local(path, label)


def _expand_below(source: Source, root: Path, parts: tuple[str, ...], pattern: Path, skips: Skips) -> Iterator[_Found]:
    """A glob with `**`, which stands for any folders; links to folders are not followed, they may lead in circles."""
    wanted_name = _glob_expression(parts)
    found = False
    for path, name in _walk(root, source, skips):
        if wanted_name.fullmatch(name):
            found = True
            yield _local(path, name)
    if not found:
        raise FileNotFoundError(f"no file matches {pattern}")


def _glob_expression(parts: tuple[str, ...]) -> re.Pattern[str]:
    """What the names below the glob's folder must look like; as in a shell, `*` finds no hidden file."""
    text = ""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            text += r"(?:(?!\.)[^/]+/)*" + (r"(?!\.)[^/]+" if last else "")
            continue
        one = fnmatch.translate(part).removeprefix("(?s:").removesuffix(r")\Z").replace(".*", "[^/]*")
        text += ("" if part.startswith(".") else r"(?!\.)") + one + ("" if last else "/")
    return re.compile(text)


def _walk(root: Path, source: Source, skips: Skips) -> Iterator[tuple[Path, str]]:
    """Regular files below `root` that the globs choose, with their relative names, in a fixed order."""

    def label(path: str | Path) -> str:
        return _printable(os.path.relpath(path, root))

    def unreadable(error: OSError) -> None:
        skips.add("unreadable", label(error.filename))

    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        base = Path(folder)
        for name in list(subfolders):
            if matches(label(base / name), source.exclude):
                subfolders.remove(name)
            elif (base / name).is_symlink():
                subfolders.remove(name)
                skips.add("symlink", label(base / name))
        subfolders.sort(key=os.fsencode)
        for name in sorted(names, key=os.fsencode):
            path = base / name
            if not wanted(label(path), source.include, source.exclude):
                continue
            if (kind := _unusable(path, root)) is not None:
                skips.add(kind, label(path))  # type: ignore[arg-type]
            else:
                yield path, label(path)


def _unusable(path: Path, root: Path) -> str | None:
    """Why a file cannot be read, if it cannot; a link may be any part of its path."""
    if not Path(os.path.realpath(path)).is_relative_to(root):
        return "symlink"
    return None if path.is_file() and os.access(path, os.R_OK) else "unreadable"


def _printable(name: str) -> str:
    """A name that is not UTF-8, or has a line feed in it, is still a name; it only must be printable."""
    known = os.fsencode(name).decode("utf-8", "replace").replace(os.sep, "/")
    return "".join(character if character.isprintable() else "\ufffd" for character in known)


# ------------------------------------------------------------------ anywhere else
def _list_remote(source: Source, skips: Skips) -> Iterator[_Found]:
    try:
        fs, path = fsspec.core.url_to_fs(source.uri)
    except (ImportError, ValueError) as error:
        raise ValueError(f"cannot read {source.uri}: {error}") from None
    if glob.has_magic(path):
        found, root = (
            fs.glob(path, detail=True),
            path[: path.index(next(c for c in path if c in "*?["))].rpartition("/")[0],
        )
    elif fs.isfile(path):
        name = path.rpartition("/")[2]
        if wanted(name, source.include, source.exclude):
            info = fs.info(path)
            yield _printable(name), fs.unstrip_protocol(path), _size(info, source.uri), _version(info), True
        return
    else:
        if names := _datasets_files(fs.unstrip_protocol(path), source):
            found = {f"{path.rstrip('/')}/{name}": fs.info(f"{path.rstrip('/')}/{name}") for name in names}
        else:
            found = fs.find(path, detail=True)
        root = path.rstrip("/")
    if not found:
        raise FileNotFoundError(f"no file or folder {source.uri}")
    for inner in sorted(found):
        info = found[inner]
        name = inner.removeprefix(root).lstrip("/")
        if info.get("type") != "file" or not wanted(name, source.include, source.exclude):
            continue
        if ".." in name.split("/"):
            skips.add("unreadable", _printable(name))
            continue
        url = fs.unstrip_protocol(inner)
        yield _printable(name), url, _size(info, url), _version(info), False


def _size(info: dict[str, Any], url: str) -> int:
    if info.get("size") is None:
        raise ValueError(f"{url} does not tell its size: copy it to this machine first")
    return int(info["size"])


def _version(info: dict[str, Any]) -> str:
    """The best of what a store tells of a file's version; a listing and a look at one file differ in the rest."""
    for key in ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "created", "VersionId"):
        if (value := info.get(key)) is not None:
            return str(value.timestamp() if isinstance(value, datetime) else value)
    return ""


# ------------------------------------------------------------------ `datasets` on disk
def _datasets_files(folder: str, source: Source) -> list[str]:
    """Arrow files of a folder that the `datasets` library has written; empty if it is none.

    ValueError for a folder that names files outside of itself, and for a split that it does not have.
    """
    splits = _json(f"{folder}/dataset_dict.json")
    if splits is None:
        return _arrow_files(folder, "", source)
    listed = splits.get("splits")
    if not isinstance(listed, list) or not listed:
        return _arrow_files(folder, "", source)  # some other file of that name
    names = [str(name) for name in listed]
    wanted_split = source.split or "train"
    if wanted_split not in names:
        raise ValueError(f"{source.uri} has no split {wanted_split!r}: choose one of {', '.join(names)} with `split`")
    _require_plain(wanted_split, folder)
    return _arrow_files(f"{folder}/{wanted_split}", f"{wanted_split}/", source)


def _arrow_files(folder: str, prefix: str, source: Source) -> list[str]:
    state = _json(f"{folder}/state.json")
    if state is None or "_data_files" not in state:
        if source.format == "datasets" or prefix:
            raise ValueError(f"{folder} is no dataset of the `datasets` library: it has no state.json")
        return []
    if state.get("_indices_data_files"):
        raise ValueError(f"{folder} holds a selection: write it with `flatten_indices().save_to_disk(...)`")
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (TypeError, KeyError):
        raise ValueError(f"{folder}/state.json does not name the dataset's files: write it again") from None
    for name in names:
        _require_plain(name, folder)
    return [prefix + name for name in names]


def _require_plain(name: str, folder: str) -> None:
    if not name or "/" in name or "\\" in name or "\0" in name or name in (".", ".."):
        raise ValueError(f"{folder} names a file outside of itself: {name!r}")


def _json(url: str) -> dict[str, Any] | None:
    path = local_path(url)
    if path is not None and not path.is_file():
        return None
    try:
        with open_member(url) as file:
            content = json.loads(file.read(1 << 22))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
