"""Files that are none, or have no end, are refused wherever a folder of weights or a dataset is read."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from model.dataset import DatasetDamaged, read_manifest
from model.files import file_size, read_file
from model.headers import INDEX, SINGLE, read_headers
from model.released import read_released
from model.tokenizer import Tokenizer


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)  # from its folder: Linux takes 107 bytes, and where tests run the way there may be longer


MAKERS: dict[str, Callable[[Path], object]] = {
    "is a device or pipe": os.mkfifo,
    "is a folder": Path.mkdir,
    "is a device or pipe, not a file": lambda path: path.symlink_to("/dev/zero"),
    "device or pipe, not": _socket,
    "is a link that leads to itself": lambda path: path.symlink_to(path.name),
}
ODD = pytest.mark.parametrize(("words", "make"), MAKERS.items(), ids=["pipe", "folder", "device", "socket", "loop"])
pytestmark = pytest.mark.timeout(120)  # a pipe that is opened is waited for for ever


@ODD
@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
def test_no_file(tmp_path: Path, scheme: str, words: str, make: Callable[[Path], object]) -> None:
    make(tmp_path / "odd")
    with pytest.raises(ValueError, match=words) as told:
        read_file(f"{scheme}{tmp_path}/odd", 10)
    assert str(tmp_path / "odd") in str(told.value)
    with pytest.raises(ValueError, match=words):
        file_size(fsspec.filesystem("file"), str(tmp_path / "odd"))


@ODD
def test_every_reader_refuses_it(tmp_path: Path, words: str, make: Callable[[Path], object]) -> None:
    for name in ("config.json", "tokenizer.json", "manifest.json", INDEX):
        make(tmp_path / name)
    with pytest.raises(ValueError, match=words):
        read_released(tmp_path)
    with pytest.raises(ValueError, match=words):
        Tokenizer.load(tmp_path)
    with pytest.raises(DatasetDamaged, match=words):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match=words):
        read_headers(str(tmp_path))
    (tmp_path / INDEX).rmdir() if (tmp_path / INDEX).is_dir() else (tmp_path / INDEX).unlink()
    make(tmp_path / SINGLE)
    if words != "is a link that leads to itself":  # which does not exist, where there is no index
        assert words in read_headers(str(tmp_path)).problems[0]


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
def test_limits_and_what_is_absent(tmp_path: Path, scheme: str) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert read_file(f"{scheme}{tmp_path}/a", 5) == read_file(f"{scheme}{tmp_path}/link", 6) == b"12345"
    with pytest.raises(ValueError, match="a is larger than 4 bytes"):
        read_file(f"{scheme}{tmp_path}/a", 4)
    for absent in ("b", "a/b"):
        with pytest.raises(FileNotFoundError, match=f"there is no file .*{absent}"):
            read_file(f"{scheme}{tmp_path}/{absent}", 4)


def test_other_errors_of_the_system_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "a").write_bytes(b"12345")
    monkeypatch.setattr(Path, "open", broken)
    with pytest.raises(OSError, match="Input/output error"):
        read_file(tmp_path / "a", 9)
