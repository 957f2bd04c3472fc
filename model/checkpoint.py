"""Checkpoints in the job's storage: files first, signed manifest last, verified before anything is unpickled.

Layout: `<uri>/checkpoints/step-N/<attempt>-<incarnation>/...files` and `<uri>/checkpoints/step-N/manifest.json`.
A checkpoint exists only if its manifest verifies. Everything written is fenced: a process of an older attempt
publishes nothing once a newer one has begun. Any fsspec filesystem serves as storage.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import Field, ValidationError

from model.config import Frozen

MANIFEST = "manifest.json"
FENCE = "fence.json"
_STEP = re.compile(r"step-(\d+)$")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which and why."""


class Fenced(RuntimeError):
    """A newer attempt or incarnation of the job has begun: this process must publish nothing."""


class Identity(Frozen):
    """Who writes: unique for each start of a Ray cluster."""

    job: str
    attempt: int = Field(ge=1)
    incarnation: str = Field(pattern=r"^[A-Za-z0-9.-]{1,64}$")

    @property
    def tag(self) -> str:
        """Folder name for this writer's files."""
        return f"{self.attempt}-{self.incarnation}"


class Topology(Frozen):
    """What must be equal between saving and loading."""

    world_size: int
    expert_parallel: int
    zero_stage: int
    precision: str


class StoredFile(Frozen):
    """One file of a checkpoint."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    size: int
    sha256: str


class Manifest(Frozen):
    """What a checkpoint consists of; `signature` is an HMAC-SHA256 over everything else."""

    version: int = 1
    identity: Identity
    step: int
    tokens: int
    data_digest: str
    recipe_digest: str
    topology: Topology
    code_version: str
    created: float
    files: tuple[StoredFile, ...]
    signature: str = ""

    def signed(self, key: bytes) -> Manifest:
        """A copy with its signature."""
        return self.model_copy(update={"signature": self._mac(key)})

    def verify_signature(self, key: bytes) -> None:
        """CheckpointError unless the signature was made with `key`."""
        if not hmac.compare_digest(self.signature.encode(), self._mac(key).encode()):
            raise CheckpointError("the signature does not match: written with another key, or changed since")

    def _mac(self, key: bytes) -> str:
        body = json.dumps(self.model_dump(mode="json", exclude={"signature"}), sort_keys=True)
        return hmac.new(key, body.encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Found:
    """A checkpoint that verified."""

    manifest: Manifest
    folder: str
    """`<storage>/checkpoints/step-N`; the files are below it in `manifest.identity.tag`."""


class Store:
    """The checkpoints of one job."""

    def __init__(self, uri: str, identity: Identity, key: bytes) -> None:
        self.uri, self.identity, self.key = uri.rstrip("/"), identity, key
        self._fs, root = fsspec.core.url_to_fs(self.uri)
        self._root = root.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    # --------------------------------------------------------------- fencing (rank 0)
    def claim(self) -> None:
        """Begin as the newest writer; `Fenced` if a later attempt has claimed the storage already."""
        newest = self._read_fence()
        if newest and newest["job"] != self.identity.job:
            raise CheckpointError(
                f"{self.uri} holds checkpoints of another job ({newest['job']}, this one is {self.identity.job}): "
                "give each job a checkpoint.uri of its own"
            )
        if newest and newest["attempt"] > self.identity.attempt:
            raise Fenced(f"attempt {newest['attempt']} has begun, this is attempt {self.identity.attempt}")
        self._write(f"{self._root}/checkpoints/{FENCE}", self.identity.model_dump_json().encode())

    def check_fence(self) -> None:
        """`Fenced` unless this process is still the newest writer."""
        newest = self._read_fence()
        if newest != self.identity.model_dump():
            raise Fenced(f"the storage belongs to {newest}, this is {self.identity.model_dump()}")

    def _read_fence(self) -> dict[str, Any] | None:
        try:
            value: dict[str, Any] = json.loads(self._fs.cat_file(f"{self._root}/checkpoints/{FENCE}"))
        except FileNotFoundError:
            return None
        return value

    # --------------------------------------------------------------- writing
    def staging(self, step: int) -> Path:
        """A new folder for one rank's files: beside their destination if storage is local, so that moving is free."""
        parent = None
        if self._local:
            parent = self._step_folder(step)
            Path(parent).mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".staging-", dir=parent))

    def upload(self, step: int, folder: Path) -> list[StoredFile]:
        """Move one rank's files from `folder/<tag>` into the checkpoint; what they are."""
        target = f"{self._step_folder(step)}/{self.identity.tag}"
        self._fs.makedirs(target, exist_ok=True)
        stored = []
        for path in sorted((folder / self.identity.tag).rglob("*")):
            if not path.is_file():
                continue
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            stored.append(StoredFile(name=path.name, size=path.stat().st_size, sha256=digest))
            if self._local:
                path.replace(f"{target}/{path.name}")
            else:
                self._fs.put_file(str(path), f"{target}/{path.name}")
        shutil.rmtree(folder)
        return stored

    def publish(self, manifest: Manifest) -> str:
        """Rank 0, when all ranks have uploaded: the checkpoint exists from now on. -> its URI."""
        self.check_fence()
        folder = self._step_folder(manifest.step)
        self._write(f"{folder}/{MANIFEST}", manifest.signed(self.key).model_dump_json(indent=1).encode())
        return f"{self.uri}/checkpoints/step-{manifest.step}"

    def prune(self, keep: int, newest: int) -> None:
        """Remove all but the newest `keep` checkpoints published up to step `newest`, each manifest before its files.

        Later ones were passed over at the start (damaged, say): counting them could leave nothing that is good.
        """
        steps = [step for step in self._steps() if step <= newest]
        published = [s for s in steps if self._fs.exists(f"{self._step_folder(s)}/{MANIFEST}")]
        for step in published[:-keep]:
            self._fs.rm_file(f"{self._step_folder(step)}/{MANIFEST}")
            self._fs.rm(self._step_folder(step), recursive=True)

    # --------------------------------------------------------------- reading
    def newest(self) -> tuple[Found | None, list[str]]:
        """The newest checkpoint that verifies, and why each newer one was passed over."""
        problems: list[str] = []
        for step in reversed(self._steps()):
            folder = self._step_folder(step)
            try:
                return Found(self._verified(step), folder), problems
            except FileNotFoundError:
                problems.append(f"step-{step}: unfinished (no manifest or a file is missing)")
            except (CheckpointError, OSError, ValidationError) as error:
                problems.append(f"step-{step}: {error}")
        return None, problems

    def local_copy(self, found: Found) -> Path:
        """A local folder with the files of a checkpoint in `<tag>`; downloads them if storage is remote."""
        if self._local:
            return Path(found.folder)
        target = Path(tempfile.mkdtemp(prefix="fathom-checkpoint-"))
        tag = found.manifest.identity.tag
        (target / tag).mkdir()
        for file in found.manifest.files:
            self._fs.get_file(f"{found.folder}/{tag}/{file.name}", str(target / tag / file.name))
            with (target / tag / file.name).open("rb") as stream:  # again: these are the bytes that get unpickled
                _check_digest(file, stream)
        return target

    def _verified(self, step: int) -> Manifest:
        folder = self._step_folder(step)
        manifest = Manifest.model_validate_json(self._fs.cat_file(f"{folder}/{MANIFEST}"))
        manifest.verify_signature(self.key)
        if manifest.identity.job != self.identity.job:
            raise CheckpointError(f"belongs to job {manifest.identity.job}, this is {self.identity.job}")
        if manifest.step != step:
            raise CheckpointError(f"its manifest is for step {manifest.step}")
        for file in manifest.files:
            path = f"{folder}/{manifest.identity.tag}/{file.name}"
            if (size := self._fs.size(path)) != file.size:
                raise CheckpointError(f"{file.name} has {size} bytes, the manifest says {file.size}")
            with self._fs.open(path, "rb") as stream:
                _check_digest(file, stream)
        return manifest

    # --------------------------------------------------------------- paths
    def _steps(self) -> list[int]:
        try:
            names = self._fs.ls(f"{self._root}/checkpoints", detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(int(m[1]) for m in (_STEP.search(str(n).rstrip("/")) for n in names) if m)

    def _step_folder(self, step: int) -> str:
        return f"{self._root}/checkpoints/step-{step}"

    def _write(self, path: str, data: bytes) -> None:
        """Whole or not at all: by rename where the filesystem has it; object stores write whole objects."""
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        if not self._local:
            self._fs.pipe_file(path, data)
            return
        temporary = f"{path}.{time.time_ns()}.tmp"
        Path(temporary).write_bytes(data)
        Path(temporary).replace(path)


def _check_digest(file: StoredFile, stream: BufferedReader) -> None:
    if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
        raise CheckpointError(f"{file.name} has changed since it was written")
