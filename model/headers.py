"""What a folder of safetensors says about itself: names, types and shapes of its tensors. No torch.

Read from the headers alone, so the controller can refuse weights before anything starts. Nothing is trusted: an
index names files of its own folder only, and a header must describe exactly the bytes that follow it. Pickle files
are never opened. Format: 8 bytes length (little-endian), JSON header, data.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec

from model.files import file_size, read_file

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
MAX_HEADER = 100_000_000
"""Bytes, as in the library of the format."""
_MAX_INDEX = 1 << 27
_SAMPLE = 1 << 16
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class Stored:
    """One tensor in a file."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Where its bytes begin, from the beginning of the file."""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Headers:
    """All tensors of a folder."""

    uri: str
    tensors: Mapping[str, Stored]
    problems: tuple[str, ...]
    """What is wrong with the files, whatever model they are for; `tensors` has none of a file that cannot be
    used."""
    unread: frozenset[str]
    """Tensors that the index places in such files."""
    fingerprint: str
    """SHA-256 of all headers and of samples of each file's data: changes when the weights do."""

    @property
    def file_system(self) -> tuple[Any, str]:
        """fsspec's, and the folder in it."""
        fs, root = fsspec.core.url_to_fs(self.uri)
        return fs, root


def is_weights(uri: str) -> bool:
    """Whether a folder or URL holds weights that were written to their end: a run's index comes last."""
    fs, root = fsspec.core.url_to_fs(uri.rstrip("/") or uri)
    return bool(fs.exists(f"{root}/config.json")) and any(fs.exists(f"{root}/{name}") for name in (INDEX, SINGLE))


def read_headers(uri: str) -> Headers:
    """Of `model.safetensors.index.json` and the files that it names, or of a single `model.safetensors`.

    FileNotFoundError if neither is there, ValueError for an index that cannot be read; all else is in `problems`.
    """
    uri = uri.rstrip("/")
    fs, root = fsspec.core.url_to_fs(uri)
    where = _index(fs, root, uri)
    tensors: dict[str, Stored] = {}
    problems: list[str] = []
    bad: set[str] = set()
    digest = hashlib.sha256()
    for file in sorted(set(where.values())) or [SINGLE]:
        try:
            held = _file(fs, root, file, digest)
        except (ValueError, FileNotFoundError, PermissionError) as error:
            problems.append(f"{shown(file)}: {_why(error)}")
            bad.add(file)
            continue
        twice = tensors.keys() & held.keys()
        problems += [f"{shown(name)}: both in {tensors[name].file} and in {file}" for name in sorted(twice)]
        tensors |= held
    unread = {name for name, file in where.items() if file in bad}
    problems += [
        f"{shown(name)}: the index says that it is in {shown(file)}, but it is not"
        for name, file in sorted(where.items())
        if name not in unread and (name not in tensors or tensors[name].file != file)
    ]
    if where:
        nameless = sorted(tensors.keys() - where.keys())
        problems += [f"{shown(name)}: it is in {tensors.pop(name).file}, but not in the index" for name in nameless]
    return Headers(uri, tensors, tuple(problems), frozenset(unread), digest.hexdigest())


def shown(name: str) -> str:
    """A name out of a file, for a message: short, and harmless to a terminal."""
    return name[:200] if name.isprintable() else repr(name[:200])


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return "is missing" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
    return str(error)


def _index(fs: Any, root: str, uri: str) -> dict[str, str]:  # noqa: ANN401 - fsspec is untyped
    """File of each tensor; empty where there is a single file without an index."""
    try:
        raw = read_file(f"{uri}/{INDEX}", _MAX_INDEX)
    except FileNotFoundError:
        if fs.exists(f"{root}/{SINGLE}"):
            return {}
        raise FileNotFoundError(f"no weights in {uri}: neither {INDEX} nor {SINGLE} is there") from None
    try:
        where = json.loads(raw)["weight_map"]
        if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
            raise TypeError("weight_map is not a table of names")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{uri}/{INDEX} is not an index of weights: {type(error).__name__}: {error}") from None
    for file in set(where.values()):
        if "/" in file or "\\" in file or "\0" in file or not file.endswith(".safetensors"):
            raise ValueError(f"{uri}/{INDEX} names {file[:200]!r}: only .safetensors files of its own folder are read")
    return dict(where)


def _file(fs: Any, root: str, file: str, digest: Any) -> dict[str, Stored]:  # noqa: ANN401
    """The tensors of one file; ValueError if its header is not one, or does not fit the file."""
    path = f"{root}/{file}"
    size = file_size(fs, path)
    length = int.from_bytes(fs.cat_file(path, start=0, end=min(8, size)), "little")
    if size < 8 or length > min(MAX_HEADER, size - 8):
        raise ValueError(
            f"has {size} bytes, its header should have {length} (at most {MAX_HEADER}): damaged or cut off"
        )
    raw = fs.cat_file(path, start=8, end=8 + length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise ValueError(f"its header is a JSON {type(header).__name__}, not an object")
    begin = 8 + length
    held = {name: _stored(file, name, entry, begin) for name, entry in header.items() if name != "__metadata__"}
    _require_whole(held, begin, size)
    digest.update(f"{file}:{size}:{hashlib.sha256(raw).hexdigest()}".encode())
    for start in sorted({begin, begin + (size - begin) // 2, max(begin, size - _SAMPLE)}):
        digest.update(fs.cat_file(path, start=start, end=min(size, start + _SAMPLE)))
    return held


def _stored(file: str, name: str, entry: object, begin: int) -> Stored:
    """One entry of a header."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, stop]} if (
            dtype in ITEM_BYTES and len(shape) <= _MAX_DIMENSIONS
        ):
            numbers = (*shape, start, stop)
            if all(type(number) is int and number >= 0 for number in numbers):
                stored = Stored(file, dtype, tuple(shape), begin + start)
                if stored.size == stop - start:
                    return stored
    raise ValueError(f"its header describes {shown(name)} as {str(entry)[:200]}, which cannot be")


def _require_whole(held: dict[str, Stored], begin: int, size: int) -> None:
    """The tensors must follow each other without gaps, to the end of the file."""
    end = begin
    for name, stored in sorted(held.items(), key=lambda item: (item[1].start, item[1].size)):
        if stored.start != end:
            raise ValueError(
                f"its header lets {shown(name)} begin at byte {stored.start}, the one before ends at {end}"
            )
        end += stored.size
    if end != size:
        raise ValueError(f"has {size} bytes, its header describes {end}: {'cut off' if size < end else 'damaged'}")
