"""Runs the pieces of a step, in this process or in several; each piece is a function call that can be pickled."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """`workers` processes, started when they are first needed; none of them outlives this one."""

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def map(self, work: Callable[[T], R], pieces: Sequence[T], done: Callable[[R], None]) -> None:
        """Do all pieces, calling `done` with each result as it comes; the first error ends the step."""
        if self.workers == 1 or len(pieces) < 2:
            for piece in pieces:
                done(work(piece))
            return
        futures = [self._started().submit(work, piece) for piece in pieces]
        try:
            with self._explained():
                for future in as_completed(futures):
                    done(future.result())
        finally:
            for future in futures:
                future.cancel()

    def start(self, work: Callable[[T], R], piece: T) -> Callable[[], R]:
        """Do one piece beside what follows; the result, when it is asked for."""
        if self.workers == 1:
            return lambda: work(piece)
        future = self._started().submit(work, piece)

        def result() -> R:
            with self._explained():
                return future.result()

        return result

    def alone(self, work: Callable[[T], R], piece: T) -> R:
        """Do one piece in a process that ends with it, while nothing else is done."""
        with ProcessPoolExecutor(1, _context(), initializer=_begin, initargs=(True,)) as executor, self._explained():
            return executor.submit(work, piece).result()

    def _started(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(self.workers, _context(), initializer=_begin)
        return self._executor

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"one of the {self.workers} processes died, perhaps for want of memory: run the command again, with "
                "fewer --workers if it was that; what is done is kept"
            ) from error


def _context() -> SpawnContext:
    """Spawned, not forked: the tokenizer's threads and a progress bar's must not be copied."""
    return multiprocessing.get_context("spawn")


def _begin(alone: bool = False) -> None:
    """A process of the pool: Ctrl-C is the parent's business, and without a parent there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = str(alone).lower()  # otherwise the processes are the parallelism
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
