"""Writing and reading checkpoints; storage that lies, fills up or fails; incidents."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from support.checkpoints import (
    KEY,
    TAG,
    TOPOLOGY,
    claimed,
    content,
    fetched,
    flip_a_bit,
    identity,
    manifest_for,
    newest_step,
    save,
    upload,
)

import model.checkpoint.reading
from model.checkpoint import CheckpointError, Fenced, Store
from model.checkpoint.remote import open_storage
from model.checkpoint.storage import LocalStorage


def test_the_newest_comes_back_as_it_was(store: Store, root: Path, tmp_path: Path) -> None:
    found, problems = store.newest()
    assert found is not None
    assert problems == []
    assert (found.manifest.step, found.manifest.tokens, found.manifest.epoch) == (10, 1000, 1)
    assert found.manifest.topology == TOPOLOGY
    assert found.folder == str(root / "checkpoints/step-10")
    assert (found.tag, store.tag) == (TAG, TAG)
    assert fetched(store, found, tmp_path / "unused") == content(10)
    assert not (tmp_path / "unused").exists(), "what is here already is not copied"
    # nothing is left over but the files and the manifest
    assert sorted(p.name for p in (root / "checkpoints/step-10").iterdir()) == [TAG, "manifest.json"]
    assert sorted(p.name for p in (root / "checkpoints").iterdir()) == ["fence", "step-10", "step-5"]


def test_empty_storage_has_no_checkpoint(root: Path) -> None:
    store = Store(str(root), identity(), KEY)
    assert store.newest() == (None, [])
    assert store.steps() == []
    assert not root.exists(), "looking makes nothing"


def test_steps_are_ordered_as_numbers(store: Store) -> None:
    save(store, 100)
    save(store, 20)
    assert newest_step(store) == 100
    assert store.steps() == [5, 10, 20, 100]


def test_file_uris_are_local(root: Path) -> None:
    store = claimed(f"file://{root}/")
    assert save(store, 5) == f"file://{root}/checkpoints/step-5"
    found, _ = store.newest()
    assert found is not None
    assert store.fetch(found, Path("unused")) == root / "checkpoints/step-5"


def test_files_below_the_staging_folder_come_too_but_never_two_of_one_name(store: Store, root: Path) -> None:
    """DeepSpeed writes into a folder below the one that it is given."""
    folder = store.staging()
    (folder / store.tag).mkdir()
    (folder / store.tag / "x.pt").write_bytes(b"x")
    assert [file.name for file in store.upload(15, folder)] == ["x.pt"]
    assert (root / "checkpoints/step-15" / TAG / "x.pt").read_bytes() == b"x"
    folder = store.staging()
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "x.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="two files of one name"):
        store.upload(16, folder)
    assert not folder.exists()


# ------------------------------------------------------------------- publishing
def test_what_is_published_is_never_written_again(store: Store, root: Path) -> None:
    manifest = store.verify(10)
    assert store.publish(manifest) == f"{root}/checkpoints/step-10", "a write whose answer was lost"
    assert store.publish(manifest.model_copy(update={"created": 9.0})) == f"{root}/checkpoints/step-10"
    with pytest.raises(CheckpointError, match="step 10 has been published by this writer, with other content"):
        store.publish(manifest.model_copy(update={"tokens": 7}))
    folder = store.staging()
    (folder / "rank-0.pt").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="cannot be written again"):
        store.upload(10, folder)
    assert not folder.exists()
    store.discard(10)
    assert store.verify(10) == manifest


def test_a_step_written_again_by_a_newer_writer_replaces_the_older(store: Store, root: Path) -> None:
    flip_a_bit(root / "checkpoints/step-10")
    newer = claimed(root, 1, "b")
    save(newer, 10)
    assert newer.verify(10).epoch == 2
    newer.sweep()
    assert newer.verify(10).epoch == 2
    third = claimed(root, 2, "c")
    third.sweep()
    assert sorted(p.name for p in (root / "checkpoints/step-10").iterdir()) == ["1-b-2", "manifest.json"]
    assert newest_step(third) == 10


def test_a_damaged_manifest_is_replaced(store: Store, root: Path) -> None:
    newer = claimed(root, 1, "b")
    files = upload(newer, 10)
    (root / "checkpoints/step-10/manifest.json").write_text("{")
    newer.publish(manifest_for(newer, 10, files))
    assert newer.verify(10).epoch == 2


def test_a_manifest_of_another_writer_is_not_published(store: Store, root: Path) -> None:
    manifest = store.verify(10)
    newer = claimed(root, 1, "b")
    with pytest.raises(AssertionError, match="another writer"):
        newer.publish(manifest)


def test_discard_removes_own_files_only(store: Store, root: Path) -> None:
    upload(store, 15)
    newer = claimed(root, 2, "b")
    upload(newer, 15)
    newer.discard(15)
    assert [p.name for p in (root / "checkpoints/step-15").iterdir()] == [TAG]
    store.discard(15)
    assert not (root / "checkpoints/step-15").exists()
    store.discard(15)
    store.discard(10)
    assert newest_step(newer) == 10


# ------------------------------------------------------------------- storage that lies, fills up, is cut off
def test_what_the_storage_changed_is_noticed_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = LocalStorage.put

    def lie(self: LocalStorage, source: Path, name: str) -> None:
        source.write_bytes(source.read_bytes()[:-1] + b"!")
        before(self, source, name)

    monkeypatch.setattr(LocalStorage, "put", lie)
    with pytest.raises(
        CheckpointError, match=r"rank-0\.pt was written with 401 bytes, but .* gives other content back"
    ):
        upload(store, 15)
    monkeypatch.setattr(LocalStorage, "put", lambda self, source, name: (self.root / name).parent.mkdir(parents=True))
    with pytest.raises(OSError, match="rank-0"):
        upload(store, 16)


def test_a_full_disk_leaves_the_last_good_one(store: Store, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        folder = store.staging()
        (folder / "rank-0.pt").write_bytes(b"data")
        with pytest.raises(OSError, match="No space left"):
            store.upload(15, folder)
    assert not folder.exists()
    files = upload(store, 15)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            store.publish(manifest_for(store, 15, files))
    assert newest_step(store) == 10
    store.discard(15)
    assert store.steps() == [5, 10]
    assert sorted(p.name for p in (root / "checkpoints").iterdir()) == ["fence", "step-10", "step-5"]
    save(store, 15)
    assert newest_step(store) == 15


def test_a_staging_folder_on_another_filesystem_is_copied(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path.replace

    def across(self: Path, target: Path) -> Path:
        if ".staging" in str(self):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return before(self, target)

    monkeypatch.setattr(Path, "replace", across)
    save(store, 15)
    assert newest_step(store) == 15
    assert sorted(p.name for p in (root / "checkpoints/step-15" / TAG).iterdir()) == ["rank-0.pt", "rank-1.pt"]


def test_filesystems_without_links(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    store = claimed(root)
    save(store, 5)
    save(claimed(root, 1, "b"), 10)
    assert newest_step(store) == 10
    with pytest.raises(FileExistsError):
        LocalStorage(root).create("checkpoints/fence/00000001.json", b"")


# ------------------------------------------------------------------- incidents
INCIDENTS = [{"step": 7, "kind": "loss-spike", "skipped": [7, 8]}, {"step": 9, "kind": "ä", "z": 0.1}]


def test_incidents_come_back(store: Store, root: Path) -> None:
    assert store.read_incidents() == []
    store.write_incidents(INCIDENTS[:1])
    store.write_incidents(INCIDENTS)
    assert claimed(root, 2).read_incidents() == INCIDENTS
    with pytest.raises(Fenced):
        store.write_incidents([])


def test_incidents_are_replaced_whole(store: Store, root: Path) -> None:
    store.write_incidents(INCIDENTS[:1])
    path, other = root / "checkpoints/incidents.json", root / "the same file"
    other.hardlink_to(path)
    before = path.read_bytes()
    store.write_incidents(INCIDENTS)
    assert other.read_bytes() == before, "a new file, not new content in the old one"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b"7", b"8", 1),
        lambda data: data[:-3],
        lambda data: b"",
        lambda data: b"\xff\x00",
        lambda data: b"[" * 100_000,
        lambda data: b"[]",
        lambda data: b"{}",
        lambda data: data.replace(b"signature", b"signaturf"),
        lambda data: data.replace(b"job-1", b"job-2"),
        lambda data: b'{"job": "job-1", "incidents": [], "signature": 5}',
        lambda data: b'{"job": "job-1", "incidents": [], "signature": "\\ud800"}',
    ],
)
def test_changed_incidents_are_refused_with_advice(store: Store, root: Path, damage: Callable[[bytes], bytes]) -> None:
    store.write_incidents(INCIDENTS)
    path = root / "checkpoints/incidents.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="move it away"):
        store.read_incidents()


def test_incidents_of_another_job_or_key_are_refused(store: Store, root: Path) -> None:
    store.write_incidents(INCIDENTS)
    for other in (Store(str(root), identity(), b"x" * 32), Store(str(root), identity(job="job-2"), KEY)):
        with pytest.raises(CheckpointError, match=r"incidents\.json"):
            other.read_incidents()


# ------------------------------------------------------------------- threads, remote storage
def test_a_background_thread_may_do_it_all(store: Store, root: Path) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            save(store, 15)
            store.prune(1, 15)
        except BaseException as error:  # noqa: BLE001 - told by the test
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
    assert store.steps() == [15]


def test_remote_storage(remote: str, tmp_path: Path) -> None:
    store = Store(remote + "/", identity(), KEY)
    assert store.newest() == (None, [])
    assert store.claim() == 1
    assert save(store, 5) == f"{remote}/checkpoints/step-5"
    save(store, 10)
    found, problems = store.newest()
    assert found is not None
    assert problems == []
    assert found.folder == f"{remote}/checkpoints/step-10"
    assert fetched(store, found, tmp_path / "a") == content(10)

    fs = fsspec.filesystem("memory")
    path = f"{found.folder}/{TAG}/rank-0.pt"
    fs.pipe_file(path, fs.cat_file(path)[:-1] + b"!")
    fs.pipe_file(f"{remote}/checkpoints/step-99", b"a file, not a folder")
    assert newest_step(store) == 5
    assert store.newest()[1] == [
        "step-99: unfinished: it has no manifest",
        "step-10: rank-0.pt has changed since it was written",
    ]
    with pytest.raises(CheckpointError, match=r"rank-0\.pt has changed"):
        store.fetch(found, tmp_path / "b")  # what was verified is what is loaded
    fs.rm_file(path)
    with pytest.raises(CheckpointError, match=r"rank-0\.pt is missing"):
        store.fetch(found, tmp_path / "c")
    store.remove(99)

    newer = claimed(remote, 2, "b")
    with pytest.raises(Fenced):
        save(store, 15)
    newer.sweep()
    save(newer, 20)
    newer.prune(1, 20)
    assert newer.steps() == [20]
    assert newest_step(newer) == 20


def test_a_remote_storage_out_of_reach_is_no_damage(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passing a checkpoint over because the network failed would throw work away."""
    store = claimed(remote)
    save(store, 5)
    save(store, 10)
    fs = type(fsspec.filesystem("memory"))
    before = fs.cat_file

    def fail(self: object, path: str, **options: object) -> bytes:
        if "step-10" in path:
            raise ConnectionResetError("peer has gone")
        data: bytes = before(self, path, **options)
        return data

    monkeypatch.setattr(fs, "cat_file", fail)
    with pytest.raises(ConnectionResetError):
        store.newest()
    with pytest.raises(ConnectionResetError):
        claimed(remote, 2)

    class ClientBroken(Exception):
        pass

    def strange(*_: object, **__: object) -> None:
        raise ClientBroken("no answer")

    monkeypatch.setattr(fs, "cat_file", strange)
    with pytest.raises(OSError, match="ClientBroken: no answer"):
        store.newest()


def test_huge_remote_manifests_are_not_read(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = claimed(remote)
    save(store, 5)
    monkeypatch.setattr(model.checkpoint.reading, "LIMIT", 10)
    found, problems = store.newest()
    assert found is None
    assert "at most 10 are read" in problems[0]


@pytest.mark.parametrize(
    ("codes", "error"),
    [
        (["PreconditionFailed"], FileExistsError),
        (["412"], FileExistsError),
        (["ConditionalRequestConflict", "409", None], None),
        (["ConditionalRequestConflict", "PreconditionFailed"], FileExistsError),
        (["409"] * 5, OSError),
        (["SlowDown"], OSError),
        (["NotImplemented", None], None),
    ],
)
def test_what_servers_answer_to_a_conditional_write(
    remote: str, monkeypatch: pytest.MonkeyPatch, codes: list[str | None], error: type[OSError] | None
) -> None:
    """Those that say less than AWS, others at the same moment, and servers that know no conditions."""
    answers, fs = iter(codes), type(fsspec.filesystem("memory"))
    before = fs.pipe_file

    class ClientError(Exception):
        def __init__(self, code: str) -> None:
            self.response = {"Error": {"Code": code}}

    def answer(self: object, path: str, value: bytes, mode: str = "overwrite") -> None:
        if (code := next(answers)) is not None:
            raise OSError(errno.EINVAL, "as s3fs translates it") from ClientError(code)
        before(self, path, value)

    monkeypatch.setattr(fs, "pipe_file", answer)
    storage = open_storage(remote)
    if error is None:
        storage.create("a", b"1")
        assert storage.read("a", 1) == b"1"
    else:
        with pytest.raises(error) as caught:
            storage.create("a", b"1")
        assert isinstance(caught.value, FileExistsError) == (error is FileExistsError)
        monkeypatch.undo()
        storage.write("a", b"")  # something to clear away
    assert next(answers, "none") == "none", "asked as often as expected"


def test_filesystems_that_cannot_create_look_first(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = type(fsspec.filesystem("memory"))
    before = fs.pipe_file
    monkeypatch.setattr(fs, "pipe_file", lambda self, path, value, **swallowed: before(self, path, value))
    storage = open_storage(remote)
    storage.create("a", b"1")
    with pytest.raises(FileExistsError):
        storage.create("a", b"2")
    assert storage.read("a", 1) == b"1"


def test_where_nothing_can_be_used_nobody_begins_anew(root: Path) -> None:
    store = claimed(root)
    save(store, 10)
    assert store.resume_point()[0] is not None
    file = next(root.glob("checkpoints/step-10/*/*"))
    file.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints .* `fathom checkpoints rm`"):
        store.resume_point()
    (root / "checkpoints/step-10/manifest.json").unlink()  # as if it had never been finished
    assert store.resume_point() == (None, ["step-10: unfinished: it has no manifest"])
