"""The `Reporter` of a run on this machine: events and artifacts become files in the run's folder.

Made by the driver, pickled to the workers. Holds only plain values, so that a restarted worker gets the same; its
methods may be called from any thread.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.anomaly import Incident
from model.reporting import Stop
from orchestrator.launch.base import RunFolder
from orchestrator.launch.control import newest
from orchestrator.launch.events import (
    Answer,
    CheckpointAndStop,
    Continue,
    FailureClass,
    HardDeadline,
    read_control,
    shared_log,
)
from orchestrator.launch.suspects import blamed, nodes_of, note_place

_LOCK, _MAX_WAITING = threading.Lock(), 10_000
_WAITING: dict[Path, deque[tuple[str, dict[str, Any]]]] = {}
"""Events that could not be written yet, of this process, by event file."""
_NEWEST: dict[tuple[Path, str], HardDeadline] = {}
"""Newest deadline that this process has seen, by run and incarnation: what is older does not count any more."""
_DUE: set[tuple[Path, str]] = set()
"""Incarnations whose time to stop was there: a deadline that comes later calls nobody back."""


@dataclass(frozen=True)
class FileReporter:
    """See `model.reporting.Reporter`."""

    root: Path
    job: str
    attempt: int
    incarnation: str
    deadline: HardDeadline | None = None
    """Of the budget, as it was when the attempt was started."""
    began: float = 0.0
    """Unix time from which on the attempt is paid for."""

    @property
    def _folder(self) -> RunFolder:
        return RunFolder(self.root)

    def _append(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 - checked by the event's class
        """What a full disk does not take now is kept, and written before the next event: it must not end training."""
        keys = {"job": self.job, "attempt": self.attempt, "incarnation": self.incarnation, "time": time.time()}
        with _LOCK:
            waiting = _WAITING.setdefault(self._folder.events, deque(maxlen=_MAX_WAITING))
            waiting.append((kind, keys | fields))
            while waiting:
                first, content = waiting.popleft()
                try:
                    shared_log(self._folder.events).append(first, **content)
                except OSError as error:
                    waiting.appendleft((first, content))
                    print(f"{len(waiting)} events wait to be written: {error}", file=sys.stderr, flush=True)
                    return

    def started(self, *, step: int, tokens: int, world_size: int, resumed_from: str | None, arithmetic: str) -> None:
        """See `Reporter`."""
        where = {"step": step, "tokens": tokens, "resumed_from": resumed_from}
        self._append("started", **where, world_size=world_size, arithmetic=arithmetic)

    def progress(self, *, step: int, tokens: int, metrics: dict[str, float], samples: int) -> None:
        """See `Reporter`."""
        self._append("progress", step=step, tokens=tokens, metrics=metrics, samples=samples)

    def checkpoint_committed(self, *, step: int, uri: str, size_bytes: int, seconds: float) -> None:
        """See `Reporter`."""
        self._append("checkpoint-committed", step=step, uri=uri, size_bytes=size_bytes, seconds=seconds)

    def here(self, rank: int, node: str) -> None:
        """Told by each worker of a cluster when it begins: on which machine it is."""
        note_place(self._folder.places(self.attempt, self.incarnation), rank, node)

    def workers_lost(self, message: str, ranks: Sequence[int] = ()) -> None:
        """Told by Ray's controller, which starts the workers again; `ranks` may have gone by their machines' fault."""
        places = self._folder.places(self.attempt, self.incarnation)
        nodes = nodes_of(places, ranks)
        with suppress(OSError):
            places.unlink()  # those that come next say themselves where they are
        where = f" (on {', '.join(nodes)})" if nodes else ""
        self._append("workers-lost", message=f"{message}{where}", nodes=blamed(nodes))

    def machine_load(self, node: str, metrics: dict[str, float]) -> None:
        """Told by a thread of the driver; see `launch.machine`."""
        self._append("machine-load", node=node, metrics=metrics)

    def warning(self, message: str) -> None:
        """See `Reporter`."""
        self._append("warning", message=message)

    def anomaly(self, incident: Incident, message: str) -> None:
        """See `Reporter`."""
        found = incident.model_dump(include={"step", "data_step", "value", "score", "action"})
        self._append("anomaly", **found, fault=incident.kind, message=message)

    def artifact(self, name: str, data: bytes) -> None:
        """See `Reporter`."""
        path = self._folder.artifacts / name
        draft = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(data)
            draft.replace(path)
        except OSError as error:
            self.warning(f"{path} could not be written: {error}")

    def stop_requested(self) -> Stop | None:
        """See `Reporter`. The control file, or the end of the budget even if nobody writes one; a file that holds no
        answer orders nothing, and `launch.deadline` says so."""
        try:
            answer = read_control(self._folder.control)
        except ValueError:
            answer = Continue()
        deadline, _ = self._newest(answer)
        if isinstance(answer, CheckpointAndStop):
            return Stop(answer.deadline, answer.reason)
        if deadline is not None and (self._key in _DUE or time.time() >= deadline.stop):
            _DUE.add(self._key)
            return Stop(deadline.end, "over-budget")
        return None

    def known_deadline(self) -> HardDeadline | None:
        """The newest that this process has seen; None without a budget."""
        return _NEWEST.get(self._key, self.deadline)

    def newest_deadline(self) -> tuple[HardDeadline | None, str]:
        """With that of the control file, and what is wrong there. That it was time to stop is remembered: workers who
        have stopped for it are gone, whatever the file says now."""
        known = self.known_deadline()
        if known is not None and time.time() >= known.stop:
            _DUE.add(self._key)
        try:
            deadline, complaint = self._newest(read_control(self._folder.control))
        except ValueError as error:
            deadline, complaint = self.known_deadline(), str(error)
        return deadline, complaint

    def _newest(self, answer: Answer) -> tuple[HardDeadline | None, str]:
        with _LOCK:
            known = self.known_deadline()
            deadline, complaint = newest(known, answer, incarnation=self.incarnation, began=self.began)
            if deadline is not None:
                _NEWEST[self._key] = deadline
        return deadline, complaint

    @property
    def _key(self) -> tuple[Path, str]:
        return self.root, self.incarnation

    def failed(self, kind: str, message: str) -> None:
        """See `Reporter`. The first rank to say so is believed: the others fail because of it."""
        path = self._failure
        path.parent.mkdir(parents=True, exist_ok=True)
        body = {"attempt": self.attempt, "incarnation": self.incarnation, "class": kind, "message": message}
        draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        draft.write_text(json.dumps(body))
        try:
            os.link(draft, path)  # whole or not at all, and exclusive: this process may be killed at any moment
        except FileExistsError:
            return
        finally:
            draft.unlink()

    def has_failed(self) -> bool:
        """See `Reporter`."""
        return self._failure.exists()

    def failure(self) -> tuple[FailureClass, str] | None:
        """What `failed` was called with first in this incarnation."""
        try:
            body = json.loads(self._failure.read_text())
        except FileNotFoundError:
            return None
        known = body["class"] in set(FailureClass)
        return FailureClass(body["class"]) if known else FailureClass.UNKNOWN, str(body["message"])

    def stack_file(self, rank: int) -> Path:
        """See `Reporter`."""
        path = self._folder.stacks(self.attempt, self.incarnation, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def _failure(self) -> Path:
        return self._folder.failure(self.attempt, self.incarnation)
