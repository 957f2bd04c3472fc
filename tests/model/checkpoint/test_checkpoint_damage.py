"""Checkpoints that anything may have happened to: passed over, with one sentence that says why."""

import errno
import shutil
from pathlib import Path

import pytest
from support.checkpoints import (
    TAG,
    Damage,
    change_manifest,
    claimed,
    flip_a_bit,
    newest_step,
    save,
    sign_again,
)

from model.checkpoint import CheckpointError, Store
from model.checkpoint.storage import LocalStorage


def truncate(folder: Path) -> None:
    path = folder / TAG / "rank-1.pt"
    path.write_bytes(path.read_bytes()[:-1])


def remove_a_file(folder: Path) -> None:
    (folder / TAG / "rank-1.pt").unlink()


def remove_the_files(folder: Path) -> None:
    shutil.rmtree(folder / TAG)


def remove_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def tear_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:60])


def not_text(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff\xfe\x00")


def deep(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"[" * 1_000_000)


def huge(folder: Path) -> None:
    with (folder / "manifest.json").open("ab") as file:
        file.truncate(10**12)  # a hole: takes no space, but would take all memory to read


def manifest_is_a_folder(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()


def file_is_a_folder(folder: Path) -> None:
    (folder / TAG / "rank-0.pt").unlink()
    (folder / TAG / "rank-0.pt").mkdir()


def files_are_a_file(folder: Path) -> None:
    shutil.rmtree(folder / TAG)
    (folder / TAG).write_text("no folder")


def all_is_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


def copy_of_another_step(folder: Path) -> None:
    """The manifest and the files of step 5, in the folder of step 10: all signatures are right."""
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "step-5", folder)


def of_another_job(folder: Path) -> None:
    sign_again(folder, identity={"job": "job-2", "attempt": 1, "incarnation": "a"})


def path_in_a_name(folder: Path) -> None:
    """An attacker who can sign nothing, and whose parser must still refuse before looking anywhere."""
    files = [{"name": "../../../outside.pt", "size": 1, "sha256": "00"}]
    change_manifest(folder, files=files)


def swap_two_files(folder: Path) -> None:
    a, b = folder / TAG / "rank-0.pt", folder / TAG / "rank-1.pt"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


DAMAGE: list[tuple[Damage, str]] = [
    (truncate, "rank-1.pt has 150 bytes, the manifest says 151"),
    (flip_a_bit, "rank-0.pt has changed since it was written"),
    (remove_a_file, "rank-1.pt is missing"),
    (remove_the_files, "rank-0.pt is missing"),
    (remove_the_manifest, "unfinished: it has no manifest"),
    (lambda f: change_manifest(f, tokens=999), "signature does not match"),
    (lambda f: change_manifest(f, epoch=9), "signature does not match"),
    (lambda f: change_manifest(f, signature=""), "signature does not match"),
    (lambda f: change_manifest(f, signature="ü" * 64), "signature"),
    (lambda f: sign_again(f, key=b"x" * 32), "signature does not match"),
    (tear_the_manifest, "its manifest is not valid: Invalid JSON"),
    (not_text, "its manifest is not valid: Invalid JSON"),
    (deep, "its manifest is not valid: Invalid JSON"),
    (huge, "cannot be read: has 1000000000000 bytes, at most 67108864 are read"),
    (manifest_is_a_folder, "cannot be read: Is a directory"),
    (file_is_a_folder, "rank-0.pt "),
    (files_are_a_file, "is a file, not a folder"),
    (all_is_a_file, "is a file, not a folder"),
    (lambda f: change_manifest(f, surprise=1), "surprise"),
    (copy_of_another_step, "its manifest is for step 5"),
    (of_another_job, "belongs to job job-2, this is job-1"),
    (path_in_a_name, "its manifest is not valid: files.0.name"),
    (swap_two_files, "rank-0.pt has 151 bytes, the manifest says 401"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGE, ids=[f"{i}-{d.__name__}" for i, (d, _) in enumerate(DAMAGE)])
def test_damage_falls_back_to_the_one_before_and_says_why(
    store: Store, root: Path, damage: Damage, reason: str
) -> None:
    damage(root / "checkpoints/step-10")
    found, problems = store.newest()
    assert found is not None
    assert found.manifest.step == 5
    assert len(problems) == 1
    assert problems[0].startswith("step-10: ")
    assert reason in problems[0]
    assert "\n" not in problems[0]
    with pytest.raises(CheckpointError) as caught:
        store.verify(10)
    assert str(caught.value) == problems[0].removeprefix("step-10: ")
    # neither a new writer nor retention stumbles over it, and both leave what is good
    newer = claimed(root, 2, "b")
    newer.sweep()
    newer.prune(1, 10)
    assert newest_step(newer) == 5
    save(newer, 20)
    newer.prune(1, 20)
    assert newest_step(newer) == 20
    assert set(newer.steps()) <= {10, 20}
    if damage is not remove_the_manifest:  # that was swept already
        assert 10 not in newer.steps()
    if 10 in newer.steps():
        newer.remove(10)
    assert newer.steps() == [20]


def test_unreadable_folders_are_passed_over(store: Store, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in, because tests may run as root, who reads everything."""
    before = LocalStorage.read

    def refuse(self: LocalStorage, name: str, limit: int) -> bytes:
        if "step-10" in name:
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return before(self, name, limit)

    monkeypatch.setattr(LocalStorage, "read", refuse)
    found, problems = store.newest()
    assert found is not None
    assert found.manifest.step == 5
    assert problems == ["step-10: cannot be read: Permission denied"]
    claimed(root, 2).sweep()


def test_all_damaged_is_none_with_every_reason(store: Store, root: Path) -> None:
    flip_a_bit(root / "checkpoints/step-10")
    truncate(root / "checkpoints/step-5")
    found, problems = store.newest()
    assert found is None
    assert [p.split(":")[0] for p in problems] == ["step-10", "step-5"]


def test_other_things_in_the_folders_do_not_matter(store: Store, root: Path) -> None:
    for name in ("step-notes", "step-007", "step-٧", "step--1", "step-" + "9" * 50):
        (root / "checkpoints" / name).mkdir()
    (root / "checkpoints/README").write_text("hello")
    (root / "checkpoints/fence/README").write_text("hello")
    (root / "checkpoints/step-10/README").write_text("hello")
    (root / "checkpoints/step-10" / TAG / "evil.pt").write_text("hello")
    (root / "checkpoints/step-99").write_text("a file, not a folder")
    found, problems = store.newest()
    assert found is not None
    assert found.manifest.step == 10
    assert problems == ["step-99: is a file, not a folder"]
    store.remove(99)
    assert store.newest()[1] == []


def test_verify_knows_what_does_not_exist_from_what_is_broken(store: Store, root: Path) -> None:
    assert store.verify(10) == store.inspect(10)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7"):
        store.verify(7)
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7"):
        store.remove(7)
    flip_a_bit(root / "checkpoints/step-10")
    store.inspect(10)  # looks at sizes only
    with pytest.raises(CheckpointError, match="changed"):
        store.verify(10)
