"""The programs of the API server that tests ask are found, or fetched and checked, or said to be missing."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from support import envtest
from support.envtest import NOT_RUN, PROGRAMS, VERSION, find_assets, not_run
from support.wire import Gone, Reply, wire

NOWHERE = "http://127.0.0.1:9"


def programs(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in PROGRAMS:
        (folder / name).touch(mode=0o755)
    return folder


def test_the_environment_decides(tmp_path: Path) -> None:
    named = programs(tmp_path / "named")
    programs(tmp_path / ".local/share/kubebuilder-envtest/k8s/1.34.1-linux-amd64")
    assert find_assets({"KUBEBUILDER_ASSETS": str(named), "HOME": str(tmp_path)}) == named
    (named / "etcd").unlink()
    with pytest.raises(AssertionError, match="which lacks etcd"):
        find_assets({"KUBEBUILDER_ASSETS": str(named), "HOME": str(tmp_path)})


@pytest.fixture(autouse=True)
def a_machine_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this one has."""
    monkeypatch.setattr(envtest, "CUSTOMARY", tmp_path / "nothing")


def test_customary_places_are_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = programs(tmp_path / "bin")
    assert find_assets({"HOME": str(tmp_path), "PATH": str(installed)}, NOWHERE) == installed
    programs(tmp_path / ".local/share/kubebuilder-envtest/k8s/1.33.0-linux-amd64")
    newest = programs(tmp_path / ".local/share/kubebuilder-envtest/k8s/1.34.1-linux-amd64")
    assert find_assets({"HOME": str(tmp_path), "PATH": str(installed)}, NOWHERE) == newest
    monkeypatch.setattr(envtest, "CUSTOMARY", programs(tmp_path / "first"))
    assert find_assets({"HOME": str(tmp_path), "PATH": str(installed)}, NOWHERE) == tmp_path / "first"


def archive() -> bytes:
    """As it is released, with something in it that nobody wants."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as file:
        for name in (*(f"controller-tools/envtest/{program}" for program in PROGRAMS), "../outside"):
            member = tarfile.TarInfo(name)
            member.size = 3
            file.addfile(member, io.BytesIO(b"run"))
    return made.getvalue()


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The archive of this machine, whichever that is."""
    made = archive()
    monkeypatch.setattr(envtest, "kind", lambda: "linux-amd64")
    monkeypatch.setitem(envtest.SHA512, "linux-amd64", hashlib.sha512(made).hexdigest())
    return made


def test_they_are_fetched_once(tmp_path: Path, pinned: bytes) -> None:
    env = {"HOME": str(tmp_path)}
    with wire() as server:
        server.replies(Reply(200, pinned))
        found = find_assets(env, server.url)
        assert found == tmp_path / ".cache" / f"envtest-{VERSION}"
        assert find_assets(env, server.url) == found
        assert server.lines == [f"GET /envtest-v{VERSION}/envtest-v{VERSION}-linux-amd64.tar.gz"]
    assert sorted(path.name for path in found.iterdir()) == sorted(PROGRAMS)
    assert all(path.stat().st_mode & 0o111 for path in found.iterdir())
    assert [path.name for path in found.parent.iterdir()] == [found.name], "nothing is left beside it"


def test_another_archive_is_not_unpacked(tmp_path: Path, pinned: bytes) -> None:
    with wire() as server:
        server.replies(Reply(200, pinned + b"!"))
        with pytest.raises(AssertionError, match="SHA-512"):
            find_assets({"HOME": str(tmp_path)}, server.url)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("answer", [Reply(404), Reply(200, b"half", cut=True), Gone()])
def test_nothing_is_found_where_nothing_is_to_be_had(tmp_path: Path, pinned: bytes, answer: Reply | Gone) -> None:
    with wire() as server:
        server.replies(answer)
        assert find_assets({"HOME": str(tmp_path)}, server.url) is None
    assert find_assets({"HOME": str(tmp_path)}, NOWHERE) is None


def test_what_did_not_run_is_counted_loudly() -> None:
    assert not_run([f"Skipped: {NOT_RUN}", "Skipped: no browser", f"Skipped: {NOT_RUN}"]) == (
        "2 tests that need a Kubernetes API server did NOT run: set KUBEBUILDER_ASSETS"
    )
    assert not_run(["Skipped: no browser"]) == ""
