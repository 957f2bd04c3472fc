"""What is removed and what never is: sweeping up after earlier writers, keeping the newest."""

import errno
import tempfile
from pathlib import Path

import pytest
from support.checkpoints import (
    KEY,
    TAG,
    claimed,
    flip_a_bit,
    identity,
    newest_step,
    save,
    upload,
)

from model.checkpoint import Fenced, Store
from model.checkpoint.storage import Digest, LocalStorage


def test_sweep_removes_what_earlier_writers_left(store: Store, root: Path) -> None:
    upload(store, 15)
    old_staging = store.staging()
    (root / "checkpoints/step-15/.manifest.json.0000.tmp").write_text("a write that was cut off")
    newer = claimed(root, 2, "b")
    own_staging = newer.staging()
    upload(newer, 10)
    upload(newer, 20)
    newer.sweep()
    assert not old_staging.exists()
    assert own_staging.exists()
    assert newer.steps() == [5, 10, 20]
    assert sorted(p.name for p in (root / "checkpoints/step-10").iterdir()) == [TAG, "2-b-2", "manifest.json"]
    claimed(root, 2, "c").sweep()
    assert not own_staging.exists()
    assert sorted(p.name for p in (root / "checkpoints/step-10").iterdir()) == [TAG, "manifest.json"]
    assert newer.steps() == [5, 10]


def test_sweep_leaves_files_whose_manifest_cannot_be_read(store: Store, root: Path) -> None:
    """Retention removes them, once something newer verifies."""
    (root / "checkpoints/step-10/manifest.json").write_text("{")
    claimed(root, 2).sweep()
    assert (root / "checkpoints/step-10" / TAG / "rank-0.pt").exists()


def test_sweep_leaves_what_it_does_not_know(store: Store, root: Path) -> None:
    upload(store, 15)
    (root / "checkpoints/step-15/notes").mkdir()
    (root / "checkpoints/.staging-other").mkdir()
    claimed(root, 2).sweep()
    assert [p.name for p in (root / "checkpoints/step-15").iterdir()] == ["notes"]
    assert (root / "checkpoints/.staging-other").exists()
    with pytest.raises(Fenced):
        store.sweep()


def test_remote_staging_is_swept_too(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = claimed(remote).staging()
    assert left.parent == tmp_path
    other = Store(f"{remote}-2", identity(job="job-2"), KEY)
    other.claim()
    foreign = other.staging()
    claimed(remote, 2).sweep()
    assert not left.exists()
    assert foreign.exists()


def steps_in(root: Path) -> list[str]:
    return sorted(p.name for p in (root / "checkpoints").glob("step-*"))


def test_prune_keeps_the_newest(store: Store, root: Path) -> None:
    save(store, 100)
    store.prune(2, 100)
    assert steps_in(root) == ["step-10", "step-100"]
    store.prune(5, 100)
    assert steps_in(root) == ["step-10", "step-100"]
    store.prune(1, 100)
    assert steps_in(root) == ["step-100"]


def test_prune_leaves_later_ones_alone(store: Store, root: Path) -> None:
    save(store, 100)
    store.prune(1, 10)
    assert steps_in(root) == ["step-10", "step-100"]


def test_prune_does_not_count_what_was_passed_over(store: Store, root: Path) -> None:
    """Going on from step 5, because 10 is damaged, must not end with nothing but the damaged one."""
    flip_a_bit(root / "checkpoints/step-10")
    save(store, 6)
    store.prune(1, 6)
    assert newest_step(store) == 6
    assert "step-5" not in steps_in(root)


def test_prune_never_removes_the_last_that_verifies(store: Store, root: Path) -> None:
    save(store, 15)
    flip_a_bit(root / "checkpoints/step-15")
    flip_a_bit(root / "checkpoints/step-10")
    store.prune(1, 15)
    assert steps_in(root) == ["step-10", "step-15", "step-5"], "older than the last good one there is nothing"
    flip_a_bit(root / "checkpoints/step-5")
    store.prune(1, 15)
    assert steps_in(root) == ["step-10", "step-15", "step-5"], "none verifies, so all stay"
    save(store, 20)
    store.prune(1, 20)
    assert steps_in(root) == ["step-20"]


def test_prune_replaces_a_damaged_one_by_the_next(store: Store, root: Path) -> None:
    for step in (15, 20):
        save(store, step)
    flip_a_bit(root / "checkpoints/step-20")
    store.prune(2, 20)
    assert steps_in(root) == ["step-10", "step-15", "step-20"]


def test_prune_reads_files_only_if_there_is_something_to_remove(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    before = LocalStorage.digest

    def count(self: LocalStorage, name: str) -> Digest:
        read.append(name)
        return before(self, name)

    monkeypatch.setattr(LocalStorage, "digest", count)
    store.prune(2, 10)
    assert read == []
    store.prune(1, 10)
    assert {name.split("/")[1] for name in read} == {"step-10"}


def test_prune_goes_on_where_something_cannot_be_removed(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, 15)
    save(store, 20)
    before = LocalStorage.remove_file

    def refuse(self: LocalStorage, name: str) -> None:
        if "step-5/" in name:
            raise PermissionError(errno.EACCES, "Permission denied", name)
        before(self, name)

    monkeypatch.setattr(LocalStorage, "remove_file", refuse)
    with pytest.raises(PermissionError):
        store.prune(1, 20)
    assert steps_in(root) == ["step-20", "step-5"]


def test_prune_is_fenced(store: Store, root: Path) -> None:
    claimed(root, 2)
    with pytest.raises(Fenced):
        store.prune(1, 10)
    assert steps_in(root) == ["step-10", "step-5"]
