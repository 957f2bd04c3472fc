"""The `Reporter` of a worker in a pod of its own: what it says goes to the mailbox in the head's pod.

Made by the driver, pickled to the workers. Invariant: training ends because of nothing that happens here. What has no
answer is sent and not waited for, in order; what has one is waited for at most `ANSWER_SECONDS`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from model.anomaly import Incident
from model.reporting import Stop
from orchestrator.launch.pods.stacks import follow

ANSWER_SECONDS = 10.0


class PodReporter:
    """See `model.reporting.Reporter`."""

    def __init__(self, mailbox: Any, run: Path) -> None:  # noqa: ANN401 - Ray's handle of an actor has no type
        """`run`: the folder of what the processes of one pod tell each other."""
        self.run = run
        self._mailbox = mailbox
        self._lock = threading.Lock()
        self._question: tuple[Future[Stop | None], float] | None = None
        """Whether to stop, asked and not yet answered, and when it was asked."""
        self._order: Stop | None = None
        self._told: set[str] = set()

    def __reduce__(self) -> tuple[type[PodReporter], tuple[Any, Path]]:
        return PodReporter, (self._mailbox, self.run)

    def started(self, *, step: int, tokens: int, world_size: int, resumed_from: str | None, arithmetic: str) -> None:
        """See `Reporter`."""
        where = {"step": step, "tokens": tokens, "resumed_from": resumed_from}
        self._tell("started", **where, world_size=world_size, arithmetic=arithmetic)

    def progress(self, *, step: int, tokens: int, metrics: dict[str, float], samples: int) -> None:
        """See `Reporter`."""
        self._tell("progress", step=step, tokens=tokens, metrics=metrics, samples=samples)

    def checkpoint_committed(self, *, step: int, uri: str, size_bytes: int, seconds: float) -> None:
        """See `Reporter`."""
        self._tell("checkpoint_committed", step=step, uri=uri, size_bytes=size_bytes, seconds=seconds)

    def here(self, rank: int, node: str) -> None:
        """Told by each worker when it begins: on which machine it is."""
        self._tell("here", rank=rank, node=node)

    def workers_lost(self, message: str, ranks: Sequence[int] = ()) -> None:
        """Told by Ray's controller, which starts the workers again."""
        self._tell("workers_lost", message=message, ranks=list(ranks))

    def warning(self, message: str) -> None:
        """See `Reporter`."""
        self._tell("warning", message=message)

    def anomaly(self, incident: Incident, message: str) -> None:
        """See `Reporter`."""
        self._tell("anomaly", incident=incident, message=message)

    def artifact(self, name: str, data: bytes) -> None:
        """See `Reporter`."""
        self._tell("artifact", name=name, data=data)

    def stop_requested(self) -> Stop | None:
        """See `Reporter`. The newest answer that has come, which is a step old: this does not wait. One question at a
        time is on its way."""
        with self._lock:
            if self._question is not None and self._question[0].done():
                self._hear(self._question[0])
                self._question = None
            if self._question is None or time.monotonic() > self._question[1] + ANSWER_SECONDS:
                self._ask()
            return self._order

    def _ask(self) -> None:
        try:
            self._question = self._mailbox.stop_requested.remote().future(), time.monotonic()
        except Exception as error:  # noqa: BLE001 - whatever Ray raises when the actor is gone
            self._complain(error)

    def _hear(self, answer: Future[Stop | None]) -> None:
        try:
            self._order = answer.result()
        except Exception as error:  # noqa: BLE001 - as above; the answer before holds
            self._complain(error)

    def failed(self, kind: str, message: str) -> None:
        """See `Reporter`."""
        self._answer("failed", kind, message)

    def has_failed(self) -> bool:
        """See `Reporter`. False where nobody answers."""
        return bool(self._answer("has_failed"))

    def stack_file(self, rank: int) -> Path:
        """See `Reporter`. A file of this pod, which a thread reads out to the log and to the mailbox."""
        path = self.run / "stacks" / f"rank-{rank}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        follow(path, lambda text: self._send("stacks", rank, text))
        return path

    def arrive(self) -> None:
        """Wait until all that was said has arrived: the process may end now."""
        self._answer("has_failed")  # after all that was sent before it

    def _tell(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 - checked by the event's class
        self._send("tell", kind, fields)

    def _send(self, method: str, *arguments: object) -> None:
        try:
            getattr(self._mailbox, method).remote(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever Ray raises when the actor is gone, or too many calls wait
            self._complain(error)

    def _answer(self, method: str, *arguments: object) -> Any:  # noqa: ANN401 - as the method says
        import ray

        try:
            return ray.get(getattr(self._mailbox, method).remote(*arguments), timeout=ANSWER_SECONDS)
        except Exception as error:  # noqa: BLE001 - as above, or no answer in time
            self._complain(error)
            return None

    def _complain(self, error: Exception) -> None:
        name = type(error).__name__
        if name not in self._told:
            self._told.add(name)
            print(f"the driver cannot be told, training goes on: {name}: {error}", file=sys.stderr, flush=True)
