"""Checkpoints while training goes on: training stands still for a copy to host memory, all else is another thread's.

Every rank calls `start`, and `conclude` once all ranks' `state` say that they are done; nothing else is collective.
A checkpoint that could not be written is given up and said; the one before stays, and training goes on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.checkpoint import Fenced, Manifest, Store, StoredFile
from model.collective import on_first, together
from model.engine.base import Engine
from model.reporting import Reporter

IDLE, WRITING, WRITTEN = 0, 1, 2

Describe = Callable[[int, tuple[StoredFile, ...]], Manifest]
"""Makes the manifest of a step from the files of all ranks."""


@dataclass
class Saver:
    """One rank's part in writing checkpoints; at most one is under way."""

    engine: Engine
    store: Store
    reporter: Reporter
    keep: int
    describe: Describe
    _step: int = field(default=0, init=False)
    _stood_still: float = field(default=0.0, init=False)
    _upload: Future[list[StoredFile]] | None = field(default=None, init=False)
    _publication: Future[None] | None = field(default=None, init=False)
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint"), init=False
    )

    def state(self) -> int:
        """IDLE, WRITING, or WRITTEN: this rank's files are in the store, or could not be put there."""
        if self._upload is None:
            return IDLE
        return WRITTEN if self._upload.done() else WRITING

    def replaced(self) -> bool:
        """Whether the last publication found that a newer attempt has begun; only rank 0 ever knows."""
        done = self._publication
        return done is not None and done.done() and isinstance(done.exception(), Fenced)

    def busy(self) -> bool:
        """Whether a checkpoint is under way on this rank."""
        return self._upload is not None or not self._published()

    def start(self, step: int, state: dict[str, Any]) -> None:
        """Copy the state of training as it is after `step`. Collective."""
        assert self._upload is None, "one checkpoint at a time"
        began = time.monotonic()
        write = self.engine.snapshot(state)
        self._step, self._stood_still = step, time.monotonic() - began
        self._upload = self._thread.submit(self._put, step, write)

    def conclude(self) -> None:
        """All ranks are done: rank 0 publishes, or the step is given up. Collective."""
        began = time.monotonic()
        assert self._upload is not None
        upload, self._upload = self._upload, None
        parts = together(lambda: _result(upload))
        self._stood_still += time.monotonic() - began
        problems = [f"process {rank}: {part}" for rank, part in enumerate(parts) if isinstance(part, str)]
        if self.engine.rank != 0:
            return
        if problems:
            self._thread.submit(self.store.discard, self._step)
            self._give_up(self._step, "; ".join(problems))
        else:
            files = tuple(file for part in parts if not isinstance(part, str) for file in part)
            self._publication = self._thread.submit(self._publish, self._step, files, self._stood_still)

    def drop(self, step: int) -> None:
        """Give up the copy of this step, should it be under way and not yet published. Collective."""
        if self._upload is None or self._step != step:
            return
        upload, self._upload = self._upload, None
        together(lambda: _result(upload))
        if self.engine.rank == 0:
            self._thread.submit(self.store.discard, step)

    def finish(self) -> None:
        """Wait for what is under way; `Fenced` everywhere if this run has been replaced. Collective."""
        if self._upload is not None:
            self.conclude()  # waits for the slowest
        on_first(lambda: self._publication and self._publication.result())

    def close(self) -> None:
        """Drop what has not begun; what has is left to end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------------ in the other thread
    def _put(self, step: int, write: Callable[[Path], None]) -> list[StoredFile]:
        folder = self.store.staging()
        try:
            write(folder)
            return self.store.upload(step, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # what a full disk has left of it

    def _publish(self, step: int, files: tuple[StoredFile, ...], seconds: float) -> None:
        try:
            uri = self.store.publish(self.describe(step, files))
        except Fenced:
            raise
        except Exception as error:  # noqa: BLE001 - as in `_result`
            self.store.discard(step)
            return self._give_up(step, f"{type(error).__name__}: {error}")
        size = sum(file.size for file in files)
        self.reporter.checkpoint_committed(step=step, uri=uri, size_bytes=size, seconds=seconds)
        try:
            self.store.prune(self.keep, step)
        except Fenced:
            raise
        except Exception as error:  # noqa: BLE001 - as in `_result`
            self.reporter.warning(f"old checkpoints could not be removed: {error}")
        return None

    def _give_up(self, step: int, reason: str) -> None:
        self.reporter.warning(f"the checkpoint of step {step} could not be written ({reason}): the one before stays")

    def _published(self) -> bool:
        return self._publication is None or self._publication.done()


def _result(upload: Future[list[StoredFile]]) -> list[StoredFile] | str:
    """The files, or in words why there are none: a full disk must not end training."""
    try:
        return upload.result()
    except Exception as error:  # noqa: BLE001 - stores fail in their own ways; all of them are told
        return f"{type(error).__name__}: {error}"
