"""Checkpoints in the job's storage: files first, signed manifest last, verified before anything is unpickled.

Layout: `<uri>/checkpoints/step-N/<attempt>-<incarnation>-<epoch>/...files` and `.../step-N/manifest.json`.
A checkpoint exists only if its manifest verifies and its writer had not been replaced when it published
(`fence`). What was published is never changed, only removed. Everything here may be called from any thread.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint import incidents, retention
from model.checkpoint.fence import Fences
from model.checkpoint.manifest import (
    CheckpointError,
    Fenced,
    Identity,
    Manifest,
    StoredFile,
    Superseded,
    Unfinished,
    folder_tag,
)
from model.checkpoint.reading import ROOT, Reader, manifest_name, step_folder
from model.checkpoint.remote import open_storage
from model.checkpoint.storage import LocalStorage, file_digest, make_folder

_TRIES = 10


@dataclass(frozen=True)
class Found:
    """A checkpoint that verified."""

    manifest: Manifest
    folder: str
    """`<storage>/checkpoints/step-N`; the files are below it in `tag`."""

    @property
    def tag(self) -> str:
        """Folder of its files; also below what `Store.fetch` returns."""
        return self.manifest.tag


class Store:
    """The checkpoints of one job, as one process sees them."""

    def __init__(self, uri: str, identity: Identity, key: bytes) -> None:
        self.uri, self.identity, self.key = uri.rstrip("/"), identity, key
        self._storage = open_storage(self.uri)
        self._fences = Fences(self._storage, ROOT, identity, key)
        self._reader = Reader(self._storage, identity.job, key)
        self._epoch: int | None = None

    # --------------------------------------------------------------- who writes
    def claim(self) -> int:
        """Rank 0: begin as the newest writer. -> the epoch, for `join` on the other ranks.

        CheckpointError if the storage is another job's, `Fenced` if a later attempt has claimed it.
        """
        epoch = self._fences.take(time.time())
        self._fences.accept(epoch, self._published)
        self._fences.check(epoch)
        self._epoch = epoch
        return epoch

    def join(self, epoch: int) -> None:
        """The other ranks: write in the epoch that rank 0 has claimed."""
        self._epoch = epoch

    @property
    def epoch(self) -> int:
        """Own epoch."""
        if self._epoch is None:
            raise Fenced("this process has not claimed the storage")
        return self._epoch

    @property
    def tag(self) -> str:
        """Name of the folder that holds this writer's files."""
        return folder_tag(self.identity, self.epoch)

    def check_fence(self) -> None:
        """`Fenced` unless this is still the newest writer."""
        self._fences.check(self.epoch)

    def holder(self) -> Identity | None:
        """Who has claimed the storage last."""
        return self._fences.holder()

    # --------------------------------------------------------------- writing
    def staging(self) -> Path:
        """A new empty folder for this rank's files: beside the checkpoints if storage is local, so that moving is
        free."""
        parent, prefix = self._staging()
        make_folder(parent)
        return Path(tempfile.mkdtemp(prefix=f"{prefix}{self._epoch or 0}-", dir=parent))

    def upload(self, step: int, folder: Path) -> list[StoredFile]:
        """Move the files of one rank's folder into the checkpoint and read them back; `folder` is always removed.

        OSError if the storage refuses them, CheckpointError if it holds something else afterwards.
        """
        try:
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            names = [path.name for path in paths]
            if len(set(names)) < len(names):
                raise CheckpointError(f"step {step}: two files of one name among {', '.join(names)}")
            if self._has_published(step):
                raise CheckpointError(f"step {step} has been published by this writer: it cannot be written again")
            return [self._upload(step, path) for path in paths]
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, manifest: Manifest) -> str:
        """Rank 0, when all ranks have uploaded: the checkpoint exists from now on. -> its URI."""
        assert (manifest.identity, manifest.epoch) == (self.identity, self.epoch), "a manifest of another writer"
        self.check_fence()
        data = manifest.signed(self.key).model_dump_json(indent=1).encode()
        for _ in range(_TRIES):
            try:
                self._storage.create(manifest_name(manifest.step), data)
                break
            except FileExistsError:
                if self._replace(manifest, data):
                    break
        else:
            raise OSError(f"step {manifest.step}: other writers changed its manifest {_TRIES} times meanwhile")
        return f"{self.uri}/{step_folder(manifest.step)}"

    def discard(self, step: int) -> None:
        """Remove what this writer has left of a step that failed, as far as possible; never what it published."""
        with suppress(OSError):
            if not self._has_published(step):
                self._storage.remove_folder(f"{step_folder(step)}/{self.tag}")
                if not self._storage.entries(step_folder(step)):
                    self._storage.remove_folder(step_folder(step))

    def sweep(self) -> None:
        """Rank 0, after `claim`: remove, as far as possible, what earlier writers left unfinished."""
        self.check_fence()
        retention.sweep_staging(*self._staging(), self.epoch)
        for step in self.steps():
            with suppress(OSError):
                retention.sweep_step(self._reader, step, self.epoch)

    def prune(self, keep: int, newest: int) -> None:
        """Keep `keep` checkpoints up to step `newest`, remove older ones and those that cannot be used.

        Whatever is removed is older than one that was just verified whole: the last good one always stays.
        OSError, when all has been tried, if something could not be removed.
        """
        assert keep >= 1
        self.check_fence()
        acceptance = self._fences.acceptance()
        doomed = retention.doomed(self._reader, acceptance, [step for step in self.steps() if step <= newest], keep)
        failure: OSError | None = None
        for step in doomed:
            try:
                self.remove(step)
            except FileNotFoundError:
                continue
            except OSError as error:
                failure = error
        if failure is not None:
            raise failure

    def remove(self, step: int) -> None:
        """Remove a checkpoint, its manifest first. FileNotFoundError if there is none."""
        self._require(step)
        try:
            with suppress(IsADirectoryError):  # so it is no manifest, and goes with the rest
                self._storage.remove_file(manifest_name(step))
        except NotADirectoryError:
            self._storage.remove_file(step_folder(step))
        else:
            self._storage.remove_folder(step_folder(step))

    # --------------------------------------------------------------- reading
    def steps(self) -> list[int]:
        """Steps of which there is anything, in order."""
        return self._reader.steps()

    def newest(self) -> tuple[Found | None, list[str]]:
        """The newest checkpoint that verifies, and why each newer one was passed over."""
        found, problems = self._search()
        return found, [f"step-{step}: {error}" for step, error in problems]

    def resume_point(self) -> tuple[Found | None, list[str]]:
        """As `newest`, but CheckpointError where there are finished checkpoints and none can be used: to begin anew
        would in the end remove what a person may still repair."""
        found, problems = self._search()
        told = [f"step-{step}: {error}" for step, error in problems]
        if found is None and any(not isinstance(error, Unfinished | Superseded) for _, error in problems):
            raise CheckpointError(
                f"none of the checkpoints in {self.uri} can be used ({'; '.join(told)}): repair them, or remove them "
                "with `fathom checkpoints rm` to begin anew"
            )
        return found, told

    def _search(self) -> tuple[Found | None, list[tuple[int, CheckpointError]]]:
        problems: list[tuple[int, CheckpointError]] = []
        acceptance = self._fences.acceptance()
        for step in reversed(self.steps()):
            try:
                return Found(self._reader.examine(step, acceptance, contents=True), self._place(step)), problems
            except CheckpointError as error:
                problems.append((step, error))
        return None, problems

    def verify(self, step: int) -> Manifest:
        """Check everything. CheckpointError with the reason; FileNotFoundError only if the step does not exist."""
        self._require(step)
        return self._reader.examine(step, self._fences.acceptance(), contents=True)

    def inspect(self, step: int) -> Manifest:
        """As `verify`, but without reading the files: signature, writer, names and sizes."""
        self._require(step)
        return self._reader.examine(step, self._fences.acceptance(), contents=False)

    def fetch(self, found: Found, folder: Path) -> Path:
        """A local folder with the files in `found.tag`: where they are, or below `folder`, downloaded and checked."""
        if isinstance(self._storage, LocalStorage):
            return self._storage.root / step_folder(found.manifest.step)
        (folder / found.tag).mkdir(parents=True, exist_ok=True)
        for file in found.manifest.files:
            target = folder / found.tag / file.name
            try:
                self._storage.get(f"{step_folder(found.manifest.step)}/{found.tag}/{file.name}", target)
            except FileNotFoundError:
                raise CheckpointError(f"step-{found.manifest.step}: {file.name} is missing") from None
            if file_digest(target) != (file.size, file.sha256):  # again: these are the bytes that get unpickled
                raise CheckpointError(f"step-{found.manifest.step}: {file.name} has changed since it was written")
        return folder

    # --------------------------------------------------------------- incidents
    def read_incidents(self) -> list[dict[str, Any]]:
        """What `write_incidents` has written last; CheckpointError if it was changed since."""
        return incidents.read(self._storage, ROOT, self.identity.job, self.key)

    def write_incidents(self, rows: Sequence[dict[str, Any]]) -> None:
        """Replace the list of incidents, signed."""
        self.check_fence()
        incidents.write(self._storage, ROOT, self.identity.job, self.key, list(rows))

    # --------------------------------------------------------------- inside
    def _upload(self, step: int, path: Path) -> StoredFile:
        """One file: what is in it, in the storage too."""
        digest, name = file_digest(path), f"{step_folder(step)}/{self.tag}/{path.name}"
        stored = StoredFile(name=path.name, size=digest.size, sha256=digest.sha256)
        self._storage.put(path, name)
        back = self._storage.digest(name)
        if back != digest:
            what = f"{back.size} bytes" if back.size != digest.size else "other content"
            raise CheckpointError(
                f"step {step}: {path.name} was written with {digest.size} bytes, but {self.uri} gives {what} back"
            )
        return stored

    def _replace(self, manifest: Manifest, data: bytes) -> bool:
        """Publish where there is a manifest already; False if it changed or went meanwhile: look again.

        Between looking and replacing a newer writer may publish: only S3 notices (the write is conditional).
        """
        name = manifest_name(manifest.step)
        try:
            version = self._storage.version(name)
            there = self._reader.written(manifest.step)
        except FileNotFoundError:
            return False
        except CheckpointError:
            there = None  # damaged, or never ours
        if there is not None and there.epoch > manifest.epoch:
            raise Fenced(f"step {manifest.step} was published by epoch {there.epoch}, this is epoch {manifest.epoch}")
        if there is not None and there.epoch == manifest.epoch:
            if there.says_the_same(manifest):
                return True  # by ourselves: the answer was lost
            raise CheckpointError(f"step {manifest.step} has been published by this writer, with other content")
        self.check_fence()
        try:
            self._storage.replace(name, data, version)
        except (FileExistsError, FileNotFoundError):
            return False
        return True

    def _has_published(self, step: int) -> bool:
        try:
            return self._reader.written(step).tag == self.tag
        except (FileNotFoundError, CheckpointError):
            return False

    def _published(self) -> list[tuple[int, int]]:
        """(step, epoch) of the checkpoints that count now, as far as a look at the manifests tells."""
        acceptance, found = self._fences.acceptance(), []
        for step in self.steps():
            try:
                found.append((step, self._reader.manifest(step, acceptance).epoch))
            except (Unfinished, Superseded):
                continue
            except CheckpointError:  # it may be repaired, or read well again: what is not noted now never counts again
                found += [(step, epoch) for epoch in self._reader.writers(step)]
        return found

    def _require(self, step: int) -> None:
        if step not in self.steps():
            raise FileNotFoundError(errno.ENOENT, f"there is no checkpoint of step {step}", self._place(step))

    def _place(self, step: int) -> str:
        """Where it is, for people."""
        root = self._storage.root if isinstance(self._storage, LocalStorage) else self.uri
        return f"{root}/{step_folder(step)}"

    def _staging(self) -> tuple[Path, str]:
        """Where staging folders are made, and how their names begin; the epoch follows."""
        job = hashlib.sha256(self.identity.job.encode()).hexdigest()[:12]
        if isinstance(self._storage, LocalStorage):
            return self._storage.root / ROOT, f".staging-{job}-"
        return Path(tempfile.gettempdir()), f"fathom-staging-{job}-"
