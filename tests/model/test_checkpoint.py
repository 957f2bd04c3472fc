"""Checkpoints that were damaged, forged, foreign or unfinished, and writers that came too late."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from pydantic import ValidationError

from model.checkpoint import (
    CheckpointError,
    Fenced,
    Identity,
    Manifest,
    Store,
    StoredFile,
    Topology,
)

KEY = b"k" * 32
TOPOLOGY = Topology(world_size=2, expert_parallel=2, zero_stage=1, precision="fp32")


def identity(attempt: int = 1, incarnation: str = "a", job: str = "job-1") -> Identity:
    return Identity(job=job, attempt=attempt, incarnation=incarnation)


def content(step: int) -> dict[str, bytes]:
    return {"rank-0.pt": b"zero" * 100 + bytes([step]), "rank-1.pt": b"one" * 50 + bytes([step])}


def manifest_for(store: Store, step: int, files: list[StoredFile]) -> Manifest:
    return Manifest(
        identity=store.identity,
        step=step,
        tokens=step * 100,
        data_digest="d",
        recipe_digest="r",
        topology=TOPOLOGY,
        code_version="0",
        created=1.5,
        files=tuple(files),
    )


def upload(store: Store, step: int) -> list[StoredFile]:
    """As two ranks would: each with a staging folder of its own."""
    stored = []
    for name, data in content(step).items():
        folder = store.staging(step)
        (folder / store.identity.tag).mkdir()
        (folder / store.identity.tag / name).write_bytes(data)
        stored += store.upload(step, folder)
        assert not folder.exists()
    return stored


def save(store: Store, step: int) -> str:
    return store.publish(manifest_for(store, step, upload(store, step)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "job"


@pytest.fixture
def store(root: Path) -> Store:
    """With two good checkpoints, of steps 5 and 10."""
    store = Store(str(root), identity(), KEY)
    store.claim()
    save(store, 5)
    save(store, 10)
    return store


def test_the_newest_comes_back_as_it_was(store: Store, root: Path) -> None:
    found, problems = store.newest()
    assert found is not None
    assert problems == []
    assert (found.manifest.step, found.manifest.tokens) == (10, 1000)
    assert found.manifest.topology == TOPOLOGY
    folder = store.local_copy(found) / "1-a"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == content(10)
    # nothing is left over but the files and the manifest
    assert sorted(p.name for p in (root / "checkpoints/step-10").iterdir()) == ["1-a", "manifest.json"]


def test_empty_storage_has_no_checkpoint(root: Path) -> None:
    assert Store(str(root), identity(), KEY).newest() == (None, [])


def test_steps_are_ordered_as_numbers(store: Store) -> None:
    save(store, 100)
    save(store, 20)
    found, _ = store.newest()
    assert found is not None
    assert found.manifest.step == 100


# ------------------------------------------------------------------- damage
def truncate(folder: Path) -> None:
    path = folder / "1-a/rank-1.pt"
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(folder: Path) -> None:
    path = folder / "1-a/rank-0.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove_a_file(folder: Path) -> None:
    (folder / "1-a/rank-1.pt").unlink()


def remove_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def change(folder: Path, **changes: object) -> None:
    """Edit the manifest, leaving its signature."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def sign_again(folder: Path, key: bytes = KEY, **changes: object) -> None:
    path = folder / "manifest.json"
    manifest = Manifest.model_validate(json.loads(path.read_text()) | changes)
    path.write_text(manifest.signed(key).model_dump_json())


def tear_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:60])


def not_text(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff\xfe\x00")


def copy_of_another_step(folder: Path) -> None:
    """The manifest and the files of step 5, in the folder of step 10: all signatures are right."""
    other = folder.parent / "step-5"
    for name in ("manifest.json", "1-a/rank-0.pt", "1-a/rank-1.pt"):
        (folder / name).write_bytes((other / name).read_bytes())


def of_another_job(folder: Path) -> None:
    sign_again(folder, identity={"job": "job-2", "attempt": 1, "incarnation": "a"})


def path_in_a_name(folder: Path) -> None:
    """An attacker who can sign nothing, and whose parser must still refuse before looking anywhere."""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files[0]["name"] = "../../../outside.pt"
    change(folder, files=files)


def swap_two_files(folder: Path) -> None:
    a, b = folder / "1-a/rank-0.pt", folder / "1-a/rank-1.pt"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (truncate, "rank-1.pt has 150 bytes, the manifest says 151"),
    (flip_a_bit, "rank-0.pt has changed since it was written"),
    (remove_a_file, "a file is missing"),
    (remove_the_manifest, "unfinished (no manifest"),
    (lambda f: change(f, tokens=999), "signature does not match"),
    (lambda f: change(f, signature=""), "signature does not match"),
    (lambda f: change(f, signature="ü" * 64), "signature"),
    (lambda f: sign_again(f, key=b"x" * 32), "signature does not match"),
    (tear_the_manifest, "JSON"),
    (not_text, "JSON"),
    (lambda f: change(f, surprise=1), "surprise"),
    (copy_of_another_step, "its manifest is for step 5"),
    (of_another_job, "belongs to job job-2"),
    (path_in_a_name, "name"),
    (swap_two_files, "bytes, the manifest says"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGE, ids=[f"{i}-{d.__name__}" for i, (d, _) in enumerate(DAMAGE)])
def test_damage_falls_back_to_the_one_before_and_says_why(
    store: Store, root: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(root / "checkpoints/step-10")
    found, problems = store.newest()
    assert found is not None
    assert found.manifest.step == 5
    assert len(problems) == 1
    assert problems[0].startswith("step-10: ")
    assert reason in problems[0]


def test_all_damaged_is_none_with_every_reason(store: Store, root: Path) -> None:
    flip_a_bit(root / "checkpoints/step-10")
    truncate(root / "checkpoints/step-5")
    found, problems = store.newest()
    assert found is None
    assert [p.split(":")[0] for p in problems] == ["step-10", "step-5"]


def test_other_things_in_the_folder_do_not_matter(store: Store, root: Path) -> None:
    (root / "checkpoints/step-notes").mkdir()
    (root / "checkpoints/README").write_text("hello")
    (root / "checkpoints/step-99").write_text("a file, not a folder")
    found, problems = store.newest()
    assert found is not None
    assert found.manifest.step == 10
    assert [p.split(":")[0] for p in problems] == ["step-99"]


@pytest.mark.parametrize("name", ["../evil", "a/b", "/etc/passwd", "..", ".hidden", "", "a\\b", "a\n", "a\x00b", "é"])
def test_file_names_that_are_paths_are_no_file_names(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        StoredFile(name=name, size=0, sha256="")


@pytest.mark.parametrize("incarnation", ["a/b", "", "x" * 65, "a b", "a\n"])
def test_incarnations_are_names(incarnation: str) -> None:
    with pytest.raises(ValidationError, match="incarnation"):
        identity(incarnation=incarnation)


def test_a_signature_covers_every_field(store: Store) -> None:
    found, _ = store.newest()
    assert found is not None
    other = {
        "version": 2,
        "identity": identity(2),
        "step": 6,
        "tokens": 1,
        "data_digest": "x",
        "recipe_digest": "x",
        "topology": TOPOLOGY.model_copy(update={"world_size": 4}),
        "code_version": "x",
        "created": 2.0,
        "files": (),
    }
    assert other.keys() == Manifest.model_fields.keys() - {"signature"}
    found.manifest.verify_signature(KEY)
    for name, value in other.items():
        with pytest.raises(CheckpointError, match="signature"):
            found.manifest.model_copy(update={name: value}).verify_signature(KEY)


# ------------------------------------------------------------------- fencing
def test_an_older_attempt_publishes_nothing(store: Store, root: Path) -> None:
    files = upload(store, 15)
    newer = Store(str(root), identity(2, "b"), KEY)
    newer.claim()
    with pytest.raises(Fenced, match="'attempt': 2"):
        store.publish(manifest_for(store, 15, files))
    found, problems = newer.newest()
    assert found is not None
    assert found.manifest.step == 10
    assert problems[0].startswith("step-15: unfinished")
    with pytest.raises(Fenced, match="attempt 2 has begun, this is attempt 1"):
        Store(str(root), identity(1, "c"), KEY).claim()


def test_an_older_incarnation_of_the_same_attempt_publishes_nothing(store: Store, root: Path) -> None:
    files = upload(store, 15)
    Store(str(root), identity(1, "z"), KEY).claim()
    with pytest.raises(Fenced, match="'incarnation': 'z'"):
        store.publish(manifest_for(store, 15, files))


def test_two_writers_of_one_step_do_not_mix_their_files(store: Store, root: Path) -> None:
    upload(store, 15)  # unfinished, then the attempt ends
    newer = Store(str(root), identity(2, "b"), KEY)
    newer.claim()
    save(newer, 15)
    found, _ = newer.newest()
    assert found is not None
    assert found.manifest.identity == identity(2, "b")
    assert (root / "checkpoints/step-15/2-b/rank-0.pt").exists()


def test_publishing_without_a_claim_is_fenced(root: Path) -> None:
    store = Store(str(root), identity(), KEY)
    with pytest.raises(Fenced, match="None"):
        store.publish(manifest_for(store, 1, upload(store, 1)))
    assert store.newest()[0] is None


def test_the_storage_of_another_job_is_refused(store: Store, root: Path) -> None:
    for attempt in (1, 2):
        with pytest.raises(CheckpointError, match="another job \\(job-1, this one is job-2\\)"):
            Store(str(root), identity(attempt, job="job-2"), KEY).claim()
    store.check_fence()  # still ours


def test_claiming_again_is_allowed(store: Store, root: Path) -> None:
    Store(str(root), identity(), KEY).claim()
    store.check_fence()


# ------------------------------------------------------------------- pruning
def steps_in(root: Path) -> list[str]:
    return sorted(p.name for p in (root / "checkpoints").iterdir() if p.is_dir())


def test_prune_keeps_the_newest(store: Store, root: Path) -> None:
    save(store, 100)
    store.prune(2, 100)
    assert steps_in(root) == ["step-10", "step-100"]
    store.prune(5, 100)
    assert steps_in(root) == ["step-10", "step-100"]
    store.prune(1, 100)
    assert steps_in(root) == ["step-100"]


def test_prune_does_not_count_what_was_passed_over(store: Store, root: Path) -> None:
    """Going on from step 5, because 10 is damaged, must not end with nothing but the damaged one."""
    flip_a_bit(root / "checkpoints/step-10")
    save(store, 6)
    store.prune(1, 6)
    found, _ = store.newest()
    assert found is not None
    assert found.manifest.step == 6
    assert "step-5" not in steps_in(root)


def test_prune_leaves_unfinished_ones_out_of_the_count(store: Store, root: Path) -> None:
    upload(store, 12)
    save(store, 15)
    store.prune(2, 15)
    assert {"step-10", "step-15"} <= set(steps_in(root))
    assert "step-5" not in steps_in(root)


# ------------------------------------------------------------------- remote storage
@pytest.fixture
def remote() -> Iterator[str]:
    uri = f"memory://{uuid.uuid4().hex}/job"
    yield uri
    fsspec.filesystem("memory").rm(uri, recursive=True)


def test_remote_storage(remote: str) -> None:
    store = Store(remote + "/", identity(), KEY)
    assert store.newest() == (None, [])
    store.claim()
    assert save(store, 5) == f"{remote}/checkpoints/step-5"
    save(store, 10)
    found, problems = store.newest()
    assert found is not None
    assert problems == []
    folder = store.local_copy(found)
    assert {p.name: p.read_bytes() for p in (folder / "1-a").iterdir()} == content(10)

    fs = fsspec.filesystem("memory")
    path = f"{found.folder}/1-a/rank-0.pt"
    fs.pipe_file(path, fs.cat_file(path)[:-1] + b"!")
    fallen_back, problems = store.newest()
    assert fallen_back is not None
    assert fallen_back.manifest.step == 5
    assert "rank-0.pt has changed" in problems[0]
    with pytest.raises(CheckpointError, match=r"rank-0\.pt has changed"):
        store.local_copy(found)  # what was verified is what is loaded

    newer = Store(remote, identity(2, "b"), KEY)
    newer.claim()
    with pytest.raises(Fenced):
        save(store, 15)
    save(newer, 20)
    newer.prune(1, 20)
    found, problems = newer.newest()
    assert found is not None
    assert found.manifest.step == 20
    assert not fs.exists(f"{remote}/checkpoints/step-5")
