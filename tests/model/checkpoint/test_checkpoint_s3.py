"""Checkpoints on S3: a real server on loopback, reached as a user would reach a server of their own."""

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from support.checkpoints import (
    KEY,
    claimed,
    content,
    fetched,
    identity,
    manifest_for,
    newest_step,
    save,
    upload,
)
from support.s3 import serving, start_server, use

from model.checkpoint import CheckpointError, Fenced, Store
from model.checkpoint.remote import RemoteStorage, open_storage

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
pytestmark = pytest.mark.processes  # half a minute
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """One server for all tests."""
    with serving() as port:
        yield port


@pytest.fixture
def uri(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A place in a new bucket."""
    use(monkeypatch, port)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{next(NUMBERS)}"
    fsspec.filesystem("s3").mkdir(bucket)
    yield f"s3://{bucket}/team/job"
    s3fs.S3FileSystem.clear_instance_cache()


def at_once(*calls: Callable[[], object]) -> list[object]:
    """What each gives or raises, called at the same moment."""
    barrier, results = threading.Barrier(len(calls)), [None] * len(calls)

    def work(i: int) -> None:
        barrier.wait()
        try:
            results[i] = calls[i]()  # type: ignore[call-overload]
        except Exception as error:  # noqa: BLE001 - a result
            results[i] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return list(results)


def test_the_server_refuses_to_create_twice(uri: str) -> None:
    """What all else rests on, told to the server without our code."""
    fs = fsspec.filesystem("s3")
    path = uri.removeprefix("s3://") + "/x"
    fs.pipe_file(path, b"1", mode="create")
    with pytest.raises(FileExistsError) as refused:
        fs.pipe_file(path, b"2", mode="create")
    response = refused.value.__cause__.response  # type: ignore[union-attr]
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert fs.cat_file(path) == b"1"
    with pytest.raises(OSError, match="pre-conditions"):
        fs.pipe_file(path, b"3", IfMatch='"other"')


def test_conditional_writes_of_the_storage(uri: str) -> None:
    storage = open_storage(uri)
    storage.create("a", b"1")
    with pytest.raises(FileExistsError):
        storage.create("a", b"2")
    version = storage.version("a")
    storage.replace("a", b"3", version)
    with pytest.raises(FileExistsError):
        storage.replace("a", b"4", version)
    assert storage.read("a", 10) == b"3"
    version = storage.version("a")
    storage.remove_file("a")
    storage.remove_file("a")
    with pytest.raises(FileNotFoundError):
        storage.replace("a", b"5", version)
    with pytest.raises(FileNotFoundError):
        storage.version("a")


def test_round_trip(uri: str, tmp_path: Path) -> None:
    store = Store(uri + "/", identity(), KEY)
    assert store.newest() == (None, [])
    assert store.claim() == 1
    assert save(store, 5) == f"{uri}/checkpoints/step-5"
    save(store, 10)
    found, problems = store.newest()
    assert found is not None
    assert problems == []
    assert (found.manifest.step, found.folder) == (10, f"{uri}/checkpoints/step-10")
    assert fetched(store, found, tmp_path) == content(10)
    store.write_incidents([{"step": 3}])
    newer = claimed(uri, 2, "b")
    assert newer.read_incidents() == [{"step": 3}]
    newer.sweep()
    assert newest_step(newer) == 10
    assert newer.steps() == [5, 10]


def test_an_empty_and_a_large_file(uri: str, tmp_path: Path) -> None:
    """Large enough for several parts, both ways."""
    store, folder = claimed(uri), tmp_path / "staged"
    folder.mkdir()
    (folder / "large.pt").write_bytes(bytes(range(256)) * 4096 * 110)
    (folder / "empty.pt").write_bytes(b"")
    before = (folder / "large.pt").stat().st_size
    files = store.upload(5, folder)
    store.publish(manifest_for(store, 5, files))
    found, _ = store.newest()
    assert found is not None
    there = store.fetch(found, tmp_path / "fetched") / found.tag
    assert {p.name: p.stat().st_size for p in there.iterdir()} == {"large.pt": before, "empty.pt": 0}


def test_one_of_many_claims_at_once_gets_each_number(uri: str) -> None:
    stores = [Store(uri, identity(), KEY) for _ in range(4)]
    epochs = at_once(*(lambda store=store: store._fences.take(1.0) for store in stores))  # type: ignore[misc]
    assert sorted(epochs) == [1, 2, 3, 4]  # type: ignore[type-var]


def test_one_of_two_publications_at_once_wins(uri: str) -> None:
    """Writers of two epochs, neither of which knows of the other."""
    for step in range(1, 4):
        old, new = claimed(uri), claimed(uri)
        manifests = [manifest_for(store, step, upload(store, step)) for store in (old, new)]
        for store in (old, new):
            store.check_fence = lambda: None  # type: ignore[method-assign]
        results = at_once(lambda: old.publish(manifests[0]), lambda: new.publish(manifests[1]))  # noqa: B023
        assert results[1] == f"{uri}/checkpoints/step-{step}", "the newer one is never refused"
        assert results[0] == results[1] or isinstance(results[0], Fenced)
        assert claimed(uri).verify(step).epoch == new.epoch


def test_a_manifest_changed_between_looking_and_replacing_is_looked_at_again(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the storage can compare, a late writer cannot even destroy what a newer one published."""
    first = claimed(uri)
    save(first, 10)
    zombie = claimed(uri)
    manifest = manifest_for(zombie, 10, upload(zombie, 10))
    before = RemoteStorage.replace

    def late(self: RemoteStorage, name: str, data: bytes, version: str) -> None:
        monkeypatch.setattr(RemoteStorage, "replace", before)
        save(claimed(uri, 2, "b"), 10)
        before(self, name, data, version)

    monkeypatch.setattr(RemoteStorage, "replace", late)
    with pytest.raises(Fenced, match="step 10 was published by epoch 3, this is epoch 2"):
        zombie.publish(manifest)
    assert claimed(uri, 2).verify(10).epoch == 3


def test_a_late_publication_does_not_count(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zombie = claimed(uri)
    save(zombie, 5)
    newer = claimed(uri, 2, "b")
    with pytest.raises(Fenced):
        save(zombie, 10)
    monkeypatch.setattr(zombie, "check_fence", lambda: None)
    save(zombie, 10)
    found, problems = newer.newest()
    assert found is not None
    assert found.manifest.step == 5
    assert "a replaced writer published it" in problems[0]
    save(newer, 10)
    assert newest_step(newer) == 10


def test_damaged_objects_are_passed_over(uri: str, tmp_path: Path) -> None:
    store, fs = claimed(uri), fsspec.filesystem("s3")
    for step in (5, 10, 15, 20, 25, 30):
        save(store, step)
    found, _ = store.newest()
    assert found is not None

    def path(step: int, name: str) -> str:
        return f"{uri}/checkpoints/step-{step}/{name}"

    data = fs.cat_file(path(30, f"{store.tag}/rank-0.pt"))
    fs.pipe_file(path(30, f"{store.tag}/rank-0.pt"), data[:-1] + b"!")
    fs.pipe_file(path(25, f"{store.tag}/rank-1.pt"), b"")
    fs.rm_file(path(20, f"{store.tag}/rank-0.pt"))
    fs.pipe_file(path(15, "manifest.json"), b"")
    fs.rm_file(path(10, "manifest.json"))
    fs.pipe_file(f"{uri}/checkpoints/step-40", b"a file, not a folder")
    newest, problems = store.newest()
    assert newest is not None
    assert newest.manifest.step == 5
    assert problems == [
        "step-40: unfinished: it has no manifest",
        "step-30: rank-0.pt has changed since it was written",
        "step-25: rank-1.pt has 0 bytes, the manifest says 151",
        "step-20: rank-0.pt is missing",
        "step-15: its manifest is not valid: Invalid JSON: EOF while parsing a value at line 1 column 0",
        "step-10: unfinished: it has no manifest",
    ]
    with pytest.raises(CheckpointError, match=r"rank-0\.pt has changed"):
        store.fetch(found, tmp_path)
    store.prune(1, 30)
    assert store.steps() == [5, 10, 15, 20, 25, 30, 40], "nothing newer verifies"
    newer = claimed(uri, 2)
    newer.sweep()
    save(newer, 35)
    newer.prune(1, 35)
    assert newer.steps() == [35, 40]
    newer.remove(40)
    assert newer.steps() == [35]


def test_prune_and_discard(uri: str) -> None:
    store = claimed(uri)
    for step in (5, 10, 15):
        save(store, step)
    store.prune(2, 15)
    assert store.steps() == [10, 15]
    upload(store, 20)
    assert store.steps() == [10, 15, 20]
    store.discard(20)
    store.discard(15)
    assert store.steps() == [10, 15]
    assert newest_step(store) == 15


def test_listings_are_fresh(uri: str) -> None:
    """A filesystem that remembers listings would miss the fences of others."""
    store = claimed(uri)
    save(store, 5)
    assert store.steps() == [5]
    other = claimed(uri)
    save(other, 10)
    assert store.steps() == [5, 10]
    with pytest.raises(Fenced):
        store.check_fence()


def test_nothing_is_remembered_of_objects_that_others_change(uri: str) -> None:
    storage, other = open_storage(uri), s3fs.S3FileSystem(skip_instance_cache=True)
    storage.write("folder/a", b"12")
    before = storage.entries("folder"), storage.version("folder/a")
    other.pipe_file(f"{uri}/folder/a", b"123")
    other.pipe_file(f"{uri}/folder/b", b"1")
    assert before[1] != storage.version("folder/a")
    assert storage.read("folder/a", 10) == b"123"
    storage.remove_folder("folder")
    assert storage.entries("folder") == {}
    assert not other.exists(f"{uri}/folder/b")


def test_a_missing_bucket_is_an_error_and_stays_missing(uri: str, tmp_path: Path) -> None:
    store = Store("s3://no-such-bucket/job", identity(), KEY)
    with pytest.raises(FileNotFoundError, match="bucket does not exist"):
        store.claim()
    store.join(1)
    folder = tmp_path / "staged"
    folder.mkdir()
    (folder / "rank-0.pt").write_bytes(b"data")
    with pytest.raises(FileNotFoundError, match="bucket does not exist"):
        store.upload(5, folder)
    assert not folder.exists()
    store.discard(5)
    assert not fsspec.filesystem("s3").exists("no-such-bucket")


def test_without_credentials_it_says_so(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(OSError, match="credentials"):
        Store(uri, identity(), KEY).claim()


def test_a_server_that_is_down_costs_nothing_but_the_step(
    port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server, own = start_server()
    use(monkeypatch, own)
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{next(NUMBERS)}"
    fsspec.filesystem("s3").mkdir(bucket)
    store = claimed(f"s3://{bucket}/job")
    save(store, 5)
    server.stop()  # type: ignore[attr-defined]
    folder = tmp_path / "staged"
    folder.mkdir()
    (folder / "rank-0.pt").write_bytes(b"data")
    with pytest.raises(OSError, match="connect"):
        store.upload(10, folder)
    assert not folder.exists()
    store.discard(10)
    for call in (store.newest, store.check_fence, store.read_incidents, lambda: store.prune(1, 10)):
        with pytest.raises(OSError, match="connect"):
            call()
    server, _ = start_server(own)
    try:
        assert newest_step(store) == 5
        save(store, 10)
        assert newest_step(store) == 10
    finally:
        server.stop()  # type: ignore[attr-defined]
        s3fs.S3FileSystem.clear_instance_cache()
