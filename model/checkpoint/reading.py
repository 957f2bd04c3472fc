"""Reads checkpoints that anything may have happened to: each thing that is wrong becomes one sentence."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from model.checkpoint.fence import Acceptance
from model.checkpoint.manifest import (
    MANIFEST,
    CheckpointError,
    Manifest,
    Superseded,
    Unfinished,
    parse_manifest,
    tag_epoch,
)
from model.checkpoint.remote import RemoteStorage
from model.checkpoint.storage import LocalStorage

ROOT = "checkpoints"
LIMIT = 64 * 1024 * 1024
"""Bytes of a manifest, at most: what is larger was not written by us."""
_STEP = re.compile(r"step-(0|[1-9][0-9]{0,16})")


class Reader:
    """The checkpoints of one job in its storage."""

    def __init__(self, storage: LocalStorage | RemoteStorage, job: str, key: bytes) -> None:
        self.storage, self._job, self._key = storage, job, key

    def steps(self) -> list[int]:
        """Steps of which there is anything, in order."""
        return sorted(int(m[1]) for m in map(_STEP.fullmatch, self.storage.entries(ROOT)) if m)

    def written(self, step: int) -> Manifest:
        """What stands there, whoever wrote it. CheckpointError if it is not a manifest of ours, OSError as it comes."""
        return parse_manifest(self.storage.read(manifest_name(step), LIMIT), self._key)

    def writers(self, step: int) -> list[int]:
        """Epochs of all who have put files there, as far as that may be looked at."""
        with suppress(NotADirectoryError, PermissionError):
            found = (tag_epoch(name) for name in self.storage.entries(step_folder(step)))
            return [epoch for epoch in found if epoch is not None]
        return []

    def manifest(self, step: int, acceptance: Acceptance) -> Manifest:
        """A manifest that counts; CheckpointError says why one does not."""
        with self._damage():
            try:
                manifest = self.written(step)
            except FileNotFoundError:
                raise Unfinished("unfinished: it has no manifest") from None
        if manifest.identity.job != self._job:
            raise CheckpointError(f"belongs to job {manifest.identity.job}, this is {self._job}")
        if manifest.step != step:
            raise CheckpointError(f"its manifest is for step {manifest.step}")
        if not acceptance.counts(step, manifest.epoch):
            raise Superseded(
                f"a replaced writer published it: it is of epoch {manifest.epoch} and was not there "
                f"when epoch {acceptance.epoch} began"
            )
        return manifest

    def examine(self, step: int, acceptance: Acceptance, *, contents: bool) -> Manifest:
        """The same, and its files: their sizes, or all that is in them."""
        manifest = self.manifest(step, acceptance)
        folder = f"{step_folder(step)}/{manifest.tag}"
        with self._damage():
            there = self.storage.entries(folder)
        for file in manifest.files:
            if file.name not in there:
                raise CheckpointError(f"{file.name} is missing")
            if (size := there[file.name].size) != file.size:
                raise CheckpointError(f"{file.name} has {size} bytes, the manifest says {file.size}")
        for file in manifest.files if contents else ():
            with self._damage(f"{file.name} "):
                digest = self.storage.digest(f"{folder}/{file.name}")
            if digest != (file.size, file.sha256):
                raise CheckpointError(f"{file.name} has changed since it was written")
        return manifest

    @contextmanager
    def _damage(self, what: str = "") -> Iterator[None]:
        """What is wrong with this checkpoint as CheckpointError; a remote storage out of reach stays an OSError:
        it says nothing about the checkpoint, and going on from an older one would throw work away."""
        try:
            yield
        except FileNotFoundError:
            raise CheckpointError(f"{what or 'a file '}is missing") from None
        except NotADirectoryError:
            raise CheckpointError(f"{what}is a file, not a folder") from None
        except OSError as error:
            here = isinstance(self.storage, LocalStorage) or isinstance(error, PermissionError)
            if not here and error.errno != errno.EFBIG:
                raise
            raise CheckpointError(f"{what}cannot be read: {error.strerror or error}") from None


def step_folder(step: int) -> str:
    """Where a checkpoint lies in the storage."""
    return f"{ROOT}/step-{step}"


def manifest_name(step: int) -> str:
    """Its manifest."""
    return f"{step_folder(step)}/{MANIFEST}"
