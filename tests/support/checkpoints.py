"""Checkpoints of two ranks, written through `model.checkpoint.Store`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from model.checkpoint import Found, Identity, Manifest, Store, StoredFile, Topology

KEY = b"k" * 32
TAG = "1-a-1"
"""Folder of the first writer's files."""
TOPOLOGY = Topology(world_size=2, expert_parallel=2, zero_stage=1, precision="fp32")


def identity(attempt: int = 1, incarnation: str = "a", job: str = "job-1") -> Identity:
    return Identity(job=job, attempt=attempt, incarnation=incarnation)


def content(step: int) -> dict[str, bytes]:
    return {"rank-0.pt": b"zero" * 100 + bytes([step]), "rank-1.pt": b"one" * 50 + bytes([step])}


def manifest_for(store: Store, step: int, files: list[StoredFile], created: float = 1.5) -> Manifest:
    return Manifest(
        identity=store.identity,
        epoch=store.epoch,
        step=step,
        tokens=step * 100,
        data_digest="d",
        recipe_digest="r",
        topology=TOPOLOGY,
        code_version="0",
        created=created,
        files=tuple(files),
    )


def upload(store: Store, step: int) -> list[StoredFile]:
    """As two ranks would: each with a staging folder of its own."""
    stored = []
    for name, data in content(step).items():
        folder = store.staging()
        (folder / name).write_bytes(data)
        stored += store.upload(step, folder)
        assert not folder.exists()
    return stored


def save(store: Store, step: int) -> str:
    return store.publish(manifest_for(store, step, upload(store, step)))


def claimed(uri: str | Path, attempt: int = 1, incarnation: str = "a", key: bytes = KEY) -> Store:
    """A new writer."""
    store = Store(str(uri), identity(attempt, incarnation), key)
    store.claim()
    return store


def with_two(root: Path) -> Store:
    """A writer with two good checkpoints, of steps 5 and 10."""
    store = claimed(root)
    save(store, 5)
    save(store, 10)
    return store


@contextmanager
def memory_uri() -> Iterator[str]:
    """A storage that is not a folder."""
    uri = f"memory://{uuid.uuid4().hex}/job"
    yield uri
    fsspec.filesystem("memory").rm(uri.removesuffix("/job"), recursive=True)


def newest_step(store: Store) -> int | None:
    found, _ = store.newest()
    return found.manifest.step if found else None


def fetched(store: Store, found: Found, folder: Path) -> dict[str, bytes]:
    """The content of a checkpoint as a resume would load it."""
    return {path.name: path.read_bytes() for path in (store.fetch(found, folder) / found.tag).iterdir()}


def change_manifest(folder: Path, **changes: object) -> None:
    """Edit it, leaving its signature."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def sign_again(folder: Path, key: bytes = KEY, **changes: object) -> None:
    path = folder / "manifest.json"
    manifest = Manifest.model_validate(json.loads(path.read_text()) | changes)
    path.write_text(manifest.signed(key).model_dump_json())


def flip_a_bit(folder: Path) -> None:
    path = folder / TAG / "rank-0.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


Damage = Callable[[Path], None]
