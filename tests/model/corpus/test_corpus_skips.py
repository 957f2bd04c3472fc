"""What is left out of a folder of text: counted, with examples, and never a reason to fail."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from corpora import everything, made, skipped, texts, write_folder

from model.corpus.listing import wanted
from model.dataset import read_manifest

NOBODY = 65534


def test_unusable_files_are_counted_with_examples(source: Path, tmp_path: Path) -> None:
    (source / "zero.bin").write_bytes(b"abc\0def")
    (source / "latin.txt").write_bytes(b"gr\xfc\xdfe")
    (source / "nothing.txt").write_bytes(b"")
    (source / "blank.txt").write_bytes(b" \n\t\n")
    for number in range(7):
        (source / f"copy{number}.txt").write_bytes((source / "0.txt").read_bytes())
    outside = tmp_path / "secret.txt"
    outside.write_text("outside of the source")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "secret.txt").write_text("outside of the source")
    (source / "out.txt").symlink_to(outside)
    (source / "away").symlink_to(tmp_path / "folder")
    (source / "loop").symlink_to(source)
    (source / "self").symlink_to("self")
    (source / "broken").symlink_to("nowhere")
    (source / "inside.txt").symlink_to("sub/1.txt")
    (source / "zero").symlink_to("/dev/zero")
    os.mkfifo(source / "pipe")
    for name in ("a.zip", "b.TAR.GZ", "c.7z"):
        (source / name).write_bytes(b"PK")
    manifest = made(source, tmp_path / "out")
    assert skipped(manifest) == {
        "archive": 3,
        "binary": 1,
        "undecodable": 1,
        "empty": 2,
        "duplicate": 8,
        "symlink": 4,
        "unreadable": 3,
    }
    reasons = manifest.sources[0].skipped
    assert len(reasons.duplicate.examples) == 5
    assert reasons.binary.examples == ("zero.bin",)
    assert set(reasons.symlink.examples) == {"out.txt", "loop", "away", "zero"}
    assert set(reasons.unreadable.examples) == {"self", "broken", "pipe"}
    assert set(reasons.archive.examples) == {"a.zip", "b.TAR.GZ", "c.7z"}
    assert len(everything(tmp_path / "out", manifest)) == 40
    assert not any("outside" in document for document in everything(tmp_path / "out", manifest))


def test_a_device_file_is_not_read(source: Path, tmp_path: Path) -> None:
    try:
        os.mknod(source / "zero", 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root can make a device file")
    manifest = made(source, tmp_path / "out")
    assert manifest.sources[0].skipped.unreadable.examples == ("zero",)


@contextmanager
def nobody(folder: Path) -> Iterator[None]:
    """Root reads everything: be a user who does not, and who owns `folder`. Others stay who they are."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_files_and_folders_without_permission() -> None:
    """Not in pytest's folder, which is closed to other users."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        source = write_folder(folder / "source", texts(10))
        (source / "sub" / "1.txt").chmod(0)
        (source / "closed").mkdir(mode=0)
        with nobody(folder):
            manifest = made(source, folder / "out")
    assert skipped(manifest) == {"unreadable": 2}
    assert set(manifest.sources[0].skipped.unreadable.examples) == {"sub/1.txt", "closed"}


def test_strange_names_of_files(source: Path, tmp_path: Path) -> None:
    for raw in (b"\xff\xfe.txt", b"a\nb.txt", b"\x1b[31mred.txt", b"[x]*?.txt", b"-o"):
        (source / os.fsdecode(raw)).write_bytes(b"\0")
        (source / "sub" / os.fsdecode(raw)).write_bytes(b"document " + raw.hex().encode())
    manifest = made(source, tmp_path / "out")
    assert set(manifest.sources[0].skipped.binary.examples) == {
        "\ufffd\ufffd.txt",
        "a\ufffdb.txt",
        "\ufffd[31mred.txt",
        "[x]*?.txt",
        "-o",
    }
    assert len(everything(tmp_path / "out", manifest)) == 45
    assert read_manifest(tmp_path / "out") == manifest


def test_a_folder_whose_name_looks_like_a_glob(source: Path, tmp_path: Path) -> None:
    source.rename(tmp_path / "[a]*")
    assert len(everything(tmp_path / "out", made(tmp_path / "[a]*", tmp_path / "out"))) == 40


@pytest.mark.parametrize(
    ("name", "include", "exclude", "result"),
    [
        ("a/b/c.py", [], [], True),
        ("a/b/c.py", ["*.py"], [], True),
        ("a/b/c.txt", ["*.py"], [], False),
        ("test/x/y.py", ["*.py"], ["test/*"], False),
        ("test/x/y.py", ["*.py"], ["test"], False),
        ("test/x/y.py", ["*.py"], ["test/"], False),
        ("json/test/y.py", ["*.py"], ["test/*"], True),
        ("json/test/y.py", ["*.py"], ["*/test"], False),
        ("tester.py", ["*.py"], ["test"], True),
        ("a/b/c.py", ["a"], [], True),
        ("A/b.py", ["a"], [], False),
    ],
)
def test_globs(name: str, include: list[str], exclude: list[str], result: bool) -> None:
    assert wanted(name, include, exclude) is result


def test_globs_choose_files_and_folders(source: Path, tmp_path: Path) -> None:
    (source / "sub" / "deep").mkdir()
    (source / "sub" / "deep" / "x.txt").write_text("deep")
    (source / "note.md").write_text("note")
    manifest = made(source, tmp_path / "out", include=["*.txt"], exclude=["sub/*"])
    assert everything(tmp_path / "out", manifest) == sorted(path.read_text() for path in source.glob("*.txt"))
    assert skipped(manifest) == {}


@pytest.mark.parametrize("pattern", ["*/*.txt", "**/*.txt", "*/../../outside/*.txt"])
def test_a_glob_does_not_climb_out_through_a_link(source: Path, tmp_path: Path, pattern: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("outside of the source")
    (source / "link").symlink_to(outside)
    (source / "sub" / "own.txt").symlink_to("../0.txt")
    if ".." in pattern:
        with pytest.raises(ValueError, match=r"0 usable document\(s\).*skipped: \d symlink"):
            made(source / pattern, tmp_path / "out")
        return
    manifest = made(source / pattern, tmp_path / "out")
    assert not any("outside" in document for document in everything(tmp_path / "out", manifest))
    assert manifest.sources[0].skipped.symlink.examples == ("link" if "**" in pattern else "link/secret.txt",)


def test_the_advice_follows_the_most_frequent_reason(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="skipped: 1 archive; unpack the archives in "):
        made(tmp_path / "a", tmp_path / "out")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_bytes("größe".encode("latin-1"))
    with pytest.raises(ValueError, match="skipped: 1 undecodable; convert the text to UTF-8"):
        made(tmp_path / "b", tmp_path / "out")


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.TGZ", "x.rar"])
def test_an_archive_is_no_source(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match="is an archive: unpack it and give the folder"):
        made(tmp_path / name, tmp_path / "out")


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        made(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no file or folder ~no-such-user/x"):
        made("~no-such-user/x", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no file matches"):
        made(tmp_path / "*.txt", tmp_path / "out")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        made("/dev/null", tmp_path / "out")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        made(tmp_path / "pipe", tmp_path / "out")
    for uri, message in (("nonsense://x", "cannot read nonsense://x"), ("memory://absent", "no file or folder")):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            made(uri, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"pipe"}
